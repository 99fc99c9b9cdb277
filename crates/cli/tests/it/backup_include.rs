//! Configuration outside the data directory: taken along by `backup create`, brought back by `restore --include`.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use pgmahout_testkit::postgres::{Major, Postgres};

use crate::physical_scene::Scene;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_goes_along_and_comes_back_beside_what_is_there() {
    let scene = Scene::new(Major::V15, true).await;
    // The tests' own configuration directory is the server's own account's.
    let etc = scene.server.new_directory("etc");
    let pooler = etc.join("pgbouncer.ini");
    let tree = etc.join("postgresql");
    fs::create_dir_all(tree.join("15/main")).expect("made");
    fs::create_dir(tree.join("empty")).expect("made");
    let hba = tree.join("15/main/pg_hba.conf");
    let key = tree.join("15/main/server.key");
    // More than one frame, and a last block that is not full.
    let mut long = String::new();
    for number in 0..40_000 {
        writeln!(long, "# line {number}").expect("writing to a String");
    }
    fs::write(&pooler, &long).expect("written");
    fs::write(&hba, "local all all peer\n").expect("written");
    fs::write(&key, "the-secret-of-the-certificate").expect("written");
    symlink("pg_hba.conf", tree.join("15/main/link")).expect("made");
    for (path, mode) in [
        (&hba, 0o640),
        (&key, 0o400),
        (&pooler, 0o644),
        (&tree.join("empty"), 0o750),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    }
    for path in [
        &pooler,
        &tree,
        &tree.join("15"),
        &tree.join("15/main"),
        &tree.join("empty"),
        &hba,
        &key,
    ] {
        scene.server.account().own(path);
    }
    let text = fs::read_to_string(&scene.config).expect("there");
    fs::write(
        &scene.config,
        format!("{text}backup:\n  include: [{}]\n", tree.display()),
    )
    .expect("written");

    let created = scene
        .run(&["backup", "create", "--include", pooler.to_str().expect("text")])
        .await
        .expect_status(0);
    let shown = scene.run(&["backup", "show"]).await.expect_status(0).stdout;
    for path in [&pooler, &tree] {
        assert!(
            shown.contains(path.to_str().expect("text")),
            "{shown}{}",
            created.stderr
        );
    }
    for object in scene.objects() {
        let content = fs::read(&object).expect("readable");
        let secret = b"the-secret-of-the-certificate";
        assert!(
            !content.windows(secret.len()).any(|window| window == secret),
            "{} is readable",
            object.display()
        );
    }
    scene.run(&["backup", "verify", "--full"]).await.expect_status(0);

    fs::write(&hba, "changed since\n").expect("written");
    let copy = Postgres::vacant(Major::V15);
    let restore = |arguments: &[&str]| {
        scene
            .pgmahout(&["restore", "--yes", "--data-dir"])
            .arg(copy.data_dir())
            .args(arguments)
    };
    let restored = restore(&["--include"]).run().await.expect_status(0);
    let beside = etc.join("postgresql.restored/15/main");
    assert!(
        restored.stdout.contains("postgresql.restored"),
        "{}",
        restored.stdout
    );
    assert_eq!(fs::read_to_string(&hba).expect("there"), "changed since\n");
    assert_eq!(
        fs::read_to_string(beside.join("pg_hba.conf")).expect("there"),
        "local all all peer\n"
    );
    assert_eq!(mode(&beside.join("pg_hba.conf")), 0o640);
    assert_eq!(mode(&beside.join("server.key")), 0o400);
    assert_eq!(mode(&etc.join("postgresql.restored/empty")), 0o750);
    assert_eq!(
        fs::read_link(beside.join("link")).expect("a link"),
        Path::new("pg_hba.conf")
    );
    assert_eq!(
        fs::read_to_string(etc.join("pgbouncer.ini.restored")).expect("there"),
        long
    );

    // A second time it would be in the way, and that is known before anything is written.
    let refused = restore(&["--include", "--delta"]).run().await.expect_status(3);
    assert!(refused.stderr.contains("is there already"), "{}", refused.stderr);
    let elsewhere = etc.join("elsewhere");
    restore(&["--delta", "--include", elsewhere.to_str().expect("text")])
        .run()
        .await
        .expect_status(0);
    let below = elsewhere.join(key.strip_prefix("/").expect("absolute"));
    assert_eq!(
        fs::read_to_string(&below).expect("there"),
        "the-secret-of-the-certificate"
    );

    // What is missing is told, and the backup is there all the same.
    let missing = scene
        .run(&["backup", "create", "--include", "/nowhere/pgbouncer.ini"])
        .await
        .expect_status(1);
    assert!(
        missing.stderr.contains("/nowhere/pgbouncer.ini") && missing.stderr.contains("not taken along"),
        "{}",
        missing.stderr
    );
    let listed = scene.json(&["backup", "list"], 0).await;
    assert_eq!(
        listed["repositories"][0]["backups"]
            .as_array()
            .expect("a list")
            .len(),
        2
    );
}
