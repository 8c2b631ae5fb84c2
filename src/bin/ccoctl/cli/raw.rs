//! Parameters as their author wrote them. They are sent unchanged: reading and writing them would lose keys that stand
//! there twice, and digits of long numbers.

use std::time::Duration;

use ccod_protocol::api;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Name of the parameter that is the deadline.
const TIMEOUT: &str = "timeout_ms";

/// The parameters of `method` with a deadline, unless they have one. Parameters that the daemon would refuse stay as
/// they are, so that it does.
pub(super) fn with_timeout(method: &str, parameters: Box<RawValue>, timeout: Duration) -> Box<RawValue> {
    let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
    let json = parameters.get();
    let inside = match json.as_bytes().first() {
        Some(b'[') => match by_name(method, json) {
            Some(members) => members,
            None => return parameters,
        },
        _ if has_timeout(json) => return parameters,
        _ => json[1..json.len() - 1].to_owned(),
    };
    let comma = if inside.trim().is_empty() { "" } else { "," };
    RawValue::from_string(format!("{{\"{TIMEOUT}\":{milliseconds}{comma}{inside}}}")).unwrap_or(parameters)
}

fn has_timeout(json: &str) -> bool {
    #[derive(Deserialize)]
    struct Peek<'a> {
        #[serde(borrow, default, deserialize_with = "given")]
        timeout_ms: Option<&'a RawValue>,
    }
    /// Also where it is `null`.
    fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
        Deserialize::deserialize(deserializer).map(Some)
    }
    // The daemon refuses one that stands there twice.
    serde_json::from_str::<Peek<'_>>(json).map_or(true, |peek| peek.timeout_ms.is_some())
}

/// The members of an object, for an array whose parameters are known by their position: a deadline has a name only.
fn by_name(method: &str, json: &str) -> Option<String> {
    let values: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    let names = api::method_info(method)?.positional;
    let members = names.iter().zip(&values);
    (values.len() <= names.len()).then(|| {
        members
            .map(|(name, value)| format!("\"{name}\":{}", value.get()))
            .collect::<Vec<_>>()
            .join(",")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(method: &str, json: &str) -> String {
        let parameters = serde_json::from_str(json).expect(json);
        with_timeout(method, parameters, Duration::from_millis(2_500))
            .get()
            .to_owned()
    }

    #[test]
    fn a_deadline_is_added_and_everything_else_is_as_it_was_written() {
        for (json, expected) in [
            ("{}", r#"{"timeout_ms":2500}"#),
            ("{ }", r#"{"timeout_ms":2500 }"#),
            (
                r#"{"type":"issue","type":"general"}"#,
                r#"{"timeout_ms":2500,"type":"issue","type":"general"}"#,
            ),
            (
                r#"{"n":18446744073709551616000}"#,
                r#"{"timeout_ms":2500,"n":18446744073709551616000}"#,
            ),
            (r#"{"timeout_ms":1}"#, r#"{"timeout_ms":1}"#),
            (r#"{"timeout_ms":null}"#, r#"{"timeout_ms":null}"#),
            (
                r#"{"timeout_ms":1,"timeout_ms":2}"#,
                r#"{"timeout_ms":1,"timeout_ms":2}"#,
            ),
            (r#"["q",3]"#, r#"{"timeout_ms":2500,"query":"q","limit":3}"#),
            ("[]", r#"{"timeout_ms":2500}"#),
        ] {
            assert_eq!(sent("knowledge.search", json), expected);
        }
        // The meaning of these is not known.
        assert_eq!(sent("knowledge.history", r#"["a","b"]"#), r#"["a","b"]"#);
        assert_eq!(sent("no.such", r#"["a"]"#), r#"["a"]"#);
    }
}
