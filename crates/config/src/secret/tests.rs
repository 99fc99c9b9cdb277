use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use pgmahout_types::diagnostic::Diagnose;

use super::*;

fn parse(text: &str) -> SecretReference {
    SecretReference::parse(text).unwrap()
}

#[test]
fn a_secret_never_prints() {
    let secret = Secret::new("hunter2");
    assert_eq!(format!("{secret} {secret:?}"), "*** ***");
    assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    let reference = parse("hunter2");
    assert_eq!(format!("{reference} {reference:?}"), "*** Literal(***)");
    assert_eq!(serde_json::to_string(&reference).unwrap(), "\"***\"");
    assert_eq!(
        parse("command:vault read hunter2").to_string(),
        "command:vault ..."
    );
    assert_eq!(secret.expose(), "hunter2");
}

#[test]
fn a_secret_file_loses_one_line_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("passphrase");
    for (content, secret) in [
        ("word", "word"),
        ("word\n", "word"),
        ("word\r\n", "word"),
        (" word \n\n", " word \n"),
    ] {
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(
            SecretReference::File(path.clone()).resolve().unwrap().expose(),
            secret
        );
    }
}

#[test]
fn a_secret_file_that_others_may_read_is_refused_with_the_chmod() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("passphrase");
    fs::write(&path, "word").unwrap();
    for mode in [0o644, 0o604, 0o620, 0o602] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let error = SecretReference::File(path.clone()).resolve().unwrap_err();
        let shown = path.display();
        assert_eq!(
            error.to_string(),
            format!("the secret file {shown} is open to other users (mode {mode:04o})")
        );
        assert_eq!(error.hint().unwrap(), format!("chmod 600 {shown}"));
    }
}

#[test]
fn a_missing_empty_or_strange_secret_file_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("passphrase");
    assert!(matches!(
        SecretReference::File(path.clone()).resolve(),
        Err(SecretError::File { .. })
    ));
    assert!(matches!(
        SecretReference::File(directory.path().to_path_buf()).resolve(),
        Err(SecretError::File { .. })
    ));
    for content in [b"".as_slice(), b"\n", b"\xff\xfe", &vec![b'x'; 70_000]] {
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            SecretReference::File(path.clone()).resolve(),
            Err(SecretError::Unusable { .. })
        ));
    }
}

#[test]
fn an_unset_variable_is_named() {
    let error = parse("env:PGMAHOUT_TEST_NOT_SET").resolve().unwrap_err();
    assert!(error.to_string().contains("PGMAHOUT_TEST_NOT_SET"), "{error}");
    assert!(parse("env:PATH").resolve().is_ok());
}

#[test]
fn a_command_gives_its_output_without_a_shell() {
    let secret = parse(r#"command:printf '%s' "two  words" $HOME;ls"#)
        .resolve()
        .unwrap();
    assert_eq!(secret.expose(), "two  words$HOME;ls");
}

#[test]
fn a_failing_command_is_reported_with_its_last_words() {
    let error = parse("command:ls --no-such-option").resolve().unwrap_err();
    assert!(
        matches!(&error, SecretError::Failed { program, .. } if program == "ls"),
        "{error:?}"
    );
    assert!(error.to_string().contains("--help"), "{error}");
    assert!(matches!(
        parse("command:/does/not/exist").resolve(),
        Err(SecretError::Run { .. })
    ));
    assert!(matches!(
        parse("command:true").resolve(),
        Err(SecretError::Unusable { .. })
    ));
}

#[test]
fn a_hanging_command_is_killed() {
    let started = Instant::now();
    let limit = Duration::from_millis(100);
    let error = resolve::command_within("sleep", &["600".to_owned()], limit).unwrap_err();
    assert!(matches!(error, SecretError::TimedOut { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_mins(5));
}

#[test]
fn words_are_split_at_blanks_outside_quotes() {
    let split = |line| words::split(line).unwrap();
    assert_eq!(
        split(r#"a  'b c'd "e\"f\n" g\ h ''"#),
        ["a", "b cd", "e\"f\\n", "g h", ""]
    );
    assert!(split("   ").is_empty());
    for line in ["'a", "\"a", "a\\", "\"a\\"] {
        assert!(
            matches!(words::split(line), Err(SecretError::UnclosedQuote)),
            "{line}"
        );
    }
}

#[test]
fn a_reference_without_a_target_is_refused() {
    for text in ["file:", "env:", "command:", "command:  "] {
        assert!(
            matches!(SecretReference::parse(text), Err(SecretError::Empty { .. })),
            "{text}"
        );
    }
}

#[test]
fn references_are_read_from_serialised_text() {
    let reference: SecretReference = serde_json::from_str("\"file:/etc/x\"").unwrap();
    assert_eq!(reference, SecretReference::File("/etc/x".into()));
    let secret: Secret = serde_json::from_str("\"hunter2\"").unwrap();
    assert_eq!(secret.expose(), "hunter2");
}
