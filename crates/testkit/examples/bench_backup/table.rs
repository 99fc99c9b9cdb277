//! The figures: rounds of each program, their medians, and what they are held against.

use std::time::Duration;

use pgmahout_testkit::measure;

use crate::tools::Tool;

const MIB: f64 = 1024.0 * 1024.0;
/// The most memory that a step may take, children included.
const MEMORY: u64 = 512 << 20;

/// Whether the files are in memory before a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    Warm,
    Cold,
}

impl Cache {
    const fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// What one program did in one row.
#[derive(Debug, Clone)]
struct Rounds {
    tool: Tool,
    times: Vec<Duration>,
    peak: u64,
}

/// One row: the same work by several programs.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    name: String,
    cache: Cache,
    /// How many times faster than pgBackRest it is to be.
    wanted: f64,
    /// For a full backup, how many times longer than zstd it may take.
    allowed: Option<f64>,
    rounds: Vec<Rounds>,
    /// Growth of the repository against the peer's: measured, and the most that it may be.
    growth: Option<(f64, f64)>,
}

impl Row {
    pub(crate) fn new(name: &str, cache: Cache, wanted: f64) -> Self {
        Self {
            name: name.to_owned(),
            cache,
            wanted,
            allowed: None,
            rounds: Vec::new(),
            growth: None,
        }
    }

    pub(crate) fn against_zstd(mut self, allowed: f64) -> Self {
        self.allowed = Some(allowed);
        self
    }

    pub(crate) fn add(&mut self, tool: Tool, time: Duration, peak: u64) {
        println!(
            "  {:<20} {:<5} {:<12} {:8.3} s {:7.0} MiB",
            self.name,
            self.cache.name(),
            tool.name(),
            time.as_secs_f64(),
            peak as f64 / MIB
        );
        match self.rounds.iter_mut().find(|rounds| rounds.tool == tool) {
            Some(rounds) => {
                rounds.times.push(time);
                rounds.peak = rounds.peak.max(peak);
            }
            None => self.rounds.push(Rounds {
                tool,
                times: vec![time],
                peak,
            }),
        }
    }

    pub(crate) fn set_growth(&mut self, ours: u64, peer: u64, allowed: f64) {
        println!(
            "  {:<20} {:<5} growth: {:.1} MiB, of pgBackRest {:.1} MiB",
            self.name,
            self.cache.name(),
            ours as f64 / MIB,
            peer as f64 / MIB
        );
        if peer > 0 {
            self.growth = Some((ours as f64 / peer as f64, allowed));
        }
    }

    fn seconds(&self, tool: Tool) -> Option<f64> {
        let rounds = self.rounds.iter().find(|rounds| rounds.tool == tool)?;
        Some(measure::median(&rounds.times).as_secs_f64())
    }

    fn peak(&self, tool: Tool) -> Option<u64> {
        let rounds = self.rounds.iter().find(|rounds| rounds.tool == tool)?;
        Some(rounds.peak)
    }

    /// The lines of the table; gives back whether all of them are as they should be.
    fn print(&self) -> bool {
        let ours = self.seconds(Tool::Ours).unwrap_or_default();
        let memory = self.peak(Tool::Ours).unwrap_or_default();
        let mut fine = memory < MEMORY;
        let peer = self.seconds(Tool::Peer);
        let ratio = peer.map(|peer| peer / ours);
        fine &= ratio.is_none_or(|ratio| ratio >= self.wanted);
        let verdict = |ok: bool| if ok { "" } else { "  MISSED" };
        let line = |what: &str, times: &str, figures: &str, ok: bool| {
            println!(
                "{what:<22}{:<6}{times:<24}{figures}{}",
                self.cache.name(),
                verdict(ok)
            );
        };
        let times = peer.map_or_else(
            || format!("{ours:8.2} s"),
            |peer| format!("{ours:8.2} s {peer:8.2} s"),
        );
        let ratio_text = ratio.map_or_else(
            || format!("{:28}", ""),
            |ratio| format!("{ratio:6.2}x of at least {:4.1}x   ", self.wanted),
        );
        let peaks = format!(
            "{:5.0} MiB {:>9}",
            memory as f64 / MIB,
            self.peak(Tool::Peer)
                .map_or_else(String::new, |peak| format!("{:.0} MiB", peak as f64 / MIB))
        );
        line(&self.name, &times, &format!("{ratio_text}{peaks}"), fine);
        if let Some(peer) = self.seconds(Tool::PeerSync) {
            line(
                "  archive-async=n",
                &format!("{ours:8.2} s {peer:8.2} s"),
                &format!("{:6.2}x", peer / ours),
                true,
            );
        }
        if let (Some(zstd), Some(allowed)) = (self.seconds(Tool::Zstd), self.allowed) {
            let part = ours / zstd;
            let ok = part <= allowed;
            fine &= ok;
            line(
                "  against zstd -1 -T2",
                &format!("{ours:8.2} s {zstd:8.2} s"),
                &format!("{part:6.2}x of at most  {allowed:4.1}x"),
                ok,
            );
        }
        if let Some((growth, allowed)) = self.growth {
            let ok = growth <= allowed;
            fine &= ok;
            line(
                "  growth",
                "",
                &format!("{growth:6.2}x of at most  {allowed:4.1}x"),
                ok,
            );
        }
        fine
    }
}

/// Prints the table; gives back whether every figure is as it should be.
pub(crate) fn print(rows: &[Row]) -> bool {
    println!(
        "\n{:<28}{:>10} {:>10}  {:<26}peak",
        "medians", "pgmahout", "pgBackRest", "ratio"
    );
    let missed = rows.iter().filter(|row| !row.print()).count();
    println!(
        "\nmemory is that of the program with its children; under {:.0} MiB is wanted",
        MEMORY as f64 / MIB
    );
    missed == 0
}
