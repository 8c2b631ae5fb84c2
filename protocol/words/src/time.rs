//! Times as text.

use chrono::{DateTime, SecondsFormat, Timelike, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Invalid;

/// What a time has to look like.
const FORM: &str = "a time in RFC 3339, such as 2026-01-31T12:00:00.000Z, or a date";

/// Reads a time: RFC 3339, or a date alone, which means its first moment in UTC.
///
/// # Errors
/// Names `parameter` and the form that is expected.
pub fn parse_time(text: &str, parameter: &str) -> Result<DateTime<Utc>, Invalid> {
    read(text).ok_or_else(|| Invalid::new(parameter, format!("`{parameter}` must be {FORM}")))
}

fn read(text: &str) -> Option<DateTime<Utc>> {
    let full = if text.len() == 10 {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    let time = DateTime::parse_from_rfc3339(&full).ok()?;
    Some(time.with_timezone(&Utc))
}

/// Writes a time in the only form in which one leaves the daemon: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn format_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A point in a project's past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a version number or an RFC 3339 time")]
pub enum AsOf {
    /// A version, as results report it.
    Version(u64),
    /// A time (RFC 3339).
    Time(
        #[serde(with = "rfc3339")]
        #[schemars(with = "String")]
        DateTime<Utc>,
    ),
}

/// A time in JSON, for `#[serde(with = ...)]`: written as by [`format_time`], with more digits only where a caller's
/// time has them; read as by [`parse_time`].
pub(crate) mod rfc3339 {
    use serde::de::{Error, Unexpected};
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(crate) fn serialize<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        let format = if time.nanosecond().is_multiple_of(1_000_000) {
            SecondsFormat::Millis
        } else {
            SecondsFormat::AutoSi
        };
        serializer.serialize_str(&time.to_rfc3339_opts(format, true))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The text itself is not repeated: it may be long or secret.
        read(&text).ok_or_else(|| D::Error::invalid_value(Unexpected::Other("text"), &FORM))
    }
}

/// As [`rfc3339`], for a time that may be absent.
pub(crate) mod rfc3339_if_any {
    use serde::{Deserializer, Serializer};

    use super::*;

    pub(crate) fn serialize<S: Serializer>(time: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => rfc3339::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        #[derive(Deserialize)]
        struct Time(#[serde(with = "rfc3339")] DateTime<Utc>);

        let time = Option::<Time>::deserialize(deserializer)?;
        Ok(time.map(|Time(time)| time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_milliseconds() {
        for (text, written) in [
            ("2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00.000Z"),
            ("2026-01-31T10:30:00.123456+01:00", "2026-01-31T09:30:00.123Z"),
            ("2026-01-31", "2026-01-31T00:00:00.000Z"),
        ] {
            assert_eq!(format_time(parse_time(text, "since").unwrap()), written);
        }
        for bad in [
            "yesterday",
            "2026-02-31",
            "",
            "2026-01-31T12:00:00",
            "äöüäö",
            "2026-1-31",
        ] {
            assert_eq!(parse_time(bad, "since").unwrap_err().parameter, "since", "{bad}");
        }
    }
}
