//! Times as people write them on a command line, and ages as they read them.

use std::time::SystemTime;

use chrono::{DateTime, Duration, NaiveDate, SubsecRound, Utc};

/// The present time, whatever the clock says: `Utc::now` panics before 1970.
pub(crate) fn now() -> DateTime<Utc> {
    DateTime::from(SystemTime::now())
}

/// The time that `text` means: RFC 3339, a date (its start, UTC), or an age such as `7d`, `12h`, `30m`, `45s` or `2w`
/// before `now`.
pub(crate) fn parse(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    let trimmed = text.trim();
    let time = parse_age(trimmed)
        .and_then(|age| now.checked_sub_signed(age))
        .or_else(|| parse_date(trimmed))
        .or_else(|| {
            DateTime::parse_from_rfc3339(trimmed)
                .ok()
                .map(|time| time.with_timezone(&Utc))
        });
    // Stored times have milliseconds.
    time.map(|time| time.trunc_subsecs(3)).ok_or_else(|| {
        format!(
            "`{text}` is not a time; write an age (7d, 12h, 30m), a date (2025-01-31) or RFC 3339 \
             (2025-01-31T12:00:00Z)"
        )
    })
}

fn parse_age(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let count: i64 = text.strip_suffix(unit)?.parse().ok().filter(|count| *count >= 0)?;
    match unit {
        's' => Duration::try_seconds(count),
        'm' => Duration::try_minutes(count),
        'h' => Duration::try_hours(count),
        'd' => Duration::try_days(count),
        'w' => Duration::try_weeks(count),
        _ => None,
    }
}

fn parse_date(text: &str) -> Option<DateTime<Utc>> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(date.and_hms_opt(0, 0, 0)?.and_utc())
}

/// How long ago `time` was, in the largest whole unit.
pub(crate) fn age(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = now.signed_duration_since(time).num_seconds();
    match seconds {
        // Clocks differ a little between machines that share a home.
        ..=4 => "now".to_owned(),
        5..=59 => format!("{seconds}s ago"),
        60..=3_599 => format!("{}m ago", seconds / 60),
        3_600..=86_399 => format!("{}h ago", seconds / 3_600),
        86_400..=31_535_999 => format!("{}d ago", seconds / 86_400),
        _ => format!("{}y ago", seconds / 31_536_000),
    }
}

/// A span of milliseconds, such as an uptime.
pub(crate) fn span(milliseconds: u64) -> String {
    let seconds = milliseconds / 1_000;
    match seconds {
        0..=9 => format!("{}.{:01} s", seconds, (milliseconds % 1_000) / 100),
        10..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use ccod_protocol::api::format_time;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2025-03-10T12:00:00Z")
            .expect("valid")
            .with_timezone(&Utc)
    }

    #[test]
    fn all_ways_to_write_a_time() {
        let cases = [
            ("7d", "2025-03-03T12:00:00.000Z"),
            ("12h", "2025-03-10T00:00:00.000Z"),
            ("90m", "2025-03-10T10:30:00.000Z"),
            ("2w", "2025-02-24T12:00:00.000Z"),
            ("2025-01-31", "2025-01-31T00:00:00.000Z"),
            ("2025-01-31T10:00:00+02:00", "2025-01-31T08:00:00.000Z"),
        ];
        for (text, time) in cases {
            assert_eq!(parse(text, now()).map(format_time).as_deref(), Ok(time), "{text}");
        }
        for text in [
            "",
            "d",
            "-3d",
            "7 days",
            "yesterday",
            "2025-13-01",
            "9999999999999d",
            "3ü",
        ] {
            let error = parse(text, now()).expect_err(text);
            assert!(error.contains("7d"), "{error}");
        }
    }

    #[test]
    fn ages_use_the_largest_unit() {
        let cases = [
            ("2025-03-10T12:00:03Z", "now"),
            ("2025-03-10T11:59:30Z", "30s ago"),
            ("2025-03-10T11:00:00Z", "1h ago"),
            ("2025-03-07T11:00:00Z", "3d ago"),
            ("2023-03-07T11:00:00Z", "2y ago"),
        ];
        for (timestamp, text) in cases {
            assert_eq!(age(parse(timestamp, now()).expect("a time"), now()), text);
        }
    }

    #[test]
    fn spans() {
        assert_eq!(span(1_234), "1.2 s");
        assert_eq!(span(61_000), "61 s");
        assert_eq!(span(600_000), "10 min");
        assert_eq!(span(300_000_000), "3 days");
    }
}
