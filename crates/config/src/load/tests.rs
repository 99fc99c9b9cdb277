use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use pgmahout_types::diagnostic::Diagnose;
use serde_json::json;

use super::*;
use crate::secret::SecretReference;
use crate::settings::{Codec, Counts, Encryption, Probe, Spool, Storage, ValueUnit, Wal};
use crate::{to_yaml, without_unset};

fn read(text: &str) -> Result<Loaded, ConfigError> {
    read_with(text, &[])
}

fn read_with(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Settings::read(text, Some(Path::new("pgmahout.yml")), &variables)
}

/// One a line.
fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .fold(String::new(), |text, problem| text + &problem.to_string() + "\n")
}

fn errors(text: &str) -> String {
    match read(text) {
        Err(ConfigError::Invalid { problems }) => lines(&problems),
        other => panic!("{other:?}"),
    }
}

fn warnings(text: &str) -> String {
    lines(&read(text).unwrap().warnings)
}

const SAMPLE: &str = include_str!("../../../../docs/samples/pgmahout.yml");

#[test]
fn the_sample_that_ships_is_valid_and_without_warnings() {
    let loaded = read(SAMPLE).unwrap();
    assert_eq!(loaded.warnings, []);
    let settings = loaded.settings;
    assert_eq!(settings.stanza.as_deref(), Some("shop"));
    let [local, offsite] = &settings.repositories[..] else {
        panic!("{:?}", settings.repositories)
    };
    assert_eq!(
        local.storage,
        Storage::Local {
            path: "/srv/pgmahout".into()
        }
    );
    assert_eq!(local.compression.unwrap().codec, Codec::Zstd);
    assert_eq!(
        local.encryption,
        Some(Encryption::Passphrase(SecretReference::File(
            "/etc/pgmahout/passphrase".into()
        )))
    );
    assert_eq!(
        local.retention.recovery_window,
        Some(Duration::from_hours(14 * 24))
    );
    assert!(offsite.off_site && !local.off_site);
    assert_eq!(settings.dump.counts, Some(Counts::Exact));
    assert_eq!(settings.targets.rpo, Some(Duration::from_hours(24)));
}

#[test]
fn the_sample_has_the_checks_that_an_application_with_an_outbox_needs() {
    let checks = read(SAMPLE).unwrap().settings.checks;
    let names: Vec<&str> = checks.custom.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "recent_audits",
            "outbox_size",
            "outbox_pending",
            "key_tables",
            "application"
        ]
    );
    let audits = &checks.custom[0];
    assert!(audits.below && audits.warn == Some(1.0));
    let Probe::Sql {
        database,
        query,
        rows,
    } = &audits.probe
    else {
        panic!("{audits:?}")
    };
    assert_eq!(database.as_deref(), Some("somabrain"));
    assert!(query.contains("interval '1 hour'") && rows.is_none());
    let size = &checks.custom[1];
    assert_eq!(
        (size.unit, size.crit),
        (ValueUnit::Bytes, Some(5.0 * 1024.0 * 1024.0 * 1024.0))
    );
    let Probe::Tables { names, not_empty, .. } = &checks.custom[3].probe else {
        panic!()
    };
    assert_eq!(names, &["public.audit_log", "public.outbox_events"]);
    assert!(not_empty);
    let threshold = &checks.thresholds["connections.used"].value;
    assert_eq!(
        (threshold.warn.as_deref(), threshold.crit.as_deref()),
        (Some("70%"), Some("85%"))
    );
    assert_eq!(checks.disabled[0].value, "checksums");
}

#[test]
fn one_threshold_is_the_warning_in_every_form() {
    for form in ["5min", "[5min]", "{warn: 5min}"] {
        let settings = read(&format!("checks: {{queries.long: {form}}}\n"))
            .unwrap()
            .settings;
        let threshold = &settings.checks.thresholds["queries.long"].value;
        assert_eq!(
            (threshold.warn.as_deref(), threshold.crit.as_deref()),
            (Some("5min"), None),
            "{form}"
        );
    }
    assert!(errors("checks: {queries.long: []}\n").contains("must be false, or thresholds such as"));
}

