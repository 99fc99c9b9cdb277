//! A report as text for other programs. Pure: a report in, a text out.

pub mod nagios;
pub mod prometheus;
