//! The role that pgmahout monitors as: the least that `health` needs.
//!
//! `pg_monitor` shows statistics and activity of all sessions, `pg_read_all_settings` the settings that
//! only superusers see (PostgreSQL documentation, "Predefined Roles"). Neither reads a row of anybody's
//! table, and sequences' last values stay hidden until they are granted; the plan says so.

use std::fmt::Write as _;

use pgmahout_config::Secret;
use pgmahout_postgres::connection::Connection;
use pgmahout_types::diagnostic::{Diagnose, Outcome};
use thiserror::Error;

/// What is to be made.
#[derive(Debug)]
pub struct MonitorRole {
    /// The role's name.
    pub name: String,
    /// Its password; `None` for authentication by peer, certificate or trust.
    pub password: Option<Secret>,
}

/// Why the role could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RoleError {
    /// The server is a standby.
    #[error("the server is a standby, and roles are made on the primary")]
    Standby,
    /// A role of this name exists and could do more than a monitoring role should.
    #[error("role \"{name}\" exists already and is {what}")]
    TooPowerful {
        /// The role.
        name: String,
        /// What it may.
        what: String,
    },
    /// The connecting role may not create roles.
    #[error("role \"{user}\" may not create roles or grant pg_monitor")]
    NotPermitted {
        /// Who we are connected as.
        user: String,
        /// The server's answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Another failure of the server's.
    #[error("cannot {action}")]
    Server {
        /// What was being done.
        action: &'static str,
        /// The server's answer.
        #[source]
        source: tokio_postgres::Error,
    },
}

impl Diagnose for RoleError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Standby => "connect to the primary, for example with target_session_attrs=primary".into(),
            Self::TooPowerful { .. } => "choose another name: pgmahout role create-monitor NAME".into(),
            Self::NotPermitted { .. } => {
                "connect as a superuser (-U postgres), or give the script to one: pgmahout role create-monitor --print".into()
            }
            Self::Server { .. } => "see what would be run: pgmahout role create-monitor --print".into(),
        })
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Standby | Self::TooPowerful { .. } => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }
}

/// The password's SCRAM-SHA-256 verifier (RFC 5803), the only form in which it goes to the server.
pub fn verifier(password: &Secret) -> String {
    postgres_protocol::password::scram_sha_256(password.expose().as_bytes())
}

impl MonitorRole {
    /// The statements, in order. A password appears as its verifier, or as a placeholder when `show` is
    /// set for a script that people read.
    pub fn statements(&self, databases: &[String], exists: bool, show: bool) -> Vec<String> {
        let role = quote_identifier(&self.name);
        let mut statements = Vec::new();
        if !exists {
            statements.push(format!(
                "CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 10"
            ));
        }
        match (&self.password, show) {
            (Some(_), true) => statements.push(format!("ALTER ROLE {role} PASSWORD '<SCRAM verifier>'")),
            (Some(password), false) => {
                statements.push(format!("ALTER ROLE {role} PASSWORD '{}'", verifier(password)));
            }
            (None, _) => {}
        }
        statements.push(format!("GRANT pg_monitor, pg_read_all_settings TO {role}"));
        for database in databases {
            statements.push(format!(
                "GRANT CONNECT ON DATABASE {} TO {role}",
                quote_identifier(database)
            ));
        }
        // In the database connected to: before 16 pg_monitor may not ask where the log is.
        statements.push(format!(
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_current_logfile() TO {role}"
        ));
        for (name, value) in [
            ("default_transaction_read_only", "on"),
            ("statement_timeout", "'30s'"),
            ("lock_timeout", "'2s'"),
            ("idle_in_transaction_session_timeout", "'60s'"),
        ] {
            statements.push(format!("ALTER ROLE {role} SET {name} = {value}"));
        }
        statements
    }

