//! Integers that do not fit into 64 bits.
//!
//! serde_json reads such an integer as a floating-point number and rounds it silently. Where a value is kept or
//! compared, such a number is refused: it is mostly an identifier, and rounding makes it another one.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Where in `json` an integer stands that would be rounded, such as `a.b[2]`; empty for the value itself. None if there
/// is no such integer, or `json` is not JSON.
#[must_use]
pub fn rounded_integer(json: &str) -> Option<String> {
    // The fewest digits that can be too many. Most JSON has no row of so many.
    const DIGITS: usize = 19;
    let mut row = 0;
    let suspicious = json.bytes().any(|byte| {
        row = if byte.is_ascii_digit() { row + 1 } else { 0 };
        row >= DIGITS
    });
    let mut place = String::new();
    (suspicious && find(json, &mut place)).then_some(place)
}

/// Whether there is one; `place` is where, then.
fn find(json: &str, place: &mut String) -> bool {
    let json = json.trim();
    let here = place.len();
    match json.as_bytes().first() {
        Some(b'{') => members(json).into_iter().any(|(key, value)| {
            place.truncate(here);
            if here > 0 {
                place.push('.');
            }
            place.push_str(&ccod_words::shortened(&key, 60));
            find(value.get(), place)
        }),
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(json).unwrap_or_default();
            elements.into_iter().enumerate().any(|(index, value)| {
                place.truncate(here);
                place.push_str(&format!("[{index}]"));
                find(value.get(), place)
            })
        }
        Some(b'-' | b'0'..=b'9') => {
            let is_integer = !json.contains(['.', 'e', 'E']);
            is_integer && json.parse::<u64>().is_err() && json.parse::<i64>().is_err()
        }
        _ => false,
    }
}

/// The members of an object; none where it cannot be read.
fn members(json: &str) -> Vec<(String, &RawValue)> {
    struct Members;

    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(String, &'de RawValue)>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some(member) = map.next_entry()? {
                members.push(member);
            }
            Ok(members)
        }
    }

    serde_json::Deserializer::from_str(json)
        .deserialize_map(Members)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_that_would_be_rounded_is_found_wherever_it_stands() {
        for (json, place) in [
            ("18446744073709551616", ""),
            (" -9223372036854775809 ", ""),
            (r#"{"a":1,"b":123456789012345678901234567890}"#, "b"),
            (r#"{"a":{"b":[1,{"c":18446744073709551616}]}}"#, "a.b[1].c"),
            (r#"[0,[18446744073709551616]]"#, "[1][0]"),
        ] {
            assert_eq!(rounded_integer(json).as_deref(), Some(place), "{json}");
        }
    }

    #[test]
    fn what_is_kept_as_it_is_passes() {
        for json in [
            "18446744073709551615",
            "-9223372036854775808",
            r#"{"a":"18446744073709551616"}"#,
            r#"{"18446744073709551616":1}"#,
            "0.1234567890123456789012345",
            "1e300",
            "18446744073709551616.0",
            "[18446744073709551616",
            "",
        ] {
            assert_eq!(rounded_integer(json), None, "{json}");
        }
    }
}