#[test]
fn an_unknown_key_of_ours_is_an_error_with_its_place_and_the_nearest_key() {
    let text =
        "repository:\n  - name: local\n    type: local\n    path: /srv\n    retension: {keep_last: 3}\n";
    assert_eq!(
        errors(text),
        "pgmahout.yml:5:5: unknown key 'retension' in 'repository[0]' — did you mean 'retention'?\n"
    );
    insta::assert_snapshot!(
        errors(
            "dump: {jobz: 2, x: 1}\nbackup:\n  checkpoint: fats\nrepositry: []\ntargets: [1]\nbackup: {checkpoint: fats}\n\
             checks: {containrs: [a], connections.used: {wran: 1}, custom: [{name: a}]}\n"
        ),
        @r"
    pgmahout.yml:1:8: unknown key 'jobz' in 'dump' — did you mean 'jobs'?
    pgmahout.yml:1:17: unknown key 'x' in 'dump'
    pgmahout.yml:4:1: unknown section 'repositry' — did you mean 'repository'?
    pgmahout.yml:5:10: 'targets' must be a mapping of keys to values, not a list
    pgmahout.yml:6:1: the section 'backup' stands twice
    pgmahout.yml:6:22: 'backup.checkpoint' must be one of fast, spread — did you mean 'fast'?
    pgmahout.yml:7:10: unknown key 'containrs' in 'checks' — did you mean 'containers'?
    pgmahout.yml:7:45: unknown key 'wran' in 'checks.connections.used' — did you mean 'warn'?
    pgmahout.yml:7:64: a custom check needs one of sql, tables, http, tcp, command
    "
    );
}

