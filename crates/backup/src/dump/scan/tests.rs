use proptest::prelude::*;

use super::*;

fn metas(text: &str) -> Vec<String> {
    let report = scan(text.as_bytes());
    report
        .sections
        .iter()
        .flat_map(|section| &section.metas)
        .filter(|meta| !meta.permitted)
        .map(|meta| meta.text.clone())
        .collect()
}

fn rewritten(selection: Selection, text: &str) -> String {
    let mut rewriter = Rewriter::new(selection);
    let mut out = rewriter.feed(text.as_bytes()).to_vec();
    out.extend(rewriter.finish().0);
    String::from_utf8(out).unwrap()
}

const DUMP: &str = r#"--
-- PostgreSQL database dump
--

\restrict abcDEF123

-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 18.6

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);

--
-- Name: shop; Type: SCHEMA; Schema: -; Owner: alice
--

CREATE SCHEMA shop;


ALTER SCHEMA shop OWNER TO alice;

--
-- Name: total(bigint); Type: FUNCTION; Schema: shop; Owner: alice
--

CREATE FUNCTION shop.total(n bigint) RETURNS text
    LANGUAGE sql
    AS $_$ SELECT $a$
\! rm
$a$ || '\'; -- it's \connect
$_$;

CREATE FUNCTION shop.atomic(a integer) RETURNS integer
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT CASE WHEN a > 1 THEN 2 ELSE 3 END;
 SELECT (a + 1);
END;

--
-- Name: customers; Type: TABLE; Schema: shop; Owner: alice
--

CREATE TABLE shop.customers (
    id integer,
    note text DEFAULT E'a\'b\\'
);

ALTER TABLE shop.customers OWNER TO alice;

--
-- Data for Name: customers; Type: TABLE DATA; Schema: shop; Owner: alice
--

COPY shop.customers (id, note) FROM stdin;
1	\\connect elsewhere
2	\N
\.


BEGIN;

SELECT pg_catalog.lo_create('5');
COMMIT;

--
-- Name: SCHEMA shop; Type: ACL; Schema: -; Owner: alice
--

GRANT USAGE ON SCHEMA shop TO bob, PUBLIC, "Odd Role";


--
-- PostgreSQL database dump complete
--

\unrestrict abcDEF123

"#;

#[test]
fn a_dump_is_read_with_its_versions_rows_and_needs() {
    let report = scan(DUMP.as_bytes());
    assert_eq!(report.origin, Origin::Dump);
    assert_eq!(report.unfinished, None);
    assert!(report.oddities.is_empty());
    assert_eq!(report.sections.len(), 1);
    let section = &report.sections[0];
    assert!(section.complete);
    assert_eq!(section.after_end, None);
    assert_eq!(
        section.server_version.as_deref(),
        Some("15.18 (Debian 15.18-0+deb12u1)")
    );
    assert_eq!(section.program_version.as_deref(), Some("18.6"));
    assert_eq!(section.encoding.as_deref(), Some("UTF8"));
    assert_eq!(section.tables[&TableName::new("shop", "customers")], 2);
    assert_eq!(section.owners, ["alice".to_owned()].into());
    assert_eq!(section.grantees, ["Odd Role".to_owned(), "bob".to_owned()].into());
    assert_eq!(
        section.schemas.iter().map(String::as_str).collect::<Vec<_>>(),
        ["shop"]
    );
    assert_eq!(section.large_objects, 1);
    assert_eq!(section.transaction_breakers, []);
    assert_eq!(section.metas.len(), 2);
    assert!(section.metas.iter().all(|meta| meta.permitted));
    assert_eq!(report.bytes, DUMP.len() as u64);
    assert_eq!(report.lines, DUMP.lines().count() as u64 + 1);
}

