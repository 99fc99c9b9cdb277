//! Progress on stderr: bars with rate and time left on a terminal, plain lines otherwise.
//!
//! Nothing is shown for what ends within two seconds, but its closing word.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use pgmahout_procedure::report::{Level, Progress, Reporter, Task, Unit};

use crate::printer::Printer;

/// How long a task runs before it is shown.
const WORTH_SHOWING: Duration = Duration::from_secs(2);

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows messages and progress to the person at this terminal.
pub(crate) struct TerminalReporter {
    printer: Arc<Printer>,
    bars: Option<MultiProgress>,
    silent: bool,
}

impl TerminalReporter {
    /// Bars if stderr is a terminal, lines if not, nothing but warnings when silent.
    pub(crate) fn new(printer: Arc<Printer>, silent: bool) -> Self {
        let bars = (!silent && std::io::stderr().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self {
            printer,
            bars,
            silent,
        }
    }

    fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| self.printer.note(text)),
            None => self.printer.note(text),
        }
    }
}

impl Reporter for TerminalReporter {
    fn message(&self, level: Level, text: &str) {
        match level {
            Level::Warning => match &self.bars {
                Some(bars) => bars.suspend(|| self.printer.warn(text)),
                None => self.printer.warn(text),
            },
            Level::Info if !self.silent => self.say(text),
            Level::Info => {}
            Level::Detail => tracing::info!("{text}"),
        }
    }

    fn plan(&self, text: &str) {
        // Somebody is about to be asked about it: said with --quiet too, as long as nobody wants JSON alone.
        if !self.printer.wants_json() {
            match &self.bars {
                Some(bars) => bars.suspend(|| self.printer.say(text.trim_end())),
                None => self.printer.say(text.trim_end()),
            }
        }
    }

    fn start(&self, task: Task) -> Box<dyn Progress> {
        if let Some(bars) = &self.bars {
            let bar = ProgressBar::hidden();
            bar.set_style(style(task.unit, task.total));
            bar.set_message(task.name.clone());
            if let Some(total) = task.total {
                bar.set_length(total);
            }
            return Box::new(Shown {
                bar,
                bars: bars.clone(),
                begun: Instant::now(),
                visible: Mutex::new(false),
                task,
                printer: Arc::clone(&self.printer),
            });
        }
        Box::new(Lines {
            printer: Arc::clone(&self.printer),
            silent: self.silent,
            begun: Instant::now(),
            last_line: Mutex::new(Instant::now()),
            position: AtomicU64::new(0),
            total: AtomicU64::new(task.total.unwrap_or(0)),
            task,
        })
    }
}

fn style(unit: Unit, total: Option<u64>) -> ProgressStyle {
    let template = match (unit, total) {
        (Unit::Bytes, Some(_)) => {
            "{msg} [{bar:24}] {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left {prefix}"
        }
        (Unit::Bytes, None) => "{msg} {spinner} {bytes} {binary_bytes_per_sec} {elapsed} {prefix}",
        (_, Some(_)) => "{msg} [{bar:24}] {human_pos}/{human_len}, {eta} left {prefix}",
        (_, None) => "{msg} {spinner} {human_pos} {elapsed} {prefix}",
    };
    // The templates are fixed; should one be wrong, a plain bar is good enough.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

struct Shown {
    bar: ProgressBar,
    bars: MultiProgress,
    begun: Instant,
    visible: Mutex<bool>,
    task: Task,
    printer: Arc<Printer>,
}

impl Shown {
    fn show_when_worth(&self) {
        let mut shown = self.visible.lock().unwrap_or_else(PoisonError::into_inner);
        if !*shown && self.begun.elapsed() >= WORTH_SHOWING {
            *shown = true;
            self.bars.add(self.bar.clone());
        }
    }
}

impl Progress for Shown {
    fn set_total(&self, total: u64) {
        self.bar.set_length(total);
        self.bar.set_style(style(self.task.unit, Some(total)));
        self.show_when_worth();
    }

    fn advance(&self, amount: u64) {
        self.bar.inc(amount);
        self.show_when_worth();
    }

    fn set_position(&self, position: u64) {
        self.bar.set_position(position);
        self.show_when_worth();
    }

    fn set_detail(&self, detail: &str) {
        self.bar.set_prefix(detail.to_owned());
        self.show_when_worth();
    }

    fn finish(&self, summary: &str) {
        self.bar.finish_and_clear();
        if !summary.is_empty() {
            self.bars
                .suspend(|| self.printer.note(&format!("{}: {summary}", self.task.name)));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// For logs and pipes: a line every ten seconds.
struct Lines {
    printer: Arc<Printer>,
    silent: bool,
    begun: Instant,
    last_line: Mutex<Instant>,
    position: AtomicU64,
    total: AtomicU64,
    task: Task,
}

impl Lines {
    fn line_when_due(&self) {
        if self.silent || self.begun.elapsed() < WORTH_SHOWING {
            return;
        }
        let mut last = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < LINE_EVERY {
            return;
        }
        *last = Instant::now();
        let position = self.position.load(Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        let amount = |number: u64| match self.task.unit {
            Unit::Bytes => indicatif::BinaryBytes(number).to_string(),
            Unit::Rows | Unit::Items | Unit::Steps => indicatif::HumanCount(number).to_string(),
        };
        let text = if let Some(percent) = position.saturating_mul(100).checked_div(total) {
            format!(
                "{}: {} of {} ({percent} %)",
                self.task.name,
                amount(position),
                amount(total)
            )
        } else {
            format!("{}: {}", self.task.name, amount(position))
        };
        self.printer.note(&text);
    }
}

impl Progress for Lines {
    fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, amount: u64) {
        self.position.fetch_add(amount, Ordering::Relaxed);
        self.line_when_due();
    }

    fn set_position(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
        self.line_when_due();
    }

    fn set_detail(&self, _detail: &str) {}

    fn finish(&self, summary: &str) {
        if !self.silent && !summary.is_empty() {
            self.printer.note(&format!("{}: {summary}", self.task.name));
        }
    }
}
