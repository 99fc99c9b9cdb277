//! The checks before a dump. All problems are found before any is reported.

use jiff::Timestamp;
use pgmahout_durable::remove_stale_temporaries;
use pgmahout_postgres::connection::{ConnectError, ConnectErrorKind, Connection};
use pgmahout_store::codec::Codec;
use pgmahout_types::Bytes;
use pgmahout_types::diagnostic::Outcome;

use super::super::error::{DumpError, Problem};
use super::super::location::Place;
use super::super::manifest::{Contents, DumpManifest, Format, SkippedDatabase};
use super::super::restore::fresh::{PREFIX as TEMPORARY_PREFIX, REPLACED_PREFIX};
use super::programs::Programs;
use super::request::{CreateRequest, Scope};

/// Temporaries of ours that nobody holds open and that are older than this are swept up: long enough for a
/// process that just made one to lock it.
const STALE_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

/// How different a database's name may be from the one that was asked for and still be suggested.
const MOST_EDITS: usize = 3;

/// An empty database has so many bytes of catalogs, which are in no dump.
const CATALOGS: u64 = 8 * 1024 * 1024;

/// What the checks found to work with.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) connection: Connection,
    pub(super) programs: Programs,
}

/// Checks that what is asked for makes sense, before anything is tried.
pub(super) fn validate(request: &CreateRequest) -> Result<(), DumpError> {
    let usage = |what: &str, hint: &str| {
        Err(DumpError::Usage {
            what: what.to_owned(),
            hint: hint.to_owned(),
        })
    };
    let options = &request.options;
    if options.jobs > 1 && options.format != Format::Directory {
        return usage(
            "only the directory form can be dumped by several workers",
            "add --format directory, or leave --jobs out",
        );
    }
    if request.scope != Scope::Database && request.globals {
        return usage(
            "--globals is for a single database",
            "leave it out: --all-databases has the globals in any case",
        );
    }
    if matches!(request.scope, Scope::Set(_))
        && (options.contents != Contents::Full || !options.tables.is_empty())
    {
        return usage(
            "--set says itself what each member holds",
            "leave out --schema-only, --data-only and --table",
        );
    }
    if options.contents == Contents::Schema && !options.exclude_table_data.is_empty() {
        return usage(
            "a dump without rows cannot leave out the rows of some tables",
            "leave out --schema-only or --exclude-table-data",
        );
    }
    Ok(())
}

/// Looks at the server, the place and the programs. `names` are the files that will be made, as far as they
/// are known before the server was asked.
pub(super) async fn check(request: &CreateRequest, names: &[String]) -> Result<Ready, DumpError> {
    let mut problems = place_problems(request, names).await;
    let connection = match Connection::open_secured(&request.connection).await {
        Ok(connection) => Some(connection),
        Err(error) => {
            problems.push(explain(request, &error).await);
            None
        }
    };
    let version = connection.as_ref().map(Connection::server_version);
    let programs = Programs::find(request.bin_dir.as_deref(), version);
    match (connection, programs) {
        (Some(connection), Ok(programs)) if problems.is_empty() => Ok(Ready { connection, programs }),
        (_, Err(missing)) => {
            problems.extend(missing);
            Err(DumpError::Preflight { problems })
        }
        _ => Err(DumpError::Preflight { problems }),
    }
}

/// Removes what killed runs left: it takes space and helps nobody. Whether that works is of no consequence.
pub(super) fn sweep(place: &Place) {
    if let Some(directory) = place.directory() {
        let _ = remove_stale_temporaries(directory, STALE_AFTER);
    }
}

async fn place_problems(request: &CreateRequest, names: &[String]) -> Vec<Problem> {
    let mut problems = Vec::new();
    sweep(&request.place);
    for name in names {
        problems.extend(taken(&request.place, name, request.force).await);
    }
    // The only way to know whether a file can be made is to make one.
    let probe = names.first().map_or("probe", String::as_str);
    if let Err(error) = request.place.probe(probe).await {
        problems.push(Problem::of(&error));
    }
    problems
}

