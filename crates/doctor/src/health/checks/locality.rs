//! Whether the server runs on this machine, which is what lets us look at its disks, its load, its log.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::health::{Context, Failure};

/// Whether the server is on this machine: reached over a Unix-domain socket or a loopback address.
///
/// A loopback address may be a forwarded port, so whoever relies on this also needs something of the
/// server's that exists here, such as its data directory.
///
/// # Errors
///
/// When the server could not be asked.
pub fn is_local(context: &Context) -> Result<bool, Failure> {
    let facts = context.facts()?;
    Ok(match &facts.address {
        None => true,
        Some((address, _)) => address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
    })
}

/// The data directory, where it is on this machine; otherwise why it is not to be seen.
///
/// # Errors
///
/// [`Failure::Denied`] where the role may not know it; when the server could not be asked.
pub fn data_directory(context: &Context) -> Result<Result<PathBuf, String>, Failure> {
    if let Some(directory) = &context.target().data_directory {
        return Ok(Ok(directory.clone()));
    }
    let facts = context.facts()?;
    if !is_local(context)? {
        return Ok(Err("it is another host".to_owned()));
    }
    let Some(directory) = facts
        .setting("data_directory")
        .filter(|directory| !directory.is_empty())
    else {
        return Err(Failure::Denied {
            message: format!("the role {} does not see where the data directory is", facts.role),
        });
    };
    let directory = PathBuf::from(directory);
    match rustix::fs::stat(&directory) {
        Ok(_) => Ok(Ok(directory)),
        Err(error) => Ok(Err(format!("{}: {error}", directory.display()))),
    }
}
