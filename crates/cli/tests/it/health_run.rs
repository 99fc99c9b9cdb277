//! Runs `pgmahout health` as an operator would, and reads its JSON.

use std::time::Duration;

use pgmahout_testkit::poll;
use pgmahout_testkit::postgres::Postgres;
use pgmahout_testkit::proc::{Finished, Pgmahout};
use serde_json::Value;

/// How long a fault may take to show.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// An operator who looks at one or more servers, and whose state directory is kept between looks.
pub(crate) struct Operator {
    connection: Vec<String>,
    state: tempfile::TempDir,
}

/// The JSON of one run, and its exit status.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) json: Value,
    pub(crate) exit_status: Option<i32>,
}

/// One result.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) Value);

impl Operator {
    /// Looks as the superuser.
    pub(crate) fn of(server: &Postgres) -> Self {
        Self::with_dsn(&server.dsn("postgres"))
    }

    /// Looks as this role, without a password.
    pub(crate) fn with_role(server: &Postgres, role: &str) -> Self {
        Self::with_dsn(&server.dsn_as(role, None, "postgres"))
    }

    /// Looks at what this connection string names.
    pub(crate) fn with_dsn(dsn: &str) -> Self {
        Self {
            connection: vec!["--dsn".to_owned(), dsn.to_owned()],
            state: tempfile::tempdir().expect("a directory for the state"),
        }
    }

    /// Looks at a primary and its standby in one run.
    pub(crate) fn of_both(one: &Postgres, other: &Postgres) -> Self {
        Self::with_dsn(&format!(
            "postgresql://postgres@{}:{},{}:{}/postgres",
            one.host(),
            one.port(),
            other.host(),
            other.port()
        ))
    }

    /// A command line of `health`.
    pub(crate) fn command(&self, arguments: &[&str]) -> Pgmahout {
        Pgmahout::command(env!("CARGO_BIN_EXE_pgmahout"))
            .env("PGMAHOUT_STATE_DIR", self.state.path())
            .arg("health")
            .args(&self.connection)
            .args(arguments)
    }

    /// Runs it in whatever form.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Finished {
        self.command(arguments).run().await
    }

    /// Runs it for its JSON.
    pub(crate) async fn look(&self, arguments: &[&str]) -> Look {
        let finished = self.run(&[arguments, &["--json"]].concat()).await;
        let json = serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", finished.stdout, finished.stderr));
        Look {
            json,
            exit_status: finished.status,
        }
    }

    /// Runs one check.
    pub(crate) async fn check(&self, id: &str, more: &[&str]) -> Answer {
        self.look(&[&["--only", id], more].concat()).await.answer(id)
    }

    /// Runs one check again and again until it has this status.
    pub(crate) async fn wait_for(&self, id: &str, more: &[&str], status: &str) -> Answer {
        poll::value(PATIENCE, &format!("{id} to be {status}"), async || {
            let answer = self.check(id, more).await;
            (answer.status() == status).then_some(answer)
        })
        .await
    }
}

impl Look {
    /// The one result of this id.
    pub(crate) fn answer(&self, id: &str) -> Answer {
        let found: Vec<&Value> = self.results().filter(|result| result["id"] == id).collect();
        assert_eq!(found.len(), 1, "{id} in {}", self.json);
        Answer(found[0].clone())
    }

    /// The result of this id on the server that listens on this port.
    pub(crate) fn answer_of(&self, id: &str, server: &Postgres) -> Answer {
        let target = format!("{}:{}", server.host(), server.port());
        let found: Vec<&Value> = self
            .results()
            .filter(|result| result["id"] == id && result["target"] == *target)
            .collect();
        assert_eq!(found.len(), 1, "{id} of {target} in {}", self.json);
        Answer(found[0].clone())
    }

    /// All results.
    pub(crate) fn results(&self) -> impl Iterator<Item = &Value> {
        self.json["results"].as_array().expect("a list").iter()
    }

    /// The ids of the results with this status.
    pub(crate) fn ids(&self, status: &str) -> Vec<&str> {
        self.results()
            .filter(|result| result["status"] == status)
            .map(|result| result["id"].as_str().expect("an id"))
            .collect()
    }

    /// Why a check did not apply.
    pub(crate) fn skipped(&self, id: &str) -> &str {
        self.json["skipped"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|skipped| skipped["id"] == id)
            .unwrap_or_else(|| panic!("{id} was not skipped: {}", self.json))["reason"]
            .as_str()
            .expect("a reason")
    }
}

impl Answer {
    pub(crate) fn status(&self) -> &str {
        self.text("status")
    }

    pub(crate) fn evidence(&self) -> &str {
        self.text("evidence")
    }

    pub(crate) fn text(&self, field: &str) -> &str {
        self.0[field]
            .as_str()
            .unwrap_or_else(|| panic!("no {field} in {}", self.0))
    }

    pub(crate) fn value(&self) -> f64 {
        self.0["measure"]["value"]
            .as_f64()
            .unwrap_or_else(|| panic!("no value in {}", self.0))
    }

    /// This status, with these words in evidence and hint.
    #[track_caller]
    pub(crate) fn is(&self, status: &str, evidence: &str, hint: &str) -> &Self {
        assert_eq!(self.status(), status, "{}", self.0);
        assert!(
            self.evidence().contains(evidence),
            "no `{evidence}` in {}",
            self.0
        );
        assert!(self.text("hint").contains(hint), "no `{hint}` in {}", self.0);
        self
    }

    /// These words somewhere in the rows.
    #[track_caller]
    pub(crate) fn shows(&self, words: &str) -> &Self {
        assert!(
            self.0["rows"].to_string().contains(words),
            "no `{words}` in {}",
            self.0
        );
        self
    }

    /// OK, with nothing to do.
    #[track_caller]
    pub(crate) fn is_ok(&self) -> &Self {
        assert_eq!(self.status(), "OK", "{}", self.0);
        assert!(self.0["hint"].is_null(), "a good result has a hint: {}", self.0);
        self
    }
}
