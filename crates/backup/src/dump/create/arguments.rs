//! The command lines of pg_dump and pg_dumpall. Pure; no secret is ever among them.

use std::ffi::OsString;
use std::path::Path;

use super::super::manifest::{Contents, Format, Options};

/// The arguments of pg_dump. The connection goes by the environment; `directory` is for the directory
/// form, all others write to stdout.
pub(super) fn pg_dump(options: &Options, snapshot: &str, directory: Option<&Path>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--no-password".into()];
    let mut add = |argument: String| arguments.push(argument.into());
    add(format!("--snapshot={snapshot}"));
    match options.format {
        Format::Plain | Format::Unknown => add("--format=plain".to_owned()),
        Format::Custom => {
            add("--format=custom".to_owned());
            add("--compress=0".to_owned());
        }
        Format::Directory => {
            add("--format=directory".to_owned());
            add("--compress=0".to_owned());
            add(format!("--jobs={}", options.jobs.max(1)));
        }
    }
    match options.contents {
        Contents::Schema => add("--schema-only".to_owned()),
        Contents::Data => add("--data-only".to_owned()),
        Contents::Full | Contents::Unknown => {}
    }
    // pg_dump ignores --no-owner in archives; pg_restore gets it instead.
    if !options.owner && options.format == Format::Plain {
        add("--no-owner".to_owned());
    }
    if !options.acl {
        add("--no-acl".to_owned());
    }
    if !options.tables.is_empty() || !options.schemas.is_empty() {
        // A misspelt table must not be missing from the dump in silence.
        add("--strict-names".to_owned());
    }
    for (option, patterns) in [
        ("--table", &options.tables),
        ("--schema", &options.schemas),
        ("--exclude-table", &options.exclude_tables),
        ("--exclude-schema", &options.exclude_schemas),
        ("--exclude-table-data", &options.exclude_table_data),
    ] {
        for pattern in patterns {
            add(format!("{option}={pattern}"));
        }
    }
    if let Some(directory) = directory {
        let mut file = OsString::from("--file=");
        file.push(directory);
        arguments.push(file);
    }
    arguments
}

/// The arguments of pg_dumpall for roles and tablespaces. Without the right to read `pg_authid` the roles
/// come without their passwords.
pub(super) fn globals(database: &str, may_read_passwords: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec![
        "--globals-only".into(),
        "--no-password".into(),
        format!("--database={}", literal(database)).into(),
    ];
    if !may_read_passwords {
        arguments.push("--no-role-passwords".into());
    }
    arguments
}

/// A database's name where libpq would take a connection string too (`PQconnectdbParams` with
/// `expand_dbname`): a name that looks like one is written as one.
fn literal(database: &str) -> String {
    if database.contains('=') || database.contains("://") {
        format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
    } else {
        database.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(format: Format) -> Options {
        Options {
            format,
            contents: Contents::Full,
            jobs: 4,
            tables: vec![],
            schemas: vec![],
            exclude_tables: vec![],
            exclude_schemas: vec![],
            exclude_table_data: vec![],
            owner: false,
            acl: false,
        }
    }

    fn text(arguments: Vec<OsString>) -> String {
        arguments
            .into_iter()
            .map(|it| it.into_string().expect("UTF-8"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_default_is_portable_plain_sql() {
        assert_eq!(
            text(pg_dump(&options(Format::Plain), "00000003-1", None)),
            "--no-password --snapshot=00000003-1 --format=plain --no-owner --no-acl"
        );
    }

    #[test]
    fn archives_are_compressed_by_us_and_keep_their_owners_inside() {
        assert_eq!(
            text(pg_dump(&options(Format::Directory), "1", Some(Path::new("/d")))),
            "--no-password --snapshot=1 --format=directory --compress=0 --jobs=4 --no-acl --file=/d"
        );
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_an_error_of_pg_dump() {
        let selected = Options {
            contents: Contents::Data,
            tables: vec!["audit_log".to_owned(), "--evil".to_owned()],
            acl: true,
            owner: true,
            ..options(Format::Plain)
        };
        assert_eq!(
            text(pg_dump(&selected, "1", None)),
            "--no-password --snapshot=1 --format=plain --data-only --strict-names --table=audit_log --table=--evil"
        );
    }

    #[test]
    fn globals_come_without_passwords_where_they_cannot_be_read() {
        assert_eq!(
            text(globals("shop", false)),
            "--globals-only --no-password --database=shop --no-role-passwords"
        );
        assert_eq!(
            text(globals("host=evil'\\", true)),
            r"--globals-only --no-password --database=dbname='host=evil\'\\'"
        );
    }
}
