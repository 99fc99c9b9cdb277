//! For tests only: starts real PostgreSQL, PgBouncer and S3, and injects faults.
