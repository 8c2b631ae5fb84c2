//! The progress of a long call, on one line of the terminal.
//!
//! It is drawn on standard error, and only if that is a terminal: a log full of half-drawn lines helps nobody, and
//! scripts have the result.

use std::cell::RefCell;
use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use ccod_protocol::api::ProgressNotification;

use super::output;

/// With a known total: a bar, the numbers, the remaining time, the present step.
const KNOWN: &str = "[{bar:24}] {human_pos}/{human_len}  {eta}  {wide_msg}";

/// Without one: the number and the present step.
const UNKNOWN: &str = "{spinner} {human_pos}  {wide_msg}";

/// Longest message that is shown; the line is cut to the terminal anyway.
const MESSAGE_CHARS: usize = 200;

/// The line of one call. It goes away when this is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Total and message of the last drawing. A change of either begins a new stretch of work.
    stretch: RefCell<Option<(Option<u64>, String)>>,
}

impl Progress {
    /// A line on standard error, if that is a terminal; not with `--json`, whose reader is a program.
    pub(crate) fn detect(json: bool) -> Self {
        if json || output::is_dumb_terminal() || !io::stderr().is_terminal() {
            Self::hidden()
        } else {
            Self::on(ProgressDrawTarget::stderr())
        }
    }

    /// No line at all.
    pub(crate) fn hidden() -> Self {
        Self::on(ProgressDrawTarget::hidden())
    }

    fn on(target: ProgressDrawTarget) -> Self {
        Self {
            bar: ProgressBar::with_draw_target(None, target),
            stretch: RefCell::new(None),
        }
    }

    /// Shows the progress of the call.
    pub(crate) fn show(&self, progress: &ProgressNotification) {
        let stretch = (progress.total, output::one_line(&progress.message, MESSAGE_CHARS));
        let mut last = self.stretch.borrow_mut();
        if last.as_ref() != Some(&stretch) {
            if last.as_ref().is_none_or(|(total, _)| *total != stretch.0) {
                self.bar.set_style(style(stretch.0.is_some()));
                match stretch.0 {
                    Some(total) => self.bar.set_length(total),
                    None => self.bar.unset_length(),
                }
                // The speed so far belongs to another kind of work.
                self.bar.reset_eta();
            }
            self.bar.set_message(stretch.1.clone());
            *last = Some(stretch);
        }
        self.bar.set_position(progress.done);
    }

    /// Prints a message above the line.
    pub(crate) fn say(&self, text: &str) {
        self.bar.suspend(|| output::message(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(total_is_known: bool) -> ProgressStyle {
    let template = if total_is_known { KNOWN } else { UNKNOWN };
    // The templates are constants that a test reads; a bar of the library's own would do as well.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64, total: Option<u64>, message: &str) -> ProgressNotification {
        ProgressNotification {
            request_id: serde_json::Value::from(1),
            done,
            total,
            message: message.to_owned(),
        }
    }

    #[test]
    fn the_templates_are_valid() {
        for template in [KNOWN, UNKNOWN] {
            ProgressStyle::with_template(template).expect(template);
        }
    }

    #[test]
    fn a_line_follows_the_notifications() {
        let line = Progress::hidden();
        line.show(&progress(3, None, "reading\u{1b}[2J"));
        assert_eq!((line.bar.position(), line.bar.length()), (3, None));
        assert_eq!(line.bar.message(), "reading [2J", "nothing drives the terminal");
        line.show(&progress(1, Some(10), "embedding"));
        line.show(&progress(2, Some(10), "embedding"));
        assert_eq!((line.bar.position(), line.bar.length()), (2, Some(10)));
        assert_eq!(line.bar.message(), "embedding");
    }
}
