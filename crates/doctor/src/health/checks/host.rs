//! `host.*`: load, memory, swap, pressure and clock of the machine that the server runs on.
//!
//! Read from `/proc` (proc(5); for `/proc/pressure` the kernel's documentation "PSI - Pressure Stall
//! Information"), so only where the server is this machine. The clock is compared with the server's
//! wherever it is.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde::Deserialize;

use super::locality;
use crate::health::{Check, Context, Failure, Finding, Limit, Measure, Unit, Verdict};

/// The checks of this file.
pub fn checks() -> Vec<Box<dyn Check>> {
    vec![
        Box::new(Host {
            id: "host.load",
            title: "load average of five minutes per core",
            limits: LOAD,
            read: load,
            hint: "see what runs: pgmahout health --only 'queries.*,connections.*', then top",
        }),
        Box::new(Host {
            id: "host.memory",
            title: "share of memory available",
            limits: MEMORY,
            read: memory,
            hint: "compare work_mem × sessions and shared_buffers with the memory there is",
        }),
        Box::new(Host {
            id: "host.swap",
            title: "share of swap in use",
            limits: SWAP,
            read: swap,
            hint: "a database server that swaps is short of memory: lower work_mem or shared_buffers, or add memory",
        }),
        Box::new(Host {
            id: "host.pressure",
            title: "share of the last minute in which work waited for disks",
            limits: PRESSURE,
            read: pressure,
            hint: "the disks are the bottleneck: see iostat -x 1, and pg_stat_io on 16 and newer",
        }),
        Box::new(Clock),
    ]
}

const LOAD: &[Limit] = &[Limit::above("host.load", Unit::Factor, Some(1.5), Some(4.0))];
const MEMORY: &[Limit] = &[Limit::below("host.memory", Unit::Ratio, Some(0.10), Some(0.05))];
const SWAP: &[Limit] = &[Limit::above("host.swap", Unit::Ratio, Some(0.25), Some(0.75))];
const PRESSURE: &[Limit] = &[Limit::above("host.pressure", Unit::Ratio, Some(0.40), Some(0.80))];
const CLOCK: &[Limit] = &[Limit::above("host.clock", Unit::Seconds, Some(1.0), Some(10.0))];

/// A value and its line of evidence; `None` where this machine has no such thing.
type Reading = Option<(Measure, String)>;

struct Host {
    id: &'static str,
    title: &'static str,
    limits: &'static [Limit],
    read: fn() -> Result<Reading, String>,
    hint: &'static str,
}

#[async_trait]
impl Check for Host {
    fn id(&self) -> &str {
        self.id
    }

    fn title(&self) -> &str {
        self.title
    }

    fn limits(&self) -> &[Limit] {
        self.limits
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        if !locality::is_local(context)? {
            return Ok(Verdict::not_applicable("the server is on another host"));
        }
        match (self.read)() {
            Ok(Some((measure, evidence))) => Ok(Finding::judged(measure, context.limit(self.id), evidence)
                .hint(self.hint)
                .into()),
            Ok(None) => Ok(Verdict::not_applicable("this machine does not have it")),
            Err(reason) => Err(Failure::Source { reason }),
        }
    }
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
}

fn load() -> Result<Reading, String> {
    let text = read("/proc/loadavg")?;
    let average: f64 = text
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| format!("/proc/loadavg reads unlike itself: {text}"))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(Some((
        Measure::new(average / cores as f64, Unit::Factor),
        format!("load average {average:.2} over five minutes on {cores} cores"),
    )))
}

/// A value of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, name: &str) -> Option<i64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<i64>().ok()? * 1024)
}

fn memory() -> Result<Reading, String> {
    let text = read("/proc/meminfo")?;
    let (Some(total), Some(available)) = (meminfo(&text, "MemTotal"), meminfo(&text, "MemAvailable")) else {
        return Err("/proc/meminfo does not say what is available".to_owned());
    };
    Ok(Some((
        Measure::ratio(available as f64 / total.max(1) as f64),
        format!(
            "{} of {} available",
            Measure::bytes(available),
            Measure::bytes(total)
        ),
    )))
}

fn swap() -> Result<Reading, String> {
    let text = read("/proc/meminfo")?;
    let (Some(total), Some(free)) = (meminfo(&text, "SwapTotal"), meminfo(&text, "SwapFree")) else {
        return Ok(None);
    };
    if total == 0 {
        return Ok(None);
    }
    Ok(Some((
        Measure::ratio((total - free) as f64 / total as f64),
        format!(
            "{} of {} swap in use",
            Measure::bytes(total - free),
            Measure::bytes(total)
        ),
    )))
}

/// `some avg10=0.00 avg60=1.23 avg300=0.50 total=12345` as the share of the last minute.
fn stalled(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    let word = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("avg60="))?;
    Some(word.parse::<f64>().ok()? / 100.0)
}

fn pressure() -> Result<Reading, String> {
    let Ok(text) = fs::read_to_string("/proc/pressure/io") else {
        return Ok(None);
    };
    let share = stalled(&text).ok_or_else(|| format!("/proc/pressure/io reads unlike itself: {text}"))?;
    Ok(Some((
        Measure::ratio(share),
        format!(
            "something waited for disks in {} of the last minute",
            Measure::ratio(share)
        ),
    )))
}

/// The server's clock against ours.
struct Clock;

#[derive(Deserialize)]
struct Now {
    now: f64,
}

#[async_trait]
impl Check for Clock {
    fn id(&self) -> &str {
        "host.clock"
    }

    fn title(&self) -> &str {
        "how far the server's clock is from this machine's"
    }

    fn limits(&self) -> &[Limit] {
        CLOCK
    }

    async fn run(&self, context: &Context) -> Result<Verdict, Failure> {
        if locality::is_local(context)? {
            return Ok(Verdict::not_applicable(
                "the server runs on this machine, by the same clock",
            ));
        }
        let before = seconds_now();
        let answer: Now = context
            .row("SELECT extract(epoch FROM clock_timestamp())::float8 AS now")
            .await?;
        let after = seconds_now();
        // The answer was made somewhere between; only what that cannot explain is an offset.
        let offset = if answer.now < before {
            before - answer.now
        } else if answer.now > after {
            answer.now - after
        } else {
            0.0
        };
        let evidence = format!("the server's clock is off by {}", Measure::seconds(offset));
        Ok(
            Finding::judged(Measure::seconds(offset), context.limit("host.clock"), evidence)
                .hint("see whether both hosts keep time: timedatectl, chronyc tracking")
                .into(),
        )
    }
}

fn seconds_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_by_name() {
        let text = "MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\nSwapTotal: 0 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(2_097_152));
        assert_eq!(meminfo(text, "MemAvailable"), Some(1_048_576));
        assert_eq!(meminfo(text, "Mem"), None);
        let pressure = "some avg10=0.00 avg60=12.50 avg300=0.50 total=12345\nfull avg10=0.00 avg60=1.00 avg300=0 total=1\n";
        assert!((stalled(pressure).unwrap() - 0.125).abs() < 1e-9);
        assert_eq!(stalled("nothing"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        assert!(load().unwrap().is_some());
        let (available, _) = memory().unwrap().unwrap();
        assert!(available.value > 0.0 && available.value <= 1.0);
    }
}
