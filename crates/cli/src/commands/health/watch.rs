//! `health --watch`: the report again and again. On a terminal the screen is redrawn; elsewhere it is
//! printed again. Either way, what has changed since the start is marked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use pgmahout_doctor::health::measure::human_seconds;
use pgmahout_doctor::health::{CheckResult, HealthReport, Status};

use super::{Args, Examination, Form, publish, text};
use crate::ExitStatus;
use crate::context::Context;
use crate::failure::Failure;
use crate::printer::Printer;

/// Cursor to the corner, and everything from there on erased (ECMA-48, CUP and ED).
const REDRAW: &str = "\x1b[H\x1b[J";

/// The status of every check at the start.
type Start = BTreeMap<(String, String), Status>;

pub(super) async fn run(
    examination: &Examination,
    args: &Args,
    form: Form,
    pause: Duration,
    context: &Context,
) -> Result<ExitStatus, Failure> {
    let mut start: Option<Start> = None;
    loop {
        let Ok(report) = examination.look(context).await else {
            break;
        };
        let start = start.get_or_insert_with(|| statuses(&report));
        if form == Form::Text && args.output.is_none() {
            let screen = render(&report, start, args.all, pause, &context.printer);
            if context.printer.is_terminal() {
                context.printer.data(&format!("{REDRAW}{screen}"));
            } else {
                context.printer.data(&format!("{screen}\n"));
            }
        } else {
            publish(&report, args, form, context)?;
        }
        if context.printer.is_reader_gone() {
            return Ok(ExitStatus::SUCCESS);
        }
        if context.printer.is_reader_gone() {
            return Ok(ExitStatus::SUCCESS);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.cancellation.cancelled() => break,
        }
    }
    // Watching ends when somebody ends it.
    Ok(ExitStatus(130))
}

fn statuses(report: &HealthReport) -> Start {
    report
        .results
        .iter()
        .map(|result| ((result.target.clone(), result.id.clone()), result.status))
        .collect()
}

fn render(report: &HealthReport, start: &Start, all: bool, pause: Duration, printer: &Printer) -> String {
    let palette = printer.palette();
    let several = report.targets.len() > 1;
    let was = |result: &CheckResult| start.get(&(result.target.clone(), result.id.clone())).copied();
    let changed = |result: &CheckResult| was(result) != Some(result.status);
    let mut shown = report.troubles();
    shown.extend(
        report
            .results
            .iter()
            .filter(|result| result.status == Status::Ok && (all || changed(result))),
    );
    let width = shown
        .iter()
        .map(|result| result.id.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}  {}",
        palette.strong(&report.taken_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()),
        palette.faint(&format!(
            "every {}; * has changed since the start",
            human_seconds(pause.as_secs_f64())
        ))
    );
    for result in shown {
        let mark = if changed(result) {
            palette.strong("*")
        } else {
            " ".to_owned()
        };
        let before = match was(result) {
            Some(status) if status != result.status => format!(" (was {status})"),
            None => " (was not there)".to_owned(),
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "{mark} {}{before}",
            text::headline(result, several, width, palette)
        );
    }
    let _ = writeln!(text, "\n{}", text::counts(report, palette));
    text
}
