//! `backup schedule`: units of systemd, and health where a schedule is not kept.

use std::fs;
use std::path::Path;
use std::process::Command;

use pgmahout_testkit::postgres::Major;
use pgmahout_testkit::proc::Pgmahout;
use pgmahout_testkit::sandbox::Sandbox;
use serde_json::Value;

use crate::physical_scene::Scene;

fn schedule(config: &Path, arguments: &[&str]) -> Pgmahout {
    Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
        .arg("--config")
        .arg(config)
        .args(["backup", "schedule"])
        .args(arguments)
        .env("PGMAHOUT_STATE_DIR", config.with_file_name("state"))
}

#[test]
fn a_schedule_becomes_units_that_systemd_takes_and_that_go_again() {
    let sandbox = Sandbox::new();
    let data = sandbox.directory("data");
    let units = sandbox.directory("units");
    let directory = units.to_str().expect("text");
    let written = |cron: &str, nice: u32| {
        sandbox.file(
            "pgmahout.yml",
            format!(
                "stanza: shop\npostgresql: {{data_dir: {}}}\nbackup: {{schedule: \"{cron}\", nice: {nice}}}\nrepository:\n  \
                 - {{name: local, type: local, path: /srv/pgmahout, retention: {{keep_last: 3}}}}\n  \
                 - {{name: archive, type: local, path: /srv/archive}}\n",
                data.display()
            ),
        )
    };
    let config = written("30 2 * * mon-fri", 7);
    let printed = schedule(&config, &["install", "--directory", directory, "--dry-run"])
        .run_blocking()
        .expect_status(0);
    assert_eq!(fs::read_dir(&units).expect("readable").count(), 0);
    schedule(&config, &["install", "--directory", directory])
        .run_blocking()
        .expect_status(0);
    let service = units.join("pgmahout-backup-shop.service");
    let timer = units.join("pgmahout-backup-shop.timer");
    let text = |path: &Path| fs::read_to_string(path).expect("there");
    for path in [&service, &timer] {
        assert!(
            printed.stdout.contains(text(path).trim_end()),
            "{}",
            printed.stdout
        );
    }
    assert!(text(&timer).contains("\nOnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 02:30:00\n"));
    assert!(text(&timer).contains("\nPersistent=true\n"));
    assert!(text(&service).contains("\nNice=7\n"));
    // Old backups go only where a retention says which, and only after a new one.
    let commands: Vec<String> = text(&service)
        .lines()
        .filter_map(|line| line.strip_prefix("ExecStart="))
        .map(|line| line.rsplit_once(" -q ").expect("options").1.to_owned())
        .collect();
    assert_eq!(
        commands,
        [
            "backup create --stanza shop",
            "backup expire --yes --stanza shop --repo local",
            "backup verify --stanza shop --budget 600s",
        ]
    );
    if let Ok(verified) = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args([&service, &timer])
        .output()
    {
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(
            verified.status.success() && !said.contains("pgmahout-backup-shop"),
            "{said}"
        );
        let calendar = Command::new("systemd-analyze")
            .args(["calendar", "Mon,Tue,Wed,Thu,Fri *-*-* 02:30:00"])
            .output()
            .expect("it ran before");
        assert!(calendar.status.success());
    }

    // The configuration has changed: that is seen, and mended.
    let config = written("0 */6 1,15 * sun", 7);
    let shown = schedule(&config, &["show", "--directory", directory])
        .run_blocking()
        .expect_status(0);
    assert!(
        shown.stdout.contains("not as the configuration says"),
        "{}",
        shown.stdout
    );
    schedule(&config, &["install", "--directory", directory])
        .run_blocking()
        .expect_status(0);
    assert_eq!(text(&timer).matches("\nOnCalendar=").count(), 2);

    // Somebody else's unit is left alone.
    fs::write(&timer, "[Timer]\n").expect("written");
    for verb in ["install", "remove"] {
        let refused = schedule(&config, &[verb, "--directory", directory])
            .run_blocking()
            .expect_status(3);
        assert!(
            refused.stderr.contains("was not written by pgmahout"),
            "{}",
            refused.stderr
        );
    }
    assert!(service.exists());
    fs::remove_file(&timer).expect("removed");
    schedule(&config, &["remove", "--directory", directory])
        .run_blocking()
        .expect_status(0);
    assert_eq!(fs::read_dir(&units).expect("readable").count(), 0);

    let config = sandbox.file("pgmahout.yml", "backup: {schedule: '@daily'}\n");
    let refused = schedule(&config, &["install"]).run_blocking().expect_status(2);
    assert!(
        refused.stderr.contains("five fields of cron"),
        "{}",
        refused.stderr
    );
    let config = sandbox.file("pgmahout.yml", "stanza: shop\n");
    let refused = schedule(&config, &["install"]).run_blocking().expect_status(2);
    assert!(
        refused.stderr.contains("hint: write `backup: { schedule:"),
        "{}",
        refused.stderr
    );
}

#[tokio::test]
async fn a_schedule_that_nobody_runs_is_a_warning() {
    let scene = Scene::new(Major::V18, false).await;
    let text = fs::read_to_string(&scene.config).expect("there");
    // The newest run that left something, or should have: half a year ago at least.
    fs::write(
        &scene.config,
        format!("{text}backup: {{schedule: \"0 0 1 1 *\"}}\n"),
    )
    .expect("written");
    let check = async || {
        let finished = scene
            .run(&["health", "--only", "backup.schedule", "--all", "--json"])
            .await;
        let report: Value = serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", finished.stdout, finished.stderr));
        report["results"][0].clone()
    };
    let before = check().await;
    assert_eq!(before["status"], "WARN", "{before}");
    assert!(
        before["hint"]
            .as_str()
            .expect("a hint")
            .contains("pgmahout backup schedule install"),
        "{before}"
    );
    scene.backup().await;
    let after = check().await;
    assert_eq!(after["status"], "OK", "{after}");
}