#[test]
fn a_backslash_counts_as_a_command_wherever_psql_would_take_it_for_one() {
    for (text, expected) in [
        ("SELECT 1 \\gexec\n", "\\gexec"),
        ("SELECT 1; \\! rm\n", "\\! rm"),
        ("-- a comment\r\\! rm\n", "\\! rm"),
        ("/* one /* two */ */ \\! rm\n", "\\! rm"),
        ("SELECT 'a\\'; \\! rm\n", "\\! rm"),
        ("SELECT 'it''s'; \\! rm\n", "\\! rm"),
        ("SELECT E'a\\\\'; \\! rm\n", "\\! rm"),
        ("SELECT e'a''b\\''; \\! rm\n", "\\! rm"),
        ("SELECT \"a\\\"; \\! rm\n", "\\! rm"),
        ("SELECT $1 \\! rm\n", "\\! rm"),
        ("SELECT a$b$c \\! rm\n", "\\! rm"),
        ("SELECT $a$ $b$ $a$; \\! rm\n", "\\! rm"),
        ("SELECT $a$ $a$a$; \\! rm\n", "\\! rm"),
        ("SELECT namee'a\\'; \\! rm\n", "\\! rm"),
        ("SELECT U&'\\'; \\! rm\n", "\\! rm"),
        (
            "SET standard_conforming_strings = on;\nSELECT '\\'; \\! rm\n",
            "\\! rm",
        ),
        ("COPY t FROM stdin;\n\\.\n\\! rm\n", "\\! rm"),
        ("COPY t FROM stdin;\n1\n\\.\r\n\\! rm\n", "\\! rm"),
        ("COPY t TO stdout;\n\\! rm\n", "\\! rm"),
        (" \\restrict abc\n", "\\restrict abc"),
        ("\\restrict `rm`\n", "\\restrict `rm`"),
        ("SELECT 1\\; SELECT 2;\n", "\\; SELECT 2;"),
        ("\\!rm", "\\!rm"),
        ("\u{feff}\\! rm\n", "\\! rm"),
    ] {
        assert_eq!(metas(text), [expected], "{text:?}");
    }
}

#[test]
fn a_backslash_in_data_quotes_and_comments_is_no_command() {
    for text in [
        "COPY t FROM stdin;\n\\connect x\n\\.x\n\\. \n\\\n\\.\n",
        "COPY t (a, \"from stdin;\") FROM stdin;\n\\! rm\n\\.\n",
        "copy t from /* really */ stdin ;  \n\\! rm\n\\.\n",
        "SELECT '\\! rm\n\\! rm';\n",
        "SELECT E'\\'\\! rm\n\\! rm';\n",
        "SET standard_conforming_strings = off;\nSELECT '\\'\\! rm';\n",
        "SELECT \"\\! rm\";\n",
        "SELECT $$\n\\! rm\n$a$ $$;\n",
        "SELECT $tag$\n\\! rm\n$ta$g$ $tag$;\n",
        "SELECT $größe$ \\! rm $größe$;\n",
        "-- \\! rm\n",
        "/* ' /* */\n\\! rm\n*/\n",
        "SELECT 1 -- \\! rm\n;\n",
        "SELECT 1--'\n;SELECT '\\! rm';\n",
        "SELECT 4/2, '\\! rm';",
        "SELECT a-1, '\\! rm';",
    ] {
        assert_eq!(metas(text), Vec::<String>::new(), "{text:?}");
    }
}

#[test]
fn rows_of_insert_dumps_are_counted_by_their_groups() {
    let report = scan(
        b"INSERT INTO s.t VALUES (1, '(', (2));\nINSERT INTO s.t (a, b) OVERRIDING SYSTEM VALUE VALUES\n\t(1, 2),\n\t(3, 4);\n\
          INSERT INTO s.empty DEFAULT VALUES;\nINSERT INTO s.empty DEFAULT VALUES;\n",
    );
    let section = &report.sections[0];
    assert_eq!(section.tables[&TableName::new("s", "t")], 3);
    assert_eq!(section.tables[&TableName::new("s", "empty")], 2);
    assert!(section.inserts);
}

#[test]
fn a_long_copy_statement_is_still_seen_as_one() {
    let columns: Vec<String> = (0..1600)
        .map(|n| format!("\"a column, number {n:040}\""))
        .collect();
    let text = format!(
        "COPY s.t ({}) FROM stdin;\n\\! rm\n\\.\n\\! really\n",
        columns.join(", ")
    );
    assert!(text.len() > lexer::HEAD_LENGTH * 2);
    assert_eq!(metas(&text), ["\\! really"]);
    assert_eq!(
        scan(text.as_bytes()).sections[0].tables[&TableName::new("s", "t")],
        1
    );
}

