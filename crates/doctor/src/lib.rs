//! Health checks and reports.
