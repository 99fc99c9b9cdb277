//! The configuration: `pgmahout.yml` and the environment, turned once into validated settings.

pub mod secret;

pub use secret::Secret;
