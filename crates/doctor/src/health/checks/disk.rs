//! `disk.used`: the file systems that the server writes to, as far as they are this machine's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::Deserialize;

use super::locality;
use crate::health::{Check, Context, Failure, Finding, Limit, Measure, Rows, Status, Unit, Verdict};

/// The checks of this file.
pub fn checks() -> Vec<Box<dyn Check>> {
    vec![Box::new(DiskUsed), Box::new(DaysToFull)]
}

/// How full the file systems of the data directory, `pg_wal` and each tablespace are.
struct DiskUsed;

const LIMITS: &[Limit] = &[Limit::above("disk.used", Unit::Ratio, Some(0.80), Some(0.90))];

/// The built-in tablespaces have no location of their own (`pg_tablespace_location` in
/// `src/backend/utils/adt/misc.c` gives an empty string).
const TABLESPACES: &str = "
SELECT spcname::text AS name, pg_tablespace_location(oid) AS location
  FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''";

#[derive(Deserialize)]
struct Tablespace {
    name: String,
    location: String,
}

/// One file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that an ordinary user may still write.
    pub available: u64,
    /// Bytes in use.
    pub used: u64,
}

impl Space {
    /// The share in use, as `df` computes it: what root alone may use counts as neither used nor free.
    pub(super) fn used_share(&self) -> f64 {
        let reachable = self.used + self.available;
        if reachable == 0 {
            1.0
        } else {
            self.used as f64 / reachable as f64
        }
    }
}

/// Asks the kernel about the file system that a path lies on.
pub(super) fn space(path: &Path) -> Result<Space, String> {
    let answer = rustix::fs::statvfs(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let unit = if answer.f_frsize == 0 {
        answer.f_bsize
    } else {
        answer.f_frsize
    };
    Ok(Space {
        total: answer.f_blocks.saturating_mul(unit),
        available: answer.f_bavail.saturating_mul(unit),
        used: answer
            .f_blocks
            .saturating_sub(answer.f_bfree)
            .saturating_mul(unit),
    })
}

#[async_trait]
impl Check for DiskUsed {
    fn id(&self) -> &str {
        "disk.used"
    }

    fn title(&self) -> &str {
        "how full the server's disks are"
    }

    fn limits(&self) -> &[Limit] {
        LIMITS
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        let data_directory = match locality::data_directory(context)? {
            Ok(directory) => directory,
            Err(reason) => {
                return Ok(Finding::unknown(
                    format!("the server's disks cannot be seen from here: {reason}"),
                    None,
                )
                .hint("run pgmahout health on the server's own host")
                .into());
            }
        };
        let mut places: Vec<(String, PathBuf)> = vec![
            ("data directory".to_owned(), data_directory.clone()),
            ("pg_wal".to_owned(), data_directory.join("pg_wal")),
        ];
        let tablespaces: Vec<Tablespace> = context.rows(TABLESPACES).await?;
        for tablespace in tablespaces {
            // An in-place tablespace is a path relative to the data directory.
            let path = data_directory.join(&tablespace.location);
            places.push((format!("tablespace {}", tablespace.name), path));
        }
        Ok(judge(context, &places))
    }
}

fn judge(context: &Context, places: &[(String, PathBuf)]) -> Verdict {
    let mut rows = Rows::new(["what", "path", "size", "free", "used"]);
    let mut worst: Option<(f64, String, Space)> = None;
    let mut hidden = Vec::new();
    let mut seen: BTreeMap<&str, Space> = BTreeMap::new();
    for (name, path) in places {
        match space(path) {
            Ok(space) => {
                let share = space.used_share();
                rows.push([
                    name.clone(),
                    path.display().to_string(),
                    Measure::bytes(bytes(space.total)).to_string(),
                    Measure::bytes(bytes(space.available)).to_string(),
                    Measure::ratio(share).to_string(),
                ]);
                if worst.as_ref().is_none_or(|(most, ..)| share > *most) {
                    worst = Some((share, name.clone(), space));
                }
                seen.insert(name, space);
            }
            Err(reason) => hidden.push(format!("{name} ({reason})")),
        }
    }
    let Some((share, name, space)) = worst else {
        return Finding::unknown(
            format!("cannot look at the server's disks: {}", hidden.join("; ")),
            None,
        )
        .hint("run as the server's operating system user or root")
        .into();
    };
    context.remember(|sample| {
        sample
            .values
            .insert("disk.used bytes".to_owned(), space.used as f64);
    });
    let evidence = format!(
        "{name}: {} of {} free{}",
        Measure::bytes(bytes(space.available)),
        Measure::bytes(bytes(space.total)),
        if hidden.is_empty() {
            String::new()
        } else {
            format!("; not visible: {}", hidden.join("; "))
        }
    );
    let finding = Finding::judged(Measure::ratio(share), context.limit("disk.used"), evidence).rows(rows);
    if finding.status == Status::Ok && !hidden.is_empty() {
        // What is seen is well; what is not may be full.
        let mut unknown = Finding::unknown(finding.evidence.clone(), None)
            .hint("pg_wal or a tablespace may be on another disk: run as the server's operating system user or root");
        unknown.measure = finding.measure;
        unknown.thresholds = finding.thresholds;
        unknown.rows = finding.rows;
        return unknown.into();
    }
    finding
        .hint("find what fills it: pgmahout health --only 'wal.*,replication.slots,disk.*'; never delete files in pg_wal")
        .into()
}

fn bytes(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// When the disk will be full, from the stored history.
struct DaysToFull;

#[async_trait]
impl Check for DaysToFull {
    fn id(&self) -> &str {
        "disk.days_to_full"
    }

    fn title(&self) -> &str {
        "days until a disk is full, at the growth of the stored history"
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        if context.sources().history.is_none() {
            let reason = "no history of the disks is stored by this build";
            return if context.is_asked_for(self.id()) {
                Err(Failure::Source {
                    reason: reason.to_owned(),
                })
            } else {
                Ok(Verdict::not_applicable(reason))
            };
        }
        Ok(Verdict::not_applicable("the history has no figures of the disks"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_what_df_shows() {
        let space = Space {
            total: 100,
            available: 15,
            used: 80,
        };
        assert!((space.used_share() - 80.0 / 95.0).abs() < 1e-9);
        assert!(
            (Space {
                total: 0,
                available: 0,
                used: 0
            }
            .used_share()
                - 1.0)
                .abs()
                < 1e-9
        );
    }
}