#[test]
fn all_errors_are_shown_at_once_in_the_order_of_the_file() {
    let error = read("dump:\n  jobs: many\n  compress: zstd:99\n  counts: exactly\ntargets:\n  rpo: 5\n")
        .unwrap_err();
    insta::assert_snapshot!(error.to_string(), @r"
    the configuration has 4 errors
      pgmahout.yml:2:9: 'dump.jobs' must be a whole number from 1 to 512, not 'many'
      pgmahout.yml:3:13: 'dump.compress' must be one of none, lz4, gzip:1-9, zstd:1-19, not 'zstd:99'
      pgmahout.yml:4:11: 'dump.counts' must be one of exact, estimate, none — did you mean 'exact'?
      pgmahout.yml:6:8: 'targets.rpo' must be a duration such as 500ms, 30s, 5min, 2h or 14d, not '5'
    ");
    assert_eq!(error.outcome().exit_code(), 2);
    assert!(error.hint().unwrap().contains("pgmahout config check"));
}

#[test]
fn repositories_are_checked() {
    insta::assert_snapshot!(
        errors(
            "repository:\n  - {name: a b, type: local}\n  - {name: x, type: s4}\n  - {name: y, type: s3, endpoint: s3.org}\n  \
             - {type: local, path: /x, encryption: {passphrase: p, key_file: /k}}\n  \
             - {name: z, type: local, path: /z, compression: {level: 3}, bucket: b}\n  \
             - {name: z, type: local, path: /z, compression: gzip:12, encryption: {}}\ndump: {repository: zz}\n"
        ),
        @r"
    pgmahout.yml:2:5: 'repository[0].path' is missing
    pgmahout.yml:2:12: 'repository[0].name' must be a name of letters, digits, - and _, not 'a b'
    pgmahout.yml:3:21: 'repository[1].type' must be one of local, s3
    pgmahout.yml:4:5: 'repository[2].bucket' is missing
    pgmahout.yml:4:35: 'repository[2].endpoint' must be a URL that begins with https:// or http://, not 's3.org'
    pgmahout.yml:5:5: 'repository[3].name' is missing
    pgmahout.yml:5:41: 'repository[3].encryption' needs one of passphrase, key_file, command
    pgmahout.yml:6:51: 'repository[4].compression.codec' is missing
    pgmahout.yml:6:63: unknown key 'bucket' in 'repository[4]'
    pgmahout.yml:7:5: two repositories have the name 'z'
    pgmahout.yml:7:51: 'repository[5].compression' must be one of none, lz4, gzip:1-9, zstd:1-19, not 'gzip:12'
    pgmahout.yml:7:72: 'repository[5].encryption' needs one of passphrase, key_file, command
    pgmahout.yml:8:20: there is no repository 'zz' — did you mean 'z'?
    "
    );
}

#[test]
fn backups_and_the_wal_archive_are_checked() {
    insta::assert_snapshot!(
        errors(
            "stanza: a/b\nbackup:\n  schedule: daily\n  nice: 20\n  rate_limit: 0\n  include: [etc/x, [y]]\n  \
             verify_skipped: 5\n  assertions: [{name: a}]\n  from_standby: yes\n  remote: yes\nwal:\n  spool: {pth: /s}\n  \
             max_queue: lots\n  min_repositories: 2\n  prefetch: {segments: 5000}\n  receive: {slot: A-b}\n"
        ),
        @r#"
    pgmahout.yml:1:9: 'stanza' must be a name of up to 64 letters, digits, -, _ and ., the first no - or ., not 'a/b'
    pgmahout.yml:3:3: 'backup' has both remote and from_standby; a remote backup reads the server it is given
    pgmahout.yml:3:13: 'backup.schedule' must be five fields of cron, such as "0 2 * * *", not 'daily'
    pgmahout.yml:4:9: 'backup.nice' must be a whole number from 0 to 19, not '20'
    pgmahout.yml:5:15: 'backup.rate_limit' must be a size such as 512kB, 100MB or 1GiB, more than zero, not '0'
    pgmahout.yml:6:13: 'backup.include[0]' must be an absolute path, not 'etc/x'
    pgmahout.yml:6:20: 'backup.include[1]' must be an absolute path, not a list
    pgmahout.yml:7:19: 'backup.verify_skipped' must be a percentage from 0% to 100%, not '5'
    pgmahout.yml:8:16: 'backup.assertions[0].sql' is missing
    pgmahout.yml:12:10: 'wal.spool.path' is missing
    pgmahout.yml:12:11: unknown key 'pth' in 'wal.spool' — did you mean 'path'?
    pgmahout.yml:13:14: 'wal.max_queue' must be a size such as 512kB, 100MB or 1GiB, more than zero, not 'lots'
    pgmahout.yml:14:21: 'wal.min_repositories' is 2, but the number of repositories is 0
    pgmahout.yml:15:24: 'wal.prefetch.segments' must be a whole number from 0 to 1024, not '5000'
    pgmahout.yml:16:19: 'wal.receive.slot' must be a name of up to 63 small letters, digits and underscores, not 'A-b'
    "#
    );
}

#[test]
fn the_wal_archive_has_short_forms() {
    let wal = |text: &str| read(text).unwrap().settings.wal;
    assert_eq!(wal(""), Wal::default());
    assert_eq!(wal("wal: {prefetch: off, spool: no}").prefetch.segments, 0);
    assert_eq!(wal("wal: {prefetch: 4}").prefetch.segments, 4);
    let spool = wal("wal: {spool: /s}").spool.unwrap();
    assert_eq!((spool.path.as_path(), spool.size), (Path::new("/s"), Spool::SIZE));
    let spool = wal("wal: {spool: {path: /s, size: 2GiB}}").spool.unwrap();
    assert_eq!(spool.size, 2 << 30);
    // A name given by hand must do; Patroni's may be anything until it is used.
    assert_eq!(
        read("scope: a/b").unwrap().settings.stanza.as_deref(),
        Some("a/b")
    );
}

#[test]
fn custom_checks_are_checked() {
    insta::assert_snapshot!(
        errors(
            "checks:\n  custom:\n    - {name: Big, sql: SELECT 1}\n    - {name: two, sql: SELECT 1, tcp: 'a:1'}\n    \
             - {name: sides, sql: SELECT 1, warn: 1, crit_below: 2}\n    \
             - {name: order, sql: SELECT 1, warn: 5, crit: 2}\n    - {name: unit, sql: SELECT 1, unit: bytes, warn: 5%}\n    \
             - {name: port, tcp: 'host:99999'}\n    - {name: word, command: \"a 'b\"}\n    - {name: url, http: example.org}\n  \
             queries.long: {warn: [1]}\n"
        ),
        @r"
    pgmahout.yml:3:14: 'checks.custom[0].name' must be a name of small letters, digits, - and _, not 'Big'
    pgmahout.yml:4:7: a custom check has one of sql, tables, http, tcp, command, not sql and tcp
    pgmahout.yml:5:7: give warn and crit, or warn_below and crit_below, not both
    pgmahout.yml:6:7: the warning threshold lies beyond the critical one
    pgmahout.yml:7:54: 'checks.custom[4].warn' must be a size such as 512kB, 100MB or 1GiB, not '5%'
    pgmahout.yml:8:25: 'checks.custom[5].tcp' must be host:port, not 'host:99999'
    pgmahout.yml:9:29: 'checks.custom[6].command' must be a program with its arguments, not 'a 'b'
    pgmahout.yml:10:25: 'checks.custom[7].http' must be a URL that begins with https:// or http://, not 'example.org'
    pgmahout.yml:11:24: 'checks.queries.long' must be false, or thresholds such as [70%, 85%] or {warn: 70%, crit: 85%}, not a list
    "
    );
}

#[test]
fn thresholds_can_be_written_in_four_ways() {
    let text = "checks:\n  a.list: [70%, 85%]\n  b.text: 5s,30s\n  c.map: {crit: 2}\n  d.one: 10\n  e.off: off\n  \
                f.none: [~, 5]\n  g.on: true\n  tls: [30d, 7d]\n";
    let checks = read(text).unwrap().settings.checks;
    let of = |name: &str| {
        let threshold = &checks.thresholds[name].value;
        (threshold.warn.as_deref(), threshold.crit.as_deref())
    };
    assert_eq!(of("a.list"), (Some("70%"), Some("85%")));
    assert_eq!(of("b.text"), (Some("5s"), Some("30s")));
    assert_eq!(of("c.map"), (None, Some("2")));
    assert_eq!(of("d.one"), (Some("10"), None));
    assert_eq!(of("f.none"), (Some(""), Some("5")));
    assert_eq!(of("tls"), (Some("30d"), Some("7d")));
    assert_eq!(checks.thresholds.len(), 6);
    assert_eq!(
        checks
            .disabled
            .iter()
            .map(|check| check.value.as_str())
            .collect::<Vec<_>>(),
        ["e.off"]
    );
    assert_eq!(checks.thresholds["c.map"].origin.to_string(), "pgmahout.yml:4:10");
}

const PATRONI: &str = "scope: batman\nname: pg0\nrestapi:\n  listen: 127.0.0.1:8008\n  conect_address: 127.0.0.1:8008\n\
    etcd3:\n  host: 127.0.0.1:2379\nbootstrap:\n  dcs:\n    ttl: 30\n    lop_wait: 10\n    postgresql:\n      use_pg_rewind: yes\n\
    \n  initdb:\n  - encoding: UTF8\n  - data-checksums\npostgresql:\n  listen: 127.0.0.1:5432\n  data_dir: data/pg0\n  \
    create_replica_methods: [pgmahout, basebackup]\n  pgmahout: {command: x}\n  authentication:\n    replication: {username: r, password: rep-pass}\n  \
    parameters: {unix_socket_directories: .., log_file_mode: 0640}\ntags: {nofailover: false, anything: 1}\n";

#[test]
fn a_patroni_file_is_accepted_with_warnings_for_what_patroni_does_not_know() {
    let loaded = read(PATRONI).unwrap();
    let settings = &loaded.settings;
    assert_eq!(settings.stanza.as_deref(), Some("batman"));
    assert_eq!(settings.server.data_dir.as_deref(), Some(Path::new("data/pg0")));
    assert_eq!(
        settings.patroni.get("bootstrap.dcs.postgresql.use_pg_rewind"),
        Some(&json!(true))
    );
    assert_eq!(
        settings.patroni.get("postgresql.parameters.log_file_mode"),
        Some(&json!(0o640))
    );
    assert_eq!(settings.patroni.text("bootstrap.dcs.ttl").as_deref(), Some("30"));
    assert!(settings.patroni.is_used());
    assert_eq!(
        warnings(PATRONI),
        "pgmahout.yml:5:3: unknown key 'conect_address' in 'restapi' — did you mean 'connect_address'?\n\
         pgmahout.yml:11:5: unknown key 'lop_wait' in 'bootstrap.dcs' — did you mean 'loop_wait'?\n"
    );
}

#[test]
fn nothing_that_prints_shows_a_secret() {
    let text = format!(
        "{PATRONI}repository:\n  - {{name: a, type: s3, bucket: b, access_key: AKIA1, secret_key: sec-key, \
         encryption: {{passphrase: pass-phrase}}}}\nchecks: {{pgbouncer: 'host=x password=bouncer-pass'}}\n\
         pool: {{auth: pool-pass}}\n"
    );
    let text = text.replace(
        "postgresql:\n  listen",
        "postgresql:\n  dsn: postgresql://u:dsn-pass@h/d\n  listen",
    );
    let text = text.replace("etcd3:\n", "etcd3:\n  url: https://root:etcd-pass@etcd:2379\n");
    let variables = [
        ("PATRONI_SUPERUSER_PASSWORD", "super-pass"),
        ("PATRONI_RESTAPI_PASSWORD", "rest-pass"),
    ];
    let loaded = read_with(&text, &variables).unwrap();
    let json = serde_json::to_value(&loaded.settings).unwrap();
    let shown = format!("{json} {} {:?}", to_yaml(&json), loaded.settings.repositories);
    for secret in [
        "rep-pass",
        "AKIA1",
        "sec-key",
        "pass-phrase",
        "bouncer-pass",
        "pool-pass",
        "dsn-pass",
        "etcd-pass",
        "super-pass",
        "rest-pass",
    ] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert_eq!(
        json["postgresql"]["authentication"]["superuser"]["password"],
        "***"
    );
    assert_eq!(json["etcd3"]["url"], "https://root:***@etcd:2379");
    // But what needs them has them.
    let patroni = &loaded.settings.patroni;
    assert_eq!(
        patroni
            .text("postgresql.authentication.superuser.password")
            .unwrap(),
        "super-pass"
    );
}

#[test]
fn settings_print_in_the_form_of_the_file_and_read_back_as_the_same() {
    let custom = "checks:\n  disk.used: {crit: 95%}\n  custom:\n    \
        - {name: a, sql: SELECT 1, unit: ratio, warn: 12.5%, timeout: 1h30min}\n    \
        - {name: b, tcp: 'h:1', crit: 1500ms}\n    - {name: c, command: [ls, \"a b\"], hint: 'do: it'}\n";
    for text in [
        SAMPLE,
        PATRONI,
        custom,
        "wal: {spool: {path: /s, size: 3MB}, prefetch: {segments: 2, path: /p}, max_queue: 1TB, receive: {slot: s}}\n\
         backup: {nice: 3, include: /etc/x, verify_skipped: 5%, archive_timeout: 1h, assertions: {name: a, sql: b}}\n",
        "dump: {repository: r}\nrepository: {name: r, type: local, path: /r}\n",
    ] {
        let first = serde_json::to_value(read(text).unwrap().settings).unwrap();
        let printed = to_yaml(&without_unset(first.clone()));
        let again = printed
            .lines()
            .filter(|line| !line.starts_with("file:"))
            .collect::<Vec<_>>()
            .join("\n");
        let second = serde_json::to_value(read(&again).unwrap().settings).unwrap();
        assert_eq!(first, second, "{printed}");
    }
}

#[test]
fn variables_lie_over_the_file() {
    let text =
        "dump: {directory: /a, jobs: 2}\nrepository:\n  - {name: off-site, type: s3, bucket: b}\nscope: a\n";
    let variables = [
        ("PGMAHOUT_DUMP_DIRECTORY", "/b"),
        ("PGMAHOUT_TARGETS_RPO", "1h"),
        ("PGMAHOUT_EXPECT_ROLES", "[a, b]"),
        ("PGMAHOUT_REPOSITORY_OFF_SITE_BUCKET", "other"),
        ("PGMAHOUT_STATE_DIR", "/s"),
        ("PATRONI_SCOPE", "b"),
        ("PATRONI_ETCD3_HOSTS", "'h1:2379','h2:2379'"),
        ("PATRONI_REPLICATION_USERNAME", "rep"),
        ("PATRONI_POSTGRESQL_DATA_DIR", "/data"),
        ("PATRONI_NO_SUCH_THING", "x"),
    ];
    let loaded = read_with(text, &variables).unwrap();
    assert_eq!(loaded.warnings, []);
    let settings = loaded.settings;
    assert_eq!(settings.dump.directory.as_deref(), Some(Path::new("/b")));
    assert_eq!(settings.dump.jobs, Some(2));
    assert_eq!(settings.targets.rpo, Some(Duration::from_hours(1)));
    assert_eq!(settings.expect.roles, ["a", "b"]);
    assert!(matches!(&settings.repositories[0].storage, Storage::S3 { bucket, .. } if bucket == "other"));
    assert_eq!(settings.stanza.as_deref(), Some("b"));
    assert_eq!(
        settings.patroni.get("etcd3.hosts"),
        Some(&json!(["h1:2379", "h2:2379"]))
    );
    assert_eq!(
        settings
            .patroni
            .text("postgresql.authentication.replication.username")
            .unwrap(),
        "rep"
    );
    assert_eq!(settings.server.data_dir.as_deref(), Some(Path::new("/data")));
}

#[test]
fn a_wrong_variable_is_named() {
    let error = read_with("", &[("PGMAHOUT_DUMP_JOBS", "many")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment variable PGMAHOUT_DUMP_JOBS: 'dump.jobs' must be a whole number from 1 to 512, not 'many'"
    );
    // It may be meant for an env: reference, so that an unknown one is no error.
    let loaded = read_with("", &[("PGMAHOUT_DUMP_PASSPHRASE", "x")]).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
}

#[test]
fn sections_of_later_versions_are_accepted_with_a_warning() {
    assert_eq!(
        warnings("monitor: {listen: 127.0.0.1:9187}\nhaproxy: {}\n"),
        "pgmahout.yml:1:10: 'monitor' is not used by this version of pgmahout\n\
         pgmahout.yml:2:1: unknown section 'haproxy'\n"
    );
}

#[test]
fn our_own_texts_stay_as_they_are_written() {
    let text = "stanza: on\nexpect: {settings: {fsync: on, work_mem: 0755}}\n\
                repository: [{name: 007, type: local, path: /x, encryption: {passphrase: 0123}}]\n";
    let settings = read(text).unwrap().settings;
    assert_eq!(settings.stanza.as_deref(), Some("on"));
    assert_eq!(settings.expect.settings["fsync"], "on");
    assert_eq!(settings.expect.settings["work_mem"], "0755");
    assert_eq!(settings.repositories[0].name, "007");
    let Some(Encryption::Passphrase(SecretReference::Literal(passphrase))) =
        &settings.repositories[0].encryption
    else {
        panic!();
    };
    assert_eq!(passphrase.expose(), "0123");
}

#[test]
fn the_first_file_that_is_there_is_read_and_a_named_one_must_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("second.yml"), "stanza: second").unwrap();
    std::fs::write(path("named.yml"), "stanza: named").unwrap();
    let mut sources = Sources {
        candidates: vec![path("first.yml"), path("second.yml")],
        ..Sources::default()
    };
    let stanza = |named: Option<&Path>, sources: &Sources| {
        Settings::load(named, sources).map(|loaded| loaded.settings.stanza.unwrap_or_default())
    };
    assert_eq!(stanza(None, &sources).unwrap(), "second");
    assert_eq!(stanza(Some(&path("named.yml")), &sources).unwrap(), "named");
    let missing = stanza(Some(&path("missing.yml")), &sources).unwrap_err();
    assert!(matches!(&missing, ConfigError::Read { .. }), "{missing}");
    assert_eq!(missing.outcome().exit_code(), 2);
    sources.variables.insert(
        "PGMAHOUT_CONFIG".to_owned(),
        path("named.yml").display().to_string(),
    );
    assert_eq!(stanza(None, &sources).unwrap(), "named");
    let nothing = Settings::load(None, &Sources::default()).unwrap();
    assert_eq!(nothing.settings.file, None);
}

