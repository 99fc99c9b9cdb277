//! Physical backups of real servers.

mod basics;
mod changes;
mod damage;
mod faults;
mod refusals;
mod rules;
mod standby;
mod support;
