//! The configuration file: YAML to validated settings, environment, secrets.
