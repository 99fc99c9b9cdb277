//! IO with PostgreSQL: SQL client, server control, configuration files.
