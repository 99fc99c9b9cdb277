//! What to do about the messages that restores end with.

/// The hint for a message of the server or of a client program, if there is one. The programs run with
/// `LC_ALL=C`; a server that speaks another language gets no hint from here.
pub(crate) fn for_message(message: &str, database: Option<&str>) -> Option<String> {
    let database = database.unwrap_or("DATABASE");
    let quoted = || message.split('"').nth(1).map(str::to_owned);
    let has = |text: &str| message.contains(text);
    Some(if has("role \"") && has("does not exist") {
        let role = quoted().unwrap_or_default();
        format!(
            "create the role first (createuser {role}), give its objects to another one (--owner-map {role}=NAME), or leave ownership and rights out (--no-owner --no-acl)"
        )
    } else if has("extension \"") && (has("is not available") || has("could not open extension control file"))
    {
        format!(
            "install the extension \"{}\" on the server (a package such as postgresql-MAJOR-NAME), then restore again",
            quoted().unwrap_or_default()
        )
    } else if has("extension \"") && has("already exists") {
        format!(
            "the target already has the extension: restore into an empty database with --into NEW, replace the target with --clean, or drop it there: DROP EXTENSION \"{}\" CASCADE",
            quoted().unwrap_or_default()
        )
    } else if has("already exists") {
        "the target already holds objects of the dump: restore into a new database with --into NEW, or replace the target with --clean".to_owned()
    } else if has("permission denied")
        || has("must be owner")
        || has("must be superuser")
        || has("must be able to SET ROLE")
        || has("must be member of role")
    {
        format!(
            "the role lacks rights: restore as a superuser or as the owner (-U), or GRANT ALL ON DATABASE \"{database}\" TO it; --no-owner --no-acl leaves ownership and rights out"
        )
    } else if has("No space left on device") || has("could not extend file") {
        "the server's disk is full: free space or choose another tablespace, then restore again; the target is as it was".to_owned()
    } else if has("unsupported version") && has("in file header") {
        "the dump was made by a newer pg_dump: install client programs of that version or newer (postgresql-client-MAJOR), or name them with --bin-dir".to_owned()
    } else if has("unrecognized configuration parameter") {
        "the dump comes from a newer PostgreSQL than the target: restore into a server of that version or newer".to_owned()
    } else if has("invalid command \\restrict") || has("invalid command \\unrestrict") {
        "this psql is older than the August 2025 releases: update the client programs".to_owned()
    } else if has("terminating connection")
        || has("server closed the connection")
        || has("connection to server was lost")
        || has("could not connect")
    {
        "the server went away; look at its log, then restore again: the target is as it was".to_owned()
    } else if has("password authentication failed") {
        "give the right password: PGPASSWORD, ~/.pgpass, or --dsn".to_owned()
    } else if (has("database \"") && has("does not exist")) || has("schema \"") && has("does not exist") {
        format!("create it first: createdb {}", quoted().unwrap_or_default())
    } else if has("relation \"") && has("does not exist") {
        "the dump, or the selected part of it, needs a table that is neither in it nor in the target: restore without --table, or into a database that has it".to_owned()
    } else if has("is being accessed by other users") {
        "end the other sessions, or use --clean, which does".to_owned()
    } else if has("violates foreign key constraint") {
        "rows refer to rows that the target lacks: with --data-only restore all tables that refer to each other, into empty ones".to_owned()
    } else if has("duplicate key value") {
        "the target already holds these rows: restore into empty tables, into a new database (--into NEW), or replace the target (--clean)".to_owned()
    } else if has("invalid locale name") || has("locale") && has("not available") {
        "the locale is not installed on the server: install it (locale-gen), or create the database by hand with another one and restore into it".to_owned()
    } else {
        return None;
    })
}

/// The hint for what a program wrote to stderr: a full disk explains everything else.
pub(crate) fn for_lines(lines: &[String], database: Option<&str>) -> Option<String> {
    let full = lines.iter().find(|line| line.contains("No space left on device"));
    full.into_iter()
        .chain(lines)
        .find_map(|line| for_message(line, database))
}

#[cfg(test)]
mod tests {
    use super::{for_lines, for_message};

    #[test]
    fn a_full_disk_explains_a_lost_server() {
        let lines = [
            "server closed the connection unexpectedly",
            "PANIC:  could not write: No space left on device",
        ];
        let lines = lines.map(str::to_owned);
        assert!(for_lines(&lines, None).unwrap().contains("disk is full"));
        assert!(for_lines(&lines[..1], None).unwrap().contains("went away"));
    }

    #[test]
    fn the_messages_of_the_troubleshooting_pages_have_hints() {
        for (message, word) in [
            (
                "psql:<stdin>:5: ERROR:  role \"alice\" does not exist",
                "--owner-map alice=",
            ),
            ("ERROR:  extension \"postgis\" is not available", "postgis"),
            (
                "ERROR:  extension \"postgis\" already exists",
                "DROP EXTENSION \"postgis\" CASCADE",
            ),
            ("ERROR:  relation \"t\" already exists", "--clean"),
            (
                "ERROR:  permission denied for schema public",
                "GRANT ALL ON DATABASE",
            ),
            (
                "ERROR:  could not extend file \"base/1/2\": No space left on device",
                "disk is full",
            ),
            (
                "pg_restore: error: unsupported version (1.16) in file header",
                "postgresql-client",
            ),
            (
                "FATAL:  terminating connection due to administrator command",
                "went away",
            ),
        ] {
            assert!(for_message(message, None).unwrap().contains(word), "{message}");
        }
        assert_eq!(for_message("ERROR:  something else", None), None);
    }
}
