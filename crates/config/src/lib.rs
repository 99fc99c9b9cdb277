//! The configuration: `pgmahout.yml` and the environment, turned once into validated settings.
//!
//! The file is a superset of Patroni's. It is read in three steps: the text becomes a tree in which
//! every node knows its line, the environment's variables are put over it, and the sections are turned into
//! [`Settings`], with every problem gathered and none passed over. Past that, nobody sees YAML.
//!
//! * Unknown keys in our own sections are errors that name the place and the nearest known key; in
//!   Patroni's sections they are warnings.
//! * Patroni's scalars mean what PyYAML makes of them ([`scalar`]).
//! * Secrets do not print ([`Secret`]), and are looked up only when they are needed
//!   ([`secret::SecretReference`]).

mod load;
mod node;
mod patroni;
mod print;
mod problem;
pub mod quantity;
pub mod scalar;
pub mod schedule;
pub mod secret;
mod section;
pub mod settings;

pub use load::{Loaded, Sources};
pub use patroni::Patroni;
pub use print::{to_yaml, without_unset};
pub use problem::{ConfigError, Origin, Problem, Severity};
pub use secret::Secret;
pub use settings::Settings;
