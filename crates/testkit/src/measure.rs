//! How long a command takes, and how much memory it and its children hold.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::processes;

/// A command that ended, measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard error.
    pub stderr: String,
    /// Wall-clock time.
    pub elapsed: Duration,
    /// The most memory the program itself ever held, in bytes (`VmHWM` of `proc(5)`).
    pub peak: u64,
    /// The most memory the program and its children were seen to hold together, in bytes; pages they
    /// share count for each.
    pub peak_with_children: u64,
}

/// Runs a command to its end. Its standard output is thrown away unless the caller has redirected it.
pub fn run(command: &mut Command) -> Measured {
    let started = Instant::now();
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stderr = child.stderr.take().expect("it is a pipe");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stderr, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let (mut peak, mut peak_with_children) = (0, 0);
    let mut rounds = 0_u32;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        peak = peak.max(memory(child.id(), "VmHWM:"));
        // Looking for children reads all of /proc, so it is done less often.
        if rounds.is_multiple_of(20) {
            let all: u64 = tree(child.id())
                .into_iter()
                .map(|pid| memory(pid, "VmRSS:"))
                .sum();
            peak_with_children = peak_with_children.max(all);
        }
        rounds += 1;
        std::thread::sleep(Duration::from_millis(5));
    };
    let elapsed = started.elapsed();
    let stderr = reader.join().expect("the reader does not panic");
    Measured {
        status,
        stderr,
        elapsed,
        peak,
        peak_with_children: peak_with_children.max(peak),
    }
}

/// Watches every process of one program, whoever started it: for programs that go on in the background after
/// the command has ended.
#[derive(Debug)]
pub struct Watch {
    program: PathBuf,
    ended: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    watcher: JoinHandle<()>,
}

impl Watch {
    /// Begins. `program` is the executable file.
    pub fn start(program: &Path) -> Self {
        let program = program
            .canonicalize()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let ended = Arc::new(AtomicBool::new(false));
        let peak = Arc::new(AtomicU64::new(0));
        let watcher = std::thread::spawn({
            let (program, ended, peak) = (program.clone(), Arc::clone(&ended), Arc::clone(&peak));
            move || {
                while !ended.load(Ordering::Relaxed) {
                    let all: u64 = processes_of(&program)
                        .into_iter()
                        .map(|pid| memory(pid, "VmRSS:"))
                        .sum();
                    peak.fetch_max(all, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        });
        Self {
            program,
            ended,
            peak,
            watcher,
        }
    }

    /// Waits until no process of the program is left, and gives back the most memory, in bytes, that all of them
    /// were seen to hold together. Processes that end within 50 ms may not be seen.
    pub fn stop_when_idle(self) -> u64 {
        crate::poll::blocking_until(
            Duration::from_mins(2),
            "the end of the program's processes",
            || processes_of(&self.program).is_empty(),
        );
        self.ended.store(true, Ordering::Relaxed);
        self.watcher.join().expect("the watcher does not panic");
        self.peak.load(Ordering::Relaxed)
    }
}

/// The processes whose executable file this is.
fn processes_of(program: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == program))
        .collect()
}

/// A process with its children and theirs.
fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        found.extend(processes::children_of(pid));
        next += 1;
    }
    found
}

/// One of the sizes of `/proc/PID/status`, in bytes; 0 for a process that is gone.
fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line
        .and_then(|value| value.trim().strip_suffix(" kB"))
        .and_then(|value| value.parse().ok());
    kilobytes.unwrap_or(0_u64) * 1024
}

/// The middle of some durations.
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_program_and_its_children_is_seen() {
        // 64 MiB in a shell's child.
        let script = "dd if=/dev/zero of=/dev/null bs=64M count=8 2>/dev/null; sleep 0.3";
        let measured = run(Command::new("/bin/sh").args(["-c", script]));
        assert!(measured.status.success(), "{}", measured.stderr);
        assert!(measured.elapsed >= Duration::from_millis(300));
        assert!(measured.peak > 0 && measured.peak < 32 << 20, "{}", measured.peak);
        assert!(measured.peak_with_children >= measured.peak);
    }

    #[test]
    fn memory_of_a_program_in_the_background_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("sleeper");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let watch = Watch::start(&program);
        let script = "\"$0\" 0.5 &";
        let status = Command::new("/bin/sh")
            .args(["-c", script])
            .arg(&program)
            .status();
        assert!(status.unwrap().success());
        crate::poll::blocking_until(Duration::from_secs(10), "its start", || {
            !processes_of(&program).is_empty()
        });
        assert!(watch.stop_when_idle() > 0);
        assert!(processes_of(&program).is_empty());
    }

    #[test]
    fn the_median_is_the_middle() {
        let times: Vec<Duration> = [3, 1, 2].map(Duration::from_secs).to_vec();
        assert_eq!(median(&times), Duration::from_secs(2));
    }
}
