//! The second half of the demo: continuous archiving, a physical backup, and the server as it was the second
//! before somebody ruined it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use pgmahout_postgres::connection::Connection;
use pgmahout_postgres::throwaway::{ThrowawayHouse, ThrowawayServer};
use pgmahout_types::diagnostic::Outcome;

use super::stage::{ServerSide, Stage};
use super::{faults, shop, sql};
use crate::failure::Failure;

/// How long the restored server may take to come up.
const PATIENCE: Duration = Duration::from_mins(2);

/// The name of the restored server and its data directory.
const NAME: &str = "recovered";

/// What was proved.
pub(super) struct Rewound {
    pub(super) tables: usize,
    pub(super) lost: Vec<String>,
}

pub(super) async fn play(
    stage: &mut Stage,
    house: &ThrowawayHouse,
    primary: &ThrowawayServer,
    shop: &Connection,
    bin_dir: &Path,
) -> Result<Rewound, Failure> {
    stage.begin("Archive continuously, and take a physical backup");
    let (program, config) = set_up(house, primary, bin_dir)?;
    stage.use_server_side(program);
    stage.pgmahout(&["repo", "init"]).await?.expect_success()?;
    let command = format!(
        "{} --config {} wal push %p",
        house.root().join("bin/pgmahout").display(),
        config.display()
    );
    // The program notes in the state directory what it has stored.
    let state = house.root().join("state").display().to_string();
    stage.say("shop=# ALTER SYSTEM SET archive_command = 'pgmahout wal push %p';");
    sql(
        shop,
        &format!("ALTER SYSTEM SET archive_command = 'PGMAHOUT_STATE_DIR={state} {command}'"),
    )
    .await?;
    sql(shop, "SELECT pg_reload_conf()").await?;
    stage.pgmahout(&["repo", "check"]).await?.expect_success()?;
    stage.pgmahout(&["backup", "create"]).await?.expect_success()?;
    stage.end();

    stage.begin("Go on working; then somebody forgets a WHERE");
    sql(
        shop,
        "INSERT INTO orders (customer_id, state, placed_at) \
         SELECT 1 + n % 10, 'new', now() FROM generate_series(1, 5000) n; \
         UPDATE products SET price = price + 1 WHERE id % 3 = 0",
    )
    .await?;
    stage.say("5,000 new orders, a third of the prices raised.");
    let before = shop::digests(shop).await?;
    let moment = between(shop).await?;
    stage.say(&format!("The second before: {moment}"));
    stage.say("shop=# UPDATE orders SET state = 'returned';");
    sql(shop, "UPDATE orders SET state = 'returned', note = NULL").await?;
    let segment: String = shop
        .query_one("SELECT pg_walfile_name(pg_switch_wal())", &[])
        .await
        .map_err(|error| Failure::caused_by("cannot have the server finish a WAL segment", error))?
        .get(0);
    faults::until(
        "the WAL to be archived",
        shop,
        &format!("SELECT coalesce(last_archived_wal >= '{segment}', false) FROM pg_stat_archiver"),
    )
    .await?;
    let damaged = shop::digests(shop).await?;
    if shop::differing(&before, &damaged).is_empty() {
        return Err(Failure::new(
            Outcome::Failed,
            "the damage did not show in the digests of the tables",
        ));
    }
    stage.end();

    stage.begin("Restore the server to the second before");
    // In its place before the restore, which gives everything to the owner of this directory.
    let data = house.directory(NAME)?;
    stage
        .pgmahout(&[
            "restore",
            "--data-dir",
            &data.display().to_string(),
            "--target-time",
            &moment,
            "--yes",
        ])
        .await?
        .expect_success()?;
    let mut recovered = house.launch(NAME, &[("archive_mode", "off".to_owned())])?;
    let restored = wait(&mut recovered).await?;
    stage.end();

    stage.begin("Prove it: every table against its digest of the second before");
    let after = shop::digests(&restored).await?;
    stage.table(&shop::proof(&before, &damaged, &after));
    restored.close().await;
    recovered.stop().await;
    stage.end();
    Ok(Rewound {
        tables: before.len(),
        lost: shop::differing(&before, &after),
    })
}

/// The program and the configuration, where the server's user can reach them.
fn set_up(
    house: &ThrowawayHouse,
    primary: &ThrowawayServer,
    bin_dir: &Path,
) -> Result<(ServerSide, std::path::PathBuf), Failure> {
    let failed = |error: std::io::Error| Failure::caused_by("cannot prepare the demo's repository", error);
    let owner = std::fs::metadata(house.root()).map_err(failed)?;
    let own = std::env::current_exe().map_err(failed)?;
    let program = house.directory("bin")?.join("pgmahout");
    std::fs::copy(own, &program).map_err(failed)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    // What ran before belongs to whoever runs the demo; what follows runs as the server's user.
    let state = house.root().join("state");
    if rustix::process::geteuid().is_root() {
        give(&state, owner.uid(), owner.gid()).map_err(failed)?;
    }
    let config = house.write_file(
        "pgmahout.yml",
        &format!(
            "stanza: shop\npostgresql: {{data_dir: {}, bin_dir: {}}}\nrepository:\n  - {{name: local, type: local, path: {}}}\n",
            primary.data_directory().display(),
            bin_dir.display(),
            house.directory("backups")?.join("repository").display(),
        ),
    )?;
    let side = ServerSide {
        program,
        config: config.clone(),
        user: owner.uid(),
        group: owner.gid(),
    };
    Ok((side, config))
}

/// Gives a directory and what is in it to a user.
fn give(path: &Path, user: u32, group: u32) -> std::io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(user), Some(group))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), user, group)?;
        }
    }
    Ok(())
}

/// A moment that lies after everything so far and before everything that follows, by the server's clock.
async fn between(shop: &Connection) -> Result<String, Failure> {
    const NOW: &str = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00', \
                       pg_sleep(0.3)::text";
    let failed = |error| Failure::caused_by("cannot ask the server for the time", error);
    shop.query_one("SELECT pg_sleep(0.3)::text", &[])
        .await
        .map_err(failed)?;
    let row = shop.query_one(NOW, &[]).await.map_err(failed)?;
    Ok(row.get(0))
}

/// Waits until the restored server has recovered, and connects.
async fn wait(recovered: &mut ThrowawayServer) -> Result<Connection, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(connection) = Connection::open(&recovered.parameters("shop")?).await {
            let row = connection.query_one("SELECT pg_is_in_recovery()", &[]).await;
            if row.is_ok_and(|row| !row.get::<_, bool>(0)) {
                return Ok(connection);
            }
        }
        if !recovered.is_running() || Instant::now() > deadline {
            return Err(Failure::caused_by(
                "the restored server does not come up",
                recovered.log_tail(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