/// The problem that a file, or its manifest, is there already.
pub(super) async fn taken(place: &Place, name: &str, force: bool) -> Option<Problem> {
    if force {
        return None;
    }
    for file in [name.to_owned(), DumpManifest::name_for(name)] {
        if let Ok(Some(_)) = place.find(&file).await {
            return Some(Problem {
                what: format!("{} exists already", place.describe_file(&file)),
                hint: "choose another name, or overwrite it with --force".to_owned(),
                outcome: Outcome::Refused,
            });
        }
    }
    None
}

/// The problem that the server cannot be reached; for a database that does not exist, with the nearest
/// names of those that do.
async fn explain(request: &CreateRequest, error: &ConnectError) -> Problem {
    let mut problem = Problem::of(error);
    if error.kind() != ConnectErrorKind::DatabaseMissing {
        return problem;
    }
    let wanted = &request.connection.database;
    for database in ["postgres", "template1"] {
        let Ok(connection) = Connection::open_secured(&request.connection.with_database(database)).await
        else {
            continue;
        };
        let rows = connection
            .query(
                "SELECT datname::text FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate",
                &[],
            )
            .await;
        let Ok(rows) = rows else { continue };
        let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        problem.what = format!(
            "database \"{wanted}\" does not exist on {}",
            connection.parameters().hosts[0]
        );
        problem.hint = suggest(wanted, names);
        break;
    }
    problem
}

/// The databases whose names are near, or all of them.
fn suggest(wanted: &str, mut names: Vec<String>) -> String {
    let distance = |name: &String| strsim::damerau_levenshtein(&name.to_lowercase(), &wanted.to_lowercase());
    names.sort_by_key(|name| (distance(name), name.clone()));
    let near: Vec<String> = names
        .iter()
        .filter(|name| {
            distance(name) <= MOST_EDITS.min(wanted.chars().count() / 2)
                || name.to_lowercase().contains(&wanted.to_lowercase())
        })
        .take(3)
        .map(|name| format!("\"{name}\""))
        .collect();
    if near.is_empty() {
        let all: Vec<String> = names.iter().take(10).map(|name| format!("\"{name}\"")).collect();
        format!("the server has {}", all.join(", "))
    } else {
        format!("did you mean {}?", near.join(" or "))
    }
}

/// The problem that there is not enough space, by estimate.
pub(super) fn space(
    request: &CreateRequest,
    database_bytes: u64,
    previous: Option<&DumpManifest>,
) -> Option<Problem> {
    let directory = request.place.directory()?;
    if request.skip_space_check {
        return None;
    }
    let needed = estimate(request, database_bytes, previous);
    // What cannot be asked cannot be a problem.
    let statistics = rustix::fs::statvfs(directory).ok()?;
    let free = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    (free < needed).then(|| Problem {
        what: format!(
            "{} has {} free, and the dump needs about {} by estimate",
            directory.display(),
            Bytes::new(free),
            Bytes::new(needed)
        ),
        hint: "free some space, choose another directory, compress more (--compress zstd:9), or try it with \
               --skip-space-check"
            .to_owned(),
        outcome: Outcome::Failed,
    })
}

/// How many bytes the dump will take: in proportion to the last one like it where there is one, otherwise a
/// usual share of the database's size, which counts indexes and free space too.
fn estimate(request: &CreateRequest, database_bytes: u64, previous: Option<&DumpManifest>) -> u64 {
    let options = &request.options;
    if options.contents == Contents::Schema || !options.is_whole_database() {
        // Anything between nothing and all; not worth stopping for.
        return 1024 * 1024;
    }
    let temporary = if options.format == Format::Directory {
        0.6
    } else {
        0.0
    };
    let previous = previous.filter(|previous| {
        previous.compression == request.codec.to_string() && previous.database.size_bytes > 0
    });
    let share = match (previous, request.codec) {
        (Some(previous), _) => 1.1 * previous.stored.bytes as f64 / previous.database.size_bytes as f64,
        (None, Codec::None) => 0.6,
        (None, Codec::Lz4) => 0.25,
        (None, _) => 0.12,
    };
    (database_bytes.saturating_sub(CATALOGS) as f64 * (share + temporary)) as u64 + 64 * 1024
}

