//! What is printed: Markdown, each table with the load of the machine.

use std::fmt::Display;

/// A table that is filled row by row.
pub(crate) struct Table {
    lines: Vec<String>,
    load_before: String,
}

impl Table {
    pub(crate) fn new(title: &str, columns: &[String]) -> Self {
        let lines = vec![
            format!("\n{title}\n"),
            format!("| | {} |", columns.join(" | ")),
            format!("|---|{}", "---|".repeat(columns.len())),
        ];
        Self {
            lines,
            load_before: load(),
        }
    }

    pub(crate) fn row(&mut self, title: impl Display, cells: impl Display) {
        self.lines.push(format!("| {title} | {cells} |"));
    }

    pub(crate) fn print(self) {
        println!("{}", self.lines.join("\n"));
        println!("\nLoad average before and after: {}; {}.", self.load_before, load());
    }
}

/// The load average of 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    all.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Three digits that count.
pub(crate) fn number(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value at a part of the sorted list.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(((sorted.len().max(1) - 1) as f64 * part).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// `p50 / p95`.
pub(crate) fn spread(values: &[f64]) -> String {
    format!("{} / {}", number(quantile(values, 0.5)), number(quantile(values, 0.95)))
}
