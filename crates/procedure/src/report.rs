//! How operations tell people what they are doing, without knowing whether a terminal, a log or a test
//! listens.

use std::sync::{Arc, Mutex};

/// How important a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Only of interest with `-v`.
    Detail,
    /// What a person following along wants to know.
    Info,
    /// Something that the person should think about; the operation goes on.
    Warning,
}

/// What a task counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Rows of tables.
    Rows,
    /// Things: files, objects, tables, checks.
    Items,
    /// Steps of a procedure.
    Steps,
}

/// A piece of work whose progress is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// What is being done: `dumping shop`.
    pub name: String,
    /// How much there is to do, where that is known already.
    pub total: Option<u64>,
    /// What is counted.
    pub unit: Unit,
}

impl Task {
    /// A task.
    pub fn new(name: impl Into<String>, unit: Unit, total: Option<u64>) -> Self {
        Self {
            name: name.into(),
            total,
            unit,
        }
    }
}

/// Where an operation reports to. Implemented by the command line (progress bars on a terminal, plain lines
/// without one), by [`Silent`] and by [`Recording`].
pub trait Reporter: Send + Sync {
    /// Says one line.
    fn message(&self, level: Level, text: &str);

    /// Shows a plan, of several lines, that the person is about to be asked about. Shown even where
    /// messages of its level are not.
    fn plan(&self, text: &str) {
        self.message(Level::Info, text.trim_end());
    }

    /// Starts a task. Several may run at the same time.
    fn start(&self, task: Task) -> Box<dyn Progress>;
}

/// The progress of one task. Dropped without [`Progress::finish`], the task was abandoned.
pub trait Progress: Send + Sync {
    /// The total became known, or changed.
    fn set_total(&self, total: u64);

    /// So much more is done.
    fn advance(&self, amount: u64);

    /// So much is done in all.
    fn set_position(&self, position: u64);

    /// What is being worked on right now: a file, a table.
    fn set_detail(&self, detail: &str);

    /// The task is done; `summary` is its closing word, such as `1.2 GiB in 14 s`, and may be empty.
    fn finish(&self, summary: &str);
}

impl<T: Reporter + ?Sized> Reporter for Arc<T> {
    fn message(&self, level: Level, text: &str) {
        (**self).message(level, text);
    }

    fn plan(&self, text: &str) {
        (**self).plan(text);
    }

    fn start(&self, task: Task) -> Box<dyn Progress> {
        (**self).start(task)
    }
}

impl<T: Reporter + ?Sized> Reporter for &T {
    fn message(&self, level: Level, text: &str) {
        (**self).message(level, text);
    }

    fn plan(&self, text: &str) {
        (**self).plan(text);
    }

    fn start(&self, task: Task) -> Box<dyn Progress> {
        (**self).start(task)
    }
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn message(&self, _level: Level, _text: &str) {}

    fn start(&self, _task: Task) -> Box<dyn Progress> {
        Box::new(Self)
    }
}

impl Progress for Silent {
    fn set_total(&self, _total: u64) {}
    fn advance(&self, _amount: u64) {}
    fn set_position(&self, _position: u64) {}
    fn set_detail(&self, _detail: &str) {}
    fn finish(&self, _summary: &str) {}
}

/// Remembers what was said, for tests. Clones share one memory.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    state: Arc<Mutex<Recorded>>,
}

#[derive(Debug, Default)]
struct Recorded {
    messages: Vec<(Level, String)>,
    tasks: Vec<RecordedTask>,
}

/// What became of a task that [`Recording`] was told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedTask {
    /// As it was started, with the last total that was set.
    pub task: Task,
    /// How much was done in the end.
    pub position: u64,
    /// The closing word, if it was finished.
    pub summary: Option<String>,
}

impl Recording {
    /// The messages so far, oldest first.
    pub fn messages(&self) -> Vec<(Level, String)> {
        self.with(|state| state.messages.clone())
    }

    /// The tasks so far, oldest first.
    pub fn tasks(&self) -> Vec<RecordedTask> {
        self.with(|state| state.tasks.clone())
    }

    /// Whether a message contains a text.
    pub fn said(&self, text: &str) -> bool {
        self.with(|state| state.messages.iter().any(|(_, message)| message.contains(text)))
    }

    fn with<T>(&self, look: impl FnOnce(&mut Recorded) -> T) -> T {
        look(
            &mut self
                .state
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }
}

impl Reporter for Recording {
    fn message(&self, level: Level, text: &str) {
        self.with(|state| state.messages.push((level, text.to_owned())));
    }

    fn start(&self, task: Task) -> Box<dyn Progress> {
        let number = self.with(|state| {
            state.tasks.push(RecordedTask {
                task,
                position: 0,
                summary: None,
            });
            state.tasks.len() - 1
        });
        Box::new(RecordingProgress {
            recording: self.clone(),
            number,
        })
    }
}

struct RecordingProgress {
    recording: Recording,
    number: usize,
}

impl RecordingProgress {
    fn change(&self, change: impl FnOnce(&mut RecordedTask)) {
        self.recording.with(|state| change(&mut state.tasks[self.number]));
    }
}

impl Progress for RecordingProgress {
    fn set_total(&self, total: u64) {
        self.change(|recorded| recorded.task.total = Some(total));
    }

    fn advance(&self, amount: u64) {
        self.change(|recorded| recorded.position += amount);
    }

    fn set_position(&self, position: u64) {
        self.change(|recorded| recorded.position = position);
    }

    fn set_detail(&self, _detail: &str) {}

    fn finish(&self, summary: &str) {
        self.change(|recorded| recorded.summary = Some(summary.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_remembers_messages_and_tasks() {
        let recording = Recording::default();
        recording.message(Level::Warning, "the disk is nearly full");
        let progress = recording.start(Task::new("dumping shop", Unit::Bytes, None));
        progress.set_total(100);
        progress.advance(30);
        progress.advance(30);
        drop(recording.start(Task::new("abandoned", Unit::Steps, Some(2))));
        progress.finish("60 of 100");
        assert!(recording.said("nearly full"));
        let tasks = recording.tasks();
        assert_eq!(tasks[0].position, 60);
        assert_eq!(tasks[0].task.total, Some(100));
        assert_eq!(tasks[0].summary.as_deref(), Some("60 of 100"));
        assert_eq!(tasks[1].summary, None);
    }
}