#[test]
fn what_ends_in_the_middle_is_unfinished() {
    for (text, unfinished) in [
        ("SELECT 1", Unfinished::Statement),
        ("SELECT 'a", Unfinished::Quote),
        ("SELECT $a$ $a", Unfinished::Quote),
        ("SELECT \"a", Unfinished::Quote),
        ("/* a", Unfinished::Comment),
        ("COPY t FROM stdin;", Unfinished::Data),
        ("COPY t FROM stdin;\n1\t2", Unfinished::Data),
        ("COPY t FROM stdin;\n1\n\\.", Unfinished::Data),
    ] {
        assert_eq!(scan(text.as_bytes()).unfinished, Some(unfinished), "{text:?}");
    }
    assert_eq!(scan(b"SELECT 1;\n-- a comment").unfinished, None);
}

#[test]
fn the_position_of_a_command_is_its_line() {
    let report = scan(b"SELECT 1;\nCOPY t FROM stdin;\n1\n2\n\\.\n\n\\connect x\n\\! rm\n");
    assert_eq!(report.sections[1].at.line, 7);
    assert_eq!(report.sections[1].metas[0].at, Position { offset: 48, line: 8 });
}

#[test]
fn what_cannot_run_in_our_transaction_is_named() {
    for text in [
        "CREATE DATABASE x;",
        "DROP DATABASE IF EXISTS x;",
        "VACUUM;",
        "ROLLBACK;",
        "COMMIT AND CHAIN;",
        "CREATE INDEX CONCURRENTLY i ON t (a);",
        "ALTER SYSTEM SET a = 1;",
        "PREPARE TRANSACTION 'x';",
        "CREATE TABLESPACE x LOCATION '/';",
        "CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p;",
    ] {
        assert_eq!(
            scan(text.as_bytes()).sections[0].transaction_breakers.len(),
            1,
            "{text}"
        );
    }
    for text in [
        "BEGIN;",
        "COMMIT;",
        "CREATE INDEX i ON t (a);",
        "ROLLBACK TO a;",
        "ALTER TABLE t OWNER TO x;",
    ] {
        assert_eq!(
            scan(text.as_bytes()).sections[0].transaction_breakers.len(),
            0,
            "{text}"
        );
    }
}

#[test]
fn meta_commands_and_inner_transactions_do_not_reach_psql() {
    let selection = Selection {
        one_transaction: true,
        ..Selection::default()
    };
    let text = rewritten(selection, DUMP);
    assert!(!text.contains("restrict"), "{text}");
    assert!(!text.contains("BEGIN;") && !text.contains("COMMIT;"), "{text}");
    assert!(text.contains("BEGIN ATOMIC") && text.contains("lo_create"));
    assert_eq!(
        text.replace(['\n', ' '], ""),
        DUMP.replace("\\restrict abcDEF123", "")
            .replace("\\unrestrict abcDEF123", "")
            .replace("BEGIN;", "")
            .replace("COMMIT;", "")
            .replace(['\n', ' '], ""),
    );
    let kept = rewritten(Selection::default(), DUMP);
    assert!(kept.contains("BEGIN;") && kept.contains("COMMIT;"));
    assert!(!rewritten(Selection::default(), "\u{feff}SELECT 1;").starts_with('\u{feff}'));
}

#[test]
fn owners_are_replaced_or_left_out() {
    let owner_map = [("alice".to_owned(), "Carol \"C\"".to_owned())].into();
    let text = rewritten(
        Selection {
            owner_map,
            ..Selection::default()
        },
        DUMP,
    );
    assert!(
        text.contains("ALTER SCHEMA shop OWNER TO \"Carol \"\"C\"\"\";"),
        "{text}"
    );
    assert!(!text.contains("OWNER TO alice"));
    assert!(text.contains("TO bob, PUBLIC, \"Odd Role\""));
    let owner_map = [("bob".to_owned(), "dave".to_owned())].into();
    let text = rewritten(
        Selection {
            owner_map,
            ..Selection::default()
        },
        DUMP,
    );
    assert!(text.contains("TO \"dave\", PUBLIC, \"Odd Role\";"), "{text}");
    let text = rewritten(
        Selection {
            no_owner: true,
            no_acl: true,
            ..Selection::default()
        },
        DUMP,
    );
    assert!(!text.contains("OWNER TO") && !text.contains("GRANT"), "{text}");
    assert!(text.contains("\\\\connect elsewhere"));
}