/// The databases of a server, for `--all-databases`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Databases {
    /// Those to dump, by name.
    pub(super) dumped: Vec<String>,
    /// Those that are not dumped though they are no templates.
    pub(super) skipped: Vec<SkippedDatabase>,
}

/// Lists the databases of a server, and says which cannot or need not be dumped.
pub(super) async fn databases(connection: &Connection) -> Result<Databases, DumpError> {
    let rows = connection
        .query(
            "SELECT datname::text, datallowconn FROM pg_catalog.pg_database \
             WHERE NOT datistemplate ORDER BY datname",
            &[],
        )
        .await
        .map_err(|source| DumpError::Sql {
            doing: "list the databases",
            source,
        })?;
    Ok(divide(rows.iter().map(|row| (row.get(0), row.get(1)))))
}

fn divide(databases: impl Iterator<Item = (String, bool)>) -> Databases {
    let mut divided = Databases {
        dumped: Vec::new(),
        skipped: Vec::new(),
    };
    for (name, allows_connections) in databases {
        let why = if name.starts_with(TEMPORARY_PREFIX) || name.starts_with(REPLACED_PREFIX) {
            "an interrupted restore of pgmahout left it: look at it, then drop it"
        } else if allows_connections {
            divided.dumped.push(name);
            continue;
        } else {
            "it does not allow connections: ALTER DATABASE .. ALLOW_CONNECTIONS true would"
        };
        divided.skipped.push(SkippedDatabase {
            name,
            why: why.to_owned(),
        });
    }
    divided
}

/// When a snapshot is from the future, clocks differ; retention would be confused.
pub(super) fn clock_warning(now: Timestamp, server: Timestamp) -> Option<String> {
    let seconds = now.as_second().abs_diff(server.as_second());
    (seconds > 300).then(|| {
        format!("the clocks of this host and of the server differ by {seconds} s: file names and ages follow this host's")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_else_all() {
        let names = || {
            ["shop", "shop_test", "billing", "postgres"]
                .map(str::to_owned)
                .to_vec()
        };
        assert_eq!(suggest("shpo", names()), "did you mean \"shop\"?");
        assert_eq!(
            suggest("SHOP", names()),
            "did you mean \"shop\" or \"shop_test\"?"
        );
        assert_eq!(
            suggest("zzzzzzz", names()),
            "the server has \"billing\", \"shop\", \"postgres\", \"shop_test\""
        );
    }

    #[test]
    fn what_is_not_dumped_is_named() {
        let divided = divide(
            [
                ("closed", false),
                ("pgmahout_old_0123456789ab", true),
                ("pgmahout_restore_0123456789ab", false),
                ("shop", true),
            ]
            .map(|(name, allows)| (name.to_owned(), allows))
            .into_iter(),
        );
        assert_eq!(divided.dumped, ["shop"]);
        let skipped: Vec<(&str, bool)> = divided
            .skipped
            .iter()
            .map(|it| (it.name.as_str(), it.why.contains("interrupted restore")))
            .collect();
        assert_eq!(
            skipped,
            [
                ("closed", false),
                ("pgmahout_old_0123456789ab", true),
                ("pgmahout_restore_0123456789ab", true)
            ]
        );
    }

    #[test]
    fn a_clock_that_differs_much_is_worth_a_warning() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a timestamp");
        assert_eq!(
            clock_warning(now, "2026-11-21T12:04:00Z".parse().expect("a timestamp")),
            None
        );
        assert!(clock_warning(now, "2026-11-21T11:00:00Z".parse().expect("a timestamp")).is_some());
    }
}
