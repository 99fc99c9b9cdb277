//! Looking at processes and signalling them, through `/proc`.

use std::path::PathBuf;

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// A process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Command line with arguments joined by spaces; PostgreSQL writes its process title there.
    pub title: String,
}

/// Sends a signal; a process that is already gone is not an error.
pub fn signal(pid: u32, signal: Signal) {
    let raw = i32::try_from(pid).expect("process ids fit an i32");
    let Some(target) = Pid::from_raw(raw) else { return };
    match kill_process(target, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot signal process {pid}: {error}"),
    }
}

/// Whether the process exists and is no zombie.
pub fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// The direct children of a process.
pub fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| stat(*pid).is_some_and(|(_, its_parent)| its_parent == parent))
        .collect()
}

/// The direct children of a process with their titles.
pub fn describe_children(parent: u32) -> Vec<Process> {
    children_of(parent)
        .into_iter()
        .map(|pid| Process {
            pid,
            title: title(pid),
        })
        .collect()
}

fn title(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

/// The POSIX shared memory files a process has mapped (`/dev/shm/PostgreSQL.*`).
pub(crate) fn shared_memory_files(pid: u32) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut files: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| {
            line.find("/dev/shm/PostgreSQL.")
                .map(|start| PathBuf::from(&line[start..]))
        })
        .collect();
    files.dedup();
    files
}

/// State letter and parent of a process (`proc(5)`: fields 3 and 4 of stat, after the name in parentheses).
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = &text[text.rfind(')')? + 1..];
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, parent))
}