#[test]
fn a_selection_keeps_the_settings_and_drops_the_rest() {
    let text = rewritten(
        Selection {
            schema_only: true,
            ..Selection::default()
        },
        DUMP,
    );
    assert!(text.contains("CREATE TABLE shop.customers") && text.contains("SET client_encoding"));
    assert!(!text.contains("COPY") && !text.contains("\\\\connect"));
    let text = rewritten(
        Selection {
            data_only: true,
            ..Selection::default()
        },
        DUMP,
    );
    assert!(!text.contains("CREATE TABLE") && text.contains("COPY shop.customers") && text.contains("\\."));
    let text = rewritten(
        Selection {
            tables: vec![TableName::new("", "customers")],
            ..Selection::default()
        },
        DUMP,
    );
    assert!(
        text.contains("CREATE TABLE shop.customers")
            && text.contains("OWNER TO alice")
            && text.contains("\\\\connect")
    );
    assert!(!text.contains("CREATE FUNCTION") && !text.contains("GRANT"));
    let text = rewritten(
        Selection {
            schemas: ["other".to_owned()].into(),
            ..Selection::default()
        },
        DUMP,
    );
    assert!(!text.contains("CREATE TABLE") && !text.contains("COPY") && text.contains("SET client_encoding"));
}

#[test]
fn one_database_is_cut_out_of_a_stream_of_several() {
    let cluster = format!(
        "--\n-- PostgreSQL database cluster dump\n--\n\\restrict k\nCREATE ROLE a;\n\\unrestrict k\n\\connect one\n{DUMP}\n\
         CREATE DATABASE two;\n\\connect \"two\"\n{}\n--\n-- PostgreSQL database cluster dump complete\n--\n",
        DUMP.replace("shop", "other"),
    );
    let report = scan(cluster.as_bytes());
    assert_eq!(report.origin, Origin::Cluster);
    assert!(report.cluster_complete);
    let databases: Vec<_> = report
        .sections
        .iter()
        .map(|section| section.database.as_deref())
        .collect();
    assert_eq!(databases, [None, Some("one"), Some("two")]);
    assert_eq!(
        report.sections[2].tables[&TableName::new("other", "customers")],
        2
    );
    let text = rewritten(
        Selection {
            section: Some(1),
            ..Selection::default()
        },
        &cluster,
    );
    assert!(text.contains("shop.customers") && !text.contains("other.") && !text.contains("CREATE ROLE"));
    assert!(
        !text.contains("CREATE DATABASE") && !text.contains("\\connect one"),
        "{text}"
    );
    let text = rewritten(
        Selection {
            section: Some(2),
            ..Selection::default()
        },
        &cluster,
    );
    assert!(!text.contains("shop.customers") && text.contains("other.customers"));
}

#[test]
fn masks_run_when_all_rows_are_there_and_nothing_is_built_on_them() {
    let dump = DUMP.replace("BEGIN;\n", "--\n-- Name: t t_pkey; Type: CONSTRAINT; Schema: shop; Owner: alice\n--\n\nALTER TABLE t ADD PRIMARY KEY (id);\n");
    let selection = Selection {
        after_rows: vec!["UPDATE x SET y = 1".to_owned()],
        ..Selection::default()
    };
    let text = rewritten(selection.clone(), &dump);
    let place = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} in {text}"));
    assert!(place("\\.\n") < place("UPDATE x"));
    assert!(place("UPDATE x") < place("ADD PRIMARY KEY"));
    assert_eq!(text.matches("UPDATE x").count(), 1);
    // Without anything built on rows: at the end.
    let text = rewritten(selection.clone(), "COPY t FROM stdin;\n1\n\\.\n");
    assert!(text.ends_with("\\.\n\nUPDATE x SET y = 1;\n"), "{text:?}");
    let mut rewriter = Rewriter::new(selection);
    rewriter.feed(format!("{dump}\nCOPY t FROM stdin;\n1\n\\.\n").as_bytes());
    assert!(rewriter.late_rows());
}

fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("'".to_owned()),
        Just("E'".to_owned()),
        Just("\\".to_owned()),
        Just("\\.\n".to_owned()),
        Just("\n".to_owned()),
        Just("$a$".to_owned()),
        Just("$$".to_owned()),
        Just("$".to_owned()),
        Just("--".to_owned()),
        Just("/*".to_owned()),
        Just("*/".to_owned()),
        Just(";".to_owned()),
        Just("(".to_owned()),
        Just(")".to_owned()),
        Just("\"".to_owned()),
        Just("COPY t FROM stdin;\n".to_owned()),
        Just("BEGIN;".to_owned()),
        Just("COMMIT;\n".to_owned()),
        Just("\r".to_owned()),
        Just("CREATE FUNCTION f() BEGIN ATOMIC ".to_owned()),
        Just(" END".to_owned()),
        Just("\\connect x\n".to_owned()),
        Just("\\restrict abc\n".to_owned()),
        Just("ALTER TABLE t OWNER TO alice;".to_owned()),
        Just(" ".to_owned()),
        Just("SET standard_conforming_strings = off;".to_owned()),
        Just("INSERT INTO t VALUES (1);".to_owned()),
        "[a-zé1]{1,3}",
        Just("-- Name: t; Type: TABLE; Schema: s; Owner: alice\n".to_owned()),
        Just("-- PostgreSQL database dump complete\n".to_owned()),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn in_pieces(bytes: &[u8], cuts: &[usize]) -> ScanReport {
    let mut scan = Scan::new();
    let mut rest = bytes;
    for cut in cuts {
        let (first, other) = rest.split_at((*cut).min(rest.len()));
        scan.feed(first);
        rest = other;
    }
    scan.feed(rest);
    scan.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn it_does_not_matter_how_the_stream_is_cut(text in pieces(), cuts in prop::collection::vec(0usize..5, 0..60)) {
        prop_assert_eq!(scan(text.as_bytes()), in_pieces(text.as_bytes(), &cuts));
        let selection = Selection { one_transaction: true, owner_map: [("alice".to_owned(), "bob".to_owned())].into(), ..Selection::default() };
        let whole = rewritten(selection.clone(), &text);
        let mut rewriter = Rewriter::new(selection);
        let mut out = Vec::new();
        let mut rest = text.as_bytes();
        for cut in cuts {
            let (first, other) = rest.split_at(cut.min(rest.len()));
            out.extend_from_slice(rewriter.feed(first));
            rest = other;
        }
        out.extend_from_slice(rewriter.feed(rest));
        let (end, report) = rewriter.finish();
        out.extend(end);
        prop_assert_eq!(whole.as_bytes(), out.as_slice());
        prop_assert_eq!(report, scan(text.as_bytes()));
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_are_accounted_for(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let report = scan(&bytes);
        prop_assert_eq!(report.bytes, bytes.len() as u64);
        prop_assert_eq!(report.oddities.iter().any(|(oddity, _)| *oddity == Oddity::Nul), bytes.contains(&0));
        let selection = Selection { tables: vec![TableName::new("", "t")], no_owner: true, one_transaction: true, ..Selection::default() };
        let mut rewriter = Rewriter::new(selection);
        rewriter.feed(&bytes);
        rewriter.finish();
    }

    #[test]
    fn what_is_rewritten_holds_no_meta_command(text in pieces()) {
        let out = rewritten(Selection { one_transaction: true, ..Selection::default() }, &text);
        let report = scan(out.as_bytes());
        // Without the commands' lines, what follows is read as before.
        prop_assert!(report.sections.len() == 1 && report.sections[0].metas.is_empty(), "{:?} became {:?}", text, out);
    }
}

#[test]
fn roles_of_user_mappings_are_needed() {
    let mut text = DUMP.to_owned();
    text.insert_str(
        text.find("--\n-- PostgreSQL database dump complete")
            .expect("the mark"),
        "CREATE USER MAPPING FOR app_owner SERVER elsewhere OPTIONS (\n    \"user\" 'x'\n);\n\
         CREATE USER MAPPING FOR PUBLIC SERVER elsewhere;\n\
         CREATE USER MAPPING IF NOT EXISTS FOR \"Odd One\" SERVER elsewhere;\n",
    );
    let report = scan(text.as_bytes());
    let section = &report.sections[0];
    assert_eq!(
        section.mapped,
        ["Odd One".to_owned(), "app_owner".to_owned()].into()
    );
    assert!(section.roles_created.is_empty(), "{:?}", section.roles_created);
}