    /// The statements as a script for psql.
    pub fn script(&self, databases: &[String], exists: bool) -> String {
        let mut script = String::from(
            "-- Makes the role that pgmahout monitors as. Run as a superuser on the primary.\nBEGIN;\n",
        );
        for statement in self.statements(databases, exists, true) {
            let _ = writeln!(script, "{statement};");
        }
        script.push_str("COMMIT;\n");
        if self.password.is_none() {
            let _ = writeln!(
                script,
                "-- No password: set one with \\password {}, or let it in by peer or certificate in pg_hba.conf.",
                self.name
            );
        }
        script
    }

    /// Whether a role of the name exists already.
    ///
    /// # Errors
    ///
    /// When the server is a standby, or the role is there and could do more than a monitoring role should.
    pub async fn exists(&self, connection: &Connection) -> Result<bool, RoleError> {
        let server = |action| move |source| RoleError::Server { action, source };
        let standby: bool = connection
            .query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])
            .await
            .map_err(server("ask for the server's role"))?
            .get(0);
        if standby {
            return Err(RoleError::Standby);
        }
        let existing = connection
            .query_opt(
                "SELECT rolsuper, rolcreaterole, rolreplication FROM pg_catalog.pg_roles WHERE rolname = $1",
                &[&self.name],
            )
            .await
            .map_err(server("look for the role"))?;
        let Some(row) = existing else { return Ok(false) };
        let powers: Vec<&str> = ["a superuser", "allowed to create roles", "allowed to replicate"]
            .into_iter()
            .enumerate()
            .filter(|(column, _)| row.get::<_, bool>(*column))
            .map(|(_, what)| what)
            .collect();
        if powers.is_empty() {
            return Ok(true);
        }
        Err(RoleError::TooPowerful {
            name: self.name.clone(),
            what: powers.join(" and "),
        })
    }

    /// Makes the role, or brings an existing one up to date, in one transaction.
    ///
    /// # Errors
    ///
    /// When the server is a standby, the role exists and is too powerful, or the server refuses.
    pub async fn create(&self, connection: &mut Connection) -> Result<Made, RoleError> {
        let server = |action| move |source| RoleError::Server { action, source };
        let existed = self.exists(connection).await?;
        let databases = databases(connection).await?;
        let user = connection.parameters().user.clone();
        let statements = self.statements(&databases, existed, false);
        let transaction = connection
            .transaction()
            .await
            .map_err(server("begin a transaction"))?;
        // The verifier is no secret worth much, but a password's text never appears: nothing to hide in logs.
        for statement in &statements {
            transaction.batch_execute(statement).await.map_err(|source| {
                if source.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) {
                    RoleError::NotPermitted {
                        user: user.clone(),
                        source,
                    }
                } else {
                    RoleError::Server {
                        action: "create the monitoring role",
                        source,
                    }
                }
            })?;
        }
        transaction
            .commit()
            .await
            .map_err(server("commit the monitoring role"))?;
        Ok(Made { existed, databases })
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Whether the role was there before.
    pub existed: bool,
    /// The databases that it may connect to.
    pub databases: Vec<String>,
}

/// The databases that accept connections.
///
/// # Errors
///
/// When the server does not answer.
pub async fn databases(connection: &Connection) -> Result<Vec<String>, RoleError> {
    Ok(connection
        .query(
            "SELECT datname::text FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1",
            &[],
        )
        .await
        .map_err(|source| RoleError::Server { action: "list the databases", source })?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(password: Option<&str>) -> MonitorRole {
        MonitorRole {
            name: "od\"d".into(),
            password: password.map(|text| Secret::new(text.to_owned())),
        }
    }

    #[test]
    fn the_password_never_appears_in_a_statement() {
        let role = role(Some("hunter2hunter2"));
        for show in [true, false] {
            let text = role.statements(&["shop".into()], false, show).join("\n");
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert!(
            role.statements(&[], false, false)
                .join("\n")
                .contains("SCRAM-SHA-256$")
        );
    }

    #[test]
    fn names_are_quoted() {
        let text = role(None).script(&["my \"db\"".into()], false);
        assert!(text.contains("CREATE ROLE \"od\"\"d\""), "{text}");
        assert!(text.contains("ON DATABASE \"my \"\"db\"\"\""), "{text}");
    }
}
