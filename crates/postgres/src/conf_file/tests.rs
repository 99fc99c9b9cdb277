use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn parse(text: &str) -> Result<Configuration, ConfError> {
    Configuration::parse(text, Path::new("/etc/x/postgresql.conf"))
}

#[test]
fn lines_are_read_as_the_server_reads_them() {
    let text = "# comment\nport = 5433   # why\nshared_buffers 128MB\nSearch_Path = '\"$user\", public'\n\
        log_line_prefix = 'it''s \\'x\\' \\101'\nwork_mem=-1\nport=5434\nmy.setting = on\n\
        a = 1.5e3\nb = 0x1F\nd = ''\n";
    let configuration = parse(text).expect("valid");
    for (name, value) in [
        ("port", "5434"),
        ("shared_buffers", "128MB"),
        ("search_path", "\"$user\", public"),
        ("LOG_LINE_PREFIX", "it's 'x' A"),
        ("work_mem", "-1"),
        ("my.setting", "on"),
        ("a", "1.5e3"),
        ("b", "0x1F"),
        ("d", ""),
    ] {
        assert_eq!(configuration.get(name), Some(value), "{name}");
    }
    assert_eq!(configuration.setting("port").map(|setting| setting.line), Some(7));
    assert_eq!(
        configuration
            .settings()
            .iter()
            .filter(|setting| setting.name == "port")
            .count(),
        2
    );
}

#[test]
fn wrong_lines_are_named() {
    for (text, message) in [
        (
            "port = \n",
            "/etc/x/postgresql.conf, line 1: \"port\" has no value",
        ),
        (
            "\nport 1 2\n",
            "/etc/x/postgresql.conf, line 2: unexpected text after the value of \"port\": 2",
        ),
        (
            "a = 'x\n",
            "/etc/x/postgresql.conf, line 1: a quoted value never ends",
        ),
        (
            "= 1\n",
            "/etc/x/postgresql.conf, line 1: no setting can begin with '='",
        ),
        (
            "a = /path/x\n",
            "/etc/x/postgresql.conf, line 1: the value /path/x needs quotes",
        ),
        (
            "a = 10.0.0.1/8,x\n",
            "/etc/x/postgresql.conf, line 1: the value 10.0.0.1/8,x needs quotes",
        ),
    ] {
        let error = parse(text).expect_err("refused");
        assert_eq!(error.to_string(), message);
        assert!(error.hint().is_some());
    }
}

#[test]
fn includes_are_followed_in_order_and_loops_end() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("created");
        std::fs::write(&path, text).expect("written");
        path
    };
    let main = write(
        "postgresql.conf",
        "a = 1\ninclude 'one.conf'\ninclude_if_exists = 'missing.conf'\ninclude_dir 'conf.d'\n",
    );
    write("one.conf", "a = 2\nb = 2\n");
    write("conf.d/20.conf", "a = 4\n");
    write("conf.d/10.conf", "a = 3\nc = 3\n");
    write("conf.d/.hidden.conf", "a = 9\n");
    write("conf.d/30.conf.off", "a = 9\n");
    write("postgresql.auto.conf", "c = 'auto'\n");
    let configuration = Configuration::read_server(directory.path(), None).expect("valid");
    assert_eq!(
        ["a", "b", "c"].map(|name| configuration.get(name)),
        [Some("4"), Some("2"), Some("auto")]
    );
    assert_eq!(configuration.files().len(), 5);

    std::fs::write(&main, "include 'postgresql.conf'\n").expect("written");
    assert!(matches!(
        Configuration::read(&main),
        Err(ConfError::TooDeep { .. })
    ));
}

#[test]
fn editing_changes_one_line_and_keeps_the_rest() {
    let text = "# head\nport = 5432\t\t# (change requires restart)\n#work_mem = 4MB\nport = 5433 # last\n\n";
    let mut file = ConfFile::from_text("postgresql.conf", text);
    file.set("Port", "5434").expect("valid");
    file.set("work_mem", "it's 8\\MB").expect("valid");
    assert_eq!(
        file.text(),
        "# head\nport = 5432\t\t# (change requires restart)\n#work_mem = 4MB\nport = '5434' # last\n\nwork_mem = 'it''s 8\\\\MB'\n"
    );
    assert_eq!(
        file.get("work_mem").expect("valid").as_deref(),
        Some("it's 8\\MB")
    );
    assert_eq!(file.remove("port").expect("valid"), 2);
    assert_eq!(file.get("port").expect("valid"), None);
    assert!(matches!(file.set("include", "x"), Err(ConfError::BadName { .. })));
    assert!(matches!(file.set("a b", "x"), Err(ConfError::BadName { .. })));
    assert!(matches!(file.set("a", "x\ny"), Err(ConfError::BadValue { .. })));
}

#[test]
fn saving_keeps_the_mode_and_a_copy_and_writes_only_changes() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("postgresql.conf");
    std::fs::write(&path, "port = 1\n").expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("mode set");
    let mut file = ConfFile::open(&path).expect("readable");
    file.set("port", "1").expect("valid");
    assert_eq!(
        file.save().expect("saved"),
        EditOutcome {
            changed: false,
            backup: None
        }
    );
    file.set("port", "2").expect("valid");
    let outcome = file.save().expect("saved");
    let backup = outcome.backup.expect("kept");
    assert_eq!(std::fs::read_to_string(&backup).expect("readable"), "port = 1\n");
    assert_eq!(std::fs::read_to_string(&path).expect("readable"), "port = '2'\n");
    for file in [&path, &backup] {
        assert_eq!(
            std::fs::metadata(file).expect("there").permissions().mode() & 0o777,
            0o640
        );
    }
}

#[test]
fn values_with_units_are_understood() {
    assert_eq!(parse_memory_bytes("128MB", Unit::Block), Some(128 << 20));
    assert_eq!(parse_memory_bytes("16384", Unit::Block), Some(128 << 20));
    assert_eq!(parse_memory_bytes("1.5 GB", Unit::Kilobyte), Some(3 << 29));
    assert_eq!(parse_memory_bytes("1gb", Unit::Kilobyte), None);
    assert_eq!(parse_time_milliseconds("5min", Unit::Second), Some(300_000.0));
    assert_eq!(parse_time_milliseconds("300", Unit::Second), Some(300_000.0));
    assert_eq!(parse_time_milliseconds("-1", Unit::Millisecond), Some(-1.0));
    assert_eq!(parse_time_milliseconds("1H", Unit::Second), None);
    for (text, value) in [
        ("on", Some(true)),
        ("OF", Some(false)),
        ("o", None),
        ("t", Some(true)),
        ("no", Some(false)),
        ("2", None),
    ] {
        assert_eq!(parse_boolean(text), value, "{text}");
    }
}

proptest! {
    #[test]
    fn any_value_set_is_read_back(value in "[^\n\r\0]{0,40}", before in "(#?[a-z]{1,5} ?=? ?'[a-z ]{0,5}'\n){0,5}") {
        let mut file = ConfFile::from_text("postgresql.conf", &before);
        file.set("zz.name", &value).expect("valid");
        let configuration = parse(&file.text()).expect("valid");
        prop_assert_eq!(configuration.get("zz.name"), Some(value.as_str()));
        prop_assert!(file.text().starts_with(&before));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*") {
        let _ = parse(&text);
    }
}
