//! What a check is.

use async_trait::async_trait;

use super::context::Context;
use super::failure::Failure;
use super::limits::Limit;
use super::result::Finding;

/// What a check answers about one target.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// It looked. Usually one finding; a check that covers several named things may give one for each.
    Findings(Vec<Finding>),
    /// It has nothing to say here, and why: no standby is expected, no pooler is configured. Left out of
    /// the counts.
    NotApplicable(String),
}

impl Verdict {
    /// There is nothing to look at.
    pub fn not_applicable(reason: impl Into<String>) -> Self {
        Self::NotApplicable(reason.into())
    }
}

impl From<Finding> for Verdict {
    fn from(finding: Finding) -> Self {
        Self::Findings(vec![finding])
    }
}

/// One question about a target.
#[async_trait]
pub trait Check: Send + Sync {
    /// Its name, for example `connections.used`: a family, a dot, the thing measured.
    fn id(&self) -> &str;

    /// What it measures, in a few words, lower case.
    fn title(&self) -> &str;

    /// Its thresholds with their defaults; the first bears the check's own id where there is one.
    fn limits(&self) -> &[Limit] {
        &[]
    }

    /// The statement that gives a role the right to see what this check reads, with `{role}` for the role.
    fn grant(&self) -> &str {
        "GRANT pg_monitor TO {role}"
    }

    /// Whether it can run without a session on the server (the host, a pooler, a repository). Checks that
    /// need the server are left out when the server cannot be reached.
    fn needs_server(&self) -> bool {
        true
    }

    /// Whether the check only runs where it was asked for by name.
    fn only_when_asked(&self) -> bool {
        false
    }

    /// Looks.
    ///
    /// # Errors
    ///
    /// [`Failure`] where it could not see; the runner makes it UNKNOWN.
    async fn run(&self, context: &Context) -> Result<Verdict, Failure>;
}