#[test]
fn a_file_with_secrets_that_everybody_may_read_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pgmahout.yml");
    let warned = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let warnings = Settings::load(Some(&path), &Sources::default()).unwrap().warnings;
        warnings
            .iter()
            .any(|warning| warning.message.contains("everybody may read it"))
    };
    let literal = "checks: {pgbouncer: 'password=x'}\n";
    assert!(warned(literal, 0o644) && !warned(literal, 0o640));
    assert!(!warned("checks: {pgbouncer: env:DSN}\n", 0o644));
    assert!(warned(
        "postgresql: {authentication: {superuser: {password: x}}}\n",
        0o644
    ));
    assert!(!warned(
        "postgresql: {dsn: file:/dsn, parameters: {password_encryption: md5}}\n",
        0o644
    ));
}

#[test]
fn a_file_in_the_current_directory_that_others_can_change_is_not_taken() {
    // Relative on purpose: only what is found by chance is distrusted.
    let directory = tempfile::tempdir_in(".").unwrap();
    let name = directory.path().file_name().unwrap();
    let path = Path::new(".").join(name).join("pgmahout.yml");
    std::fs::write(&path, "stanza: mine").unwrap();
    let sources = Sources {
        candidates: vec![path.clone()],
        ..Sources::default()
    };
    assert!(Settings::load(None, &sources).is_ok());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = Settings::load(None, &sources).unwrap_err();
    assert!(
        error.to_string().contains("can be changed by other users"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--config"));
    assert!(Settings::load(Some(&path), &sources).is_ok());
    if rustix::process::geteuid().is_root() {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let error = Settings::load(None, &sources).unwrap_err();
        assert!(error.to_string().contains("belongs to another user"), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn reading_any_configuration_gives_settings_or_errors(
        text in "(stanza|dump|checks|repository|backup|wal|spool|prefetch|postgresql|targets|custom|name|sql|[ \n:{}\\[\\],-]|[a-z0-9%~']){0,40}"
    ) {
        let _ = read(&text);
    }
}
