//! Patroni's own sections: accepted as they are, with a warning for keys that Patroni does not know.
//!
//! The sections and keys are those of Patroni's documentation ("YAML Configuration Settings", "Dynamic
//! Configuration Settings" and "Environment Configuration Settings", version 4).

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::node::{Content, Node};
use crate::problem::{Origin, Problem};
use crate::secret::SecretReference;
use crate::section::Problems;

/// Patroni's sections, as PyYAML loads them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Patroni {
    sections: Map<String, Value>,
}

impl Patroni {
    /// A value by its path: `postgresql.parameters.port`, `scope`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let mut names = path.split('.');
        let mut value = self.sections.get(names.next()?)?;
        for name in names {
            value = value.get(name)?;
        }
        Some(value)
    }

    /// A text by its path. Numbers are written out.
    pub fn text(&self, path: &str) -> Option<String> {
        match self.get(path)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Whether a password or another secret stands in it.
    pub(crate) fn has_secrets(&self) -> bool {
        fn any(map: &Map<String, Value>) -> bool {
            map.iter().any(|(key, value)| match value {
                Value::Object(map) => any(map),
                Value::String(_) | Value::Number(_) => key != "dsn" && is_secret(key),
                _ => false,
            })
        }
        any(&self.sections)
    }

    /// Whether the file has any of Patroni's sections but `postgresql`, which is ours as well.
    pub fn is_used(&self) -> bool {
        self.sections.keys().any(|name| name != "postgresql")
    }
}

/// With passwords, secrets and tokens hidden.
impl Serialize for Patroni {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        hidden(&self.sections).serialize(serializer)
    }
}

/// Names of keys whose values are never shown.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "dsn",
        "primary_conninfo",
    ]
    .iter()
    .any(|word| key.contains(word))
        && !matches!(key.as_str(), "server_tokens" | "password_encryption")
}

fn hidden(map: &Map<String, Value>) -> Map<String, Value> {
    fn one(value: &Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(hidden(map)),
            Value::Array(items) => Value::Array(items.iter().map(one).collect()),
            Value::String(text) => Value::String(without_password(text)),
            other => other.clone(),
        }
    }
    map.iter()
        .map(|(key, value)| {
            let shown = match value {
                // Ours, and so a reference; Patroni's passwords are always the passwords themselves.
                Value::String(text) if key == "dsn" => Value::from(
                    SecretReference::parse(text).map_or_else(|_| "***".to_owned(), |dsn| dsn.to_string()),
                ),
                Value::String(_) | Value::Number(_) if is_secret(key) => Value::from("***"),
                value => one(value),
            };
            (key.clone(), shown)
        })
        .collect()
}

/// Hides the password of a URL: `https://user:***@host`.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let authority = rest.split('/').next().unwrap_or_default();
    match authority
        .rsplit_once('@')
        .and_then(|(user, _)| user.split_once(':'))
    {
        Some((user, password)) => {
            let after = &rest[user.len() + 1 + password.len()..];
            format!("{scheme}://{user}:***{after}")
        }
        None => text.to_owned(),
    }
}

/// The keys of a section; none where anything goes.
type Keys = Option<&'static [&'static str]>;

const POSTGRESQL: [&str; 31] = [
    "authentication",
    "basebackup",
    "before_stop",
    "bin_dir",
    "bin_name",
    "callbacks",
    "config_dir",
    "connect_address",
    "container",
    "create_replica_methods",
    "create_replica_method",
    "custom_conf",
    "data_dir",
    "database",
    "dsn",
    "listen",
    "parameters",
    "pg_ctl_timeout",
    "pg_hba",
    "pg_ident",
    "pgpass",
    "pre_promote",
    "proxy_address",
    "recovery_conf",
    "remove_data_directory_on_diverged_timelines",
    "remove_data_directory_on_rewind_failure",
    "unit",
    "use_pg_rewind",
    "use_slots",
    "use_unix_socket",
    "use_unix_socket_repl",
];
const ETCD: [&str; 13] = [
    "cacert",
    "cert",
    "host",
    "hosts",
    "key",
    "password",
    "protocol",
    "proxy",
    "srv",
    "srv_suffix",
    "url",
    "use_proxies",
    "username",
];
const DCS: [&str; 25] = [
    "check_timeline",
    "failsafe_mode",
    "ignore_slots",
    "loop_wait",
    "master_start_timeout",
    "master_stop_timeout",
    "max_timelines_history",
    "maximum_lag_on_failover",
    "maximum_lag_on_syncnode",
    "member_slots_ttl",
    "pause",
    "postgresql",
    "primary_race_backoff",
    "primary_start_timeout",
    "primary_stop_timeout",
    "retry_timeout",
    "slots",
    "standby_cluster",
    "synchronous_mode",
    "synchronous_mode_strict",
    "synchronous_node_count",
    "synchronous_mode_quorum",
    "ttl",
    "kubernetes",
    "citus",
];

/// Patroni's sections and their keys. `tags` takes any.
const SECTIONS: [(&str, Keys); 20] = [
    ("scope", None),
    ("name", None),
    ("namespace", None),
    (
        "log",
        Some(&[
            "dateformat",
            "deduplicate_heartbeat_logs",
            "dir",
            "file_num",
            "file_size",
            "format",
            "level",
            "loggers",
            "max_queue_size",
            "mode",
            "static_fields",
            "traceback_level",
            "type",
        ]),
    ),
    (
        "restapi",
        Some(&[
            "allowlist",
            "allowlist_include_members",
            "authentication",
            "cafile",
            "certfile",
            "ciphers",
            "connect_address",
            "http_extra_headers",
            "https_extra_headers",
            "keyfile",
            "keyfile_password",
            "listen",
            "request_queue_size",
            "server_tokens",
            "verify_client",
        ]),
    ),
    (
        "ctl",
        Some(&[
            "authentication",
            "cacert",
            "certfile",
            "insecure",
            "keyfile",
            "keyfile_password",
        ]),
    ),
    ("bootstrap", None),
    ("postgresql", Some(&POSTGRESQL)),
    ("etcd", Some(&ETCD)),
    ("etcd3", Some(&ETCD)),
    ("citus", Some(&["database", "group"])),
    ("watchdog", Some(&["device", "mode", "safety_margin"])),
    ("tags", None),
    ("consul", None),
    ("exhibitor", None),
    ("kubernetes", None),
    ("raft", None),
    ("zookeeper", None),
    ("thresholds", None),
    ("multisite", None),
];

/// Whether a top-level key is one of Patroni's.
pub(crate) fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}

/// The names of Patroni's sections.
pub(crate) fn section_names() -> impl Iterator<Item = &'static str> {
    SECTIONS.iter().map(|(name, _)| *name)
}

/// Takes Patroni's sections out of a file.
pub(crate) fn read(root: &Node, problems: &Problems) -> Patroni {
    let mut sections = Map::new();
    for (name, keys) in SECTIONS {
        let Some(node) = root.get(name).filter(|node| !node.is_null()) else {
            continue;
        };
        if let Some(keys) = keys {
            // A list of replica methods names sections of their own.
            let own: Vec<String> = ["create_replica_methods", "create_replica_method"]
                .iter()
                .filter_map(|key| node.get(key))
                .filter_map(|methods| match &methods.content {
                    Content::Sequence(items) => Some(items),
                    _ => None,
                })
                .flatten()
                .filter_map(|item| item.text().map(str::to_owned))
                .collect();
            warn_of_unknown(name, node, keys, &own, problems);
        }
        if name == "bootstrap"
            && let Some(dcs) = node.get("dcs")
        {
            warn_of_unknown("bootstrap.dcs", dcs, &DCS, &[], problems);
        }
        sections.insert(name.to_owned(), node.to_json());
    }
    Patroni { sections }
}

fn warn_of_unknown(path: &str, node: &Node, keys: &[&str], own: &[String], problems: &Problems) {
    let Content::Mapping(entries) = &node.content else {
        return;
    };
    let mut seen = Vec::new();
    for (key, _) in entries {
        let Some(name) = key.text() else { continue };
        if seen.contains(&name) {
            let message = format!("the key '{name}' stands twice in '{path}'; the last one counts");
            problems.add(Problem::warning(key.origin.clone(), message));
        }
        seen.push(name);
        if name != "<<" && !keys.contains(&name) && !own.iter().any(|method| method == name) {
            let message = format!("unknown key '{name}' in '{path}'");
            let problem = Problem::warning(key.origin.clone(), message);
            problems.add(problem.nearest_of(name, keys.iter().copied()));
        }
    }
}

/// Puts the values of `PATRONI_*` variables where they belong, over what the file says.
pub(crate) fn apply_variables(root: &mut Node, variables: &BTreeMap<String, String>) {
    for (variable, value) in variables {
        let Some(name) = variable.strip_prefix("PATRONI_") else {
            continue;
        };
        let Some(path) = path_of_variable(name) else {
            continue;
        };
        let origin = Origin::Variable(variable.clone());
        let mut node = root as &mut Node;
        for key in &path {
            node = node.entry(key, &origin);
        }
        *node = value_of_variable(&path, value, &origin);
    }
}

/// `RESTAPI_LISTEN` is `restapi.listen`, `SUPERUSER_PASSWORD` is `postgresql.authentication.superuser.password`.
fn path_of_variable(name: &str) -> Option<Vec<String>> {
    let owned = |parts: &[&str]| Some(parts.iter().map(|part| (*part).to_owned()).collect());
    let lower = name.to_ascii_lowercase();
    if ["scope", "name", "namespace"].contains(&lower.as_str()) {
        return owned(&[&lower]);
    }
    for account in ["superuser", "replication", "rewind"] {
        if let Some(key) = lower
            .strip_prefix(account)
            .and_then(|rest| rest.strip_prefix('_'))
        {
            return owned(&["postgresql", "authentication", account, key]);
        }
    }
    for section in ["restapi", "ctl"] {
        for key in ["username", "password"] {
            if lower == format!("{section}_{key}") {
                return owned(&[section, "authentication", key]);
            }
        }
    }
    SECTIONS.iter().find_map(|(section, keys)| {
        let key = lower.strip_prefix(section)?.strip_prefix('_')?;
        (*keys)?
            .contains(&key)
            .then(|| vec![(*section).to_owned(), key.to_owned()])
    })
}

/// Lists may be given with commas, or in YAML's own form.
fn value_of_variable(path: &[String], value: &str, origin: &Origin) -> Node {
    let is_list = matches!(path.last().map(String::as_str), Some("hosts" | "allowlist"));
    let value = value.trim();
    if value.starts_with(['[', '{'])
        && let Ok(mut node) = crate::node::parse(value, std::path::Path::new("environment"))
    {
        node.origin = origin.clone();
        return node;
    }
    if is_list {
        let items = value
            .split(',')
            .map(|item| Node::scalar(origin.clone(), item.trim().trim_matches(['\'', '"'])))
            .collect();
        return Node {
            origin: origin.clone(),
            content: Content::Sequence(items),
        };
    }
    Node::scalar(origin.clone(), value)
}
