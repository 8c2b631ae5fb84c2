//! Refuses empty filters and targets: nothing does not mean all.
//!
//! A filter or a target that is `null`, `""`, `[]` or `{}` is mostly the result of a computation that found nothing.
//! Taken as absent it would mean every item of the project, so it is refused, for all methods in this one place:
//! [`MethodInfo::selects`] says which parameters select. The check reads the raw JSON, before `null` becomes "absent".

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

use super::{Entry, Key};
use crate::api::MethodInfo;
use crate::error::WireError;

/// Refuses filters and targets that are empty, or have an empty element.
///
/// # Errors
/// -32602 naming the parameter.
pub(super) fn refuse(method: &MethodInfo, entries: &[Entry<'_>]) -> Result<(), WireError> {
    for (name, raw) in entries {
        let name = method.parameter(name);
        if !method.selects(name) {
            continue;
        }
        let of_objects = name == "metadata";
        // An object in place of a list is of a wrong type, which the decoding explains better.
        if !of_objects && raw.get().starts_with('{') {
            continue;
        }
        if let Some(what) = nothing(raw).or_else(|| nothing_within(raw)) {
            let right = if of_objects {
                "an object of keys and values"
            } else {
                "a value"
            };
            return Err(WireError::invalid_params(
                name,
                format!("`{name}` must not {what}, which does not mean all; give {right}, or leave `{name}` out"),
            ));
        }
    }
    Ok(())
}

/// What an empty value is.
fn nothing(raw: &RawValue) -> Option<&'static str> {
    let json = raw.get();
    // The brackets of an empty list or object may stand apart.
    let inside = |open, close| {
        json.strip_prefix(open)
            .and_then(|rest: &str| rest.strip_suffix(close))
            .is_some_and(|inside| inside.trim().is_empty())
    };
    match json {
        "null" => Some("be null"),
        "\"\"" => Some("be empty"),
        _ if inside('[', ']') => Some("be an empty list"),
        _ if inside('{', '}') => Some("be an empty object"),
        _ => None,
    }
}

/// What an empty element is. In a list it is any empty value; in an object (the `metadata` filter, or one of its list)
/// only `null`, because an empty text is a value that can be stored.
fn nothing_within(raw: &RawValue) -> Option<&'static str> {
    struct Elements;

    impl<'de> Visitor<'de> for Elements {
        type Value = Option<&'static str>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list or an object")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(element) = list.next_element::<&RawValue>()? {
                if found.is_some() {
                    continue;
                }
                if nothing(element).is_some() {
                    found = Some("hold an empty value");
                } else if element.get().starts_with('{') {
                    found = nothing_within(element);
                }
            }
            Ok(found)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while map.next_key::<Key<'_>>()?.is_some() {
                if map.next_value::<&RawValue>()?.get() == "null" {
                    found = Some("hold a key whose value is null");
                }
            }
            Ok(found)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(raw.get());
    // What cannot be read is left to the decoding, which says why.
    match raw.get().as_bytes().first() {
        Some(b'[') => deserializer.deserialize_seq(Elements).unwrap_or(None),
        Some(b'{') => deserializer.deserialize_map(Elements).unwrap_or(None),
        _ => None,
    }
}

impl MethodInfo {
    /// The name of a parameter that may have been given under an alias.
    fn parameter<'a>(&self, name: &'a str) -> &'a str {
        self.aliases
            .iter()
            .find(|(alias, target)| *alias == name && self.positional.contains(target))
            .map_or(name, |(_, target)| target)
    }
}

#[cfg(test)]
mod tests {
    use crate::api::{self, METHODS};
    use crate::params::decode_any;
    use crate::params::samples::call;

    #[test]
    fn nothing_is_never_a_filter_or_a_target_in_any_method() {
        let mut tried = 0;
        for method in METHODS {
            let selecting = method
                .positional
                .iter()
                .copied()
                .chain(["project_id"])
                .filter(|name| method.selects(name));
            for name in selecting {
                let other_filter = (method.selects("type") && name != "type").then_some(("type", "\"issue\""));
                for empty in [
                    "null",
                    "\"\"",
                    "[]",
                    "[ \n]",
                    "{}",
                    "{ }",
                    "[\"\"]",
                    "[null]",
                    "[\"a\",\"\"]",
                    "[\"a\",null]",
                    "{\"k\":null}",
                    "{\"k\":1,\"l\":null}",
                ] {
                    let mut given = vec![(name, empty)];
                    given.extend(other_filter);
                    let error = call(method, &given).expect_err(&format!("{} {given:?}", method.name));
                    assert_eq!(error.code, -32602, "{} {given:?}", method.name);
                    assert_eq!(
                        error.data.parameter.as_deref(),
                        Some(name),
                        "{} {given:?}: {}",
                        method.name,
                        error.message
                    );
                    assert!(error.message.contains(name), "{}", error.message);
                    tried += 1;
                }
            }
        }
        assert!(tried > 500, "{tried}");
    }

    #[test]
    fn an_alias_or_a_place_in_an_array_does_not_get_around_it() {
        for (method, json, name) in [
            ("knowledge.delete", r#"{"agent":"a","knowledge_type":[]}"#, "type"),
            ("knowledge.delete", r#"{"agent":"a","knowledge_type":null}"#, "type"),
            ("knowledge.query", r#"{"agent":[]}"#, "agent"),
            ("knowledge.delete", r#"["x",null]"#, "ids"),
            ("knowledge.get", r#"["x",[]]"#, "ids"),
            ("knowledge.cleanup", r#"[30,null]"#, "type"),
            ("knowledge.history", r#"[""]"#, "id"),
            ("knowledge.delete", r#"{"metadata":[{"k":1},{}]}"#, "metadata"),
            ("knowledge.delete", r#"{"metadata":[{"k":1},{"l":null}]}"#, "metadata"),
        ] {
            let error = decode_any(api::method_info(method).unwrap(), json).unwrap_err();
            assert_eq!(error.data.parameter.as_deref(), Some(name), "{method} {json}");
        }
    }

    #[test]
    fn the_names_that_select_are_those_that_should() {
        for (method, selecting) in [
            (api::method::KNOWLEDGE_STORE, &["project_id"][..]),
            (
                api::method::KNOWLEDGE_SEARCH,
                &[
                    "type",
                    "agent",
                    "session_id",
                    "since",
                    "until",
                    "metadata",
                    "projects",
                    "project_id",
                ],
            ),
            (api::method::KNOWLEDGE_UPDATE, &["id", "project_id"]),
            (api::method::KNOWLEDGE_PURGE, &["id", "ids", "project_id"]),
            (api::method::KNOWLEDGE_UNDELETE, &["undo_token", "ids", "project_id"]),
            (api::method::RPC_CANCEL, &["project_id"]),
        ] {
            let info = api::method_info(method).unwrap();
            let found: Vec<&str> = info
                .positional
                .iter()
                .copied()
                .chain(["project_id"])
                .filter(|name| info.selects(name))
                .collect();
            assert_eq!(found, selecting, "{method}");
        }
        // Whatever is called like a target is one, in methods to come as well.
        for row in METHODS {
            for name in ["ids", "projects", "undo_token", "subscription"] {
                assert_eq!(row.selects(name), row.positional.contains(&name), "{} {name}", row.name);
            }
        }
    }

    #[test]
    fn null_means_absent_everywhere_else() {
        for (method, json) in [
            (
                api::method::KNOWLEDGE_STORE,
                r#"{"text":"x","agent":null,"id":null,"metadata":null,"timeout_ms":null}"#,
            ),
            (api::method::KNOWLEDGE_STORE, r#"{"text":"x","metadata":{}}"#),
            (
                api::method::KNOWLEDGE_UPDATE,
                r#"{"id":"x","agent":null,"metadata":{"k":null}}"#,
            ),
            (
                api::method::KNOWLEDGE_SEARCH,
                r#"{"query":"q","limit":null,"threshold":null,"as_of":null}"#,
            ),
            (api::method::KNOWLEDGE_LIST, r#"{"cursor":null}"#),
            (api::method::KNOWLEDGE_LIST, r#"{"metadata":{"k":""}}"#),
            (api::method::RPC_CANCEL, r#"{"id":""}"#),
        ] {
            decode_any(api::method_info(method).unwrap(), json).unwrap();
        }
    }

    #[test]
    fn ids_and_filters_are_never_given_together() {
        for (method, json, name) in [
            (api::method::KNOWLEDGE_DELETE, r#"{"id":"x","type":"issue"}"#, "id"),
            (api::method::KNOWLEDGE_DELETE, r#"{"ids":["x"],"agent":"a"}"#, "ids"),
            (api::method::KNOWLEDGE_DELETE, r#"{"id":"x","ids":["y"]}"#, "ids"),
            (
                api::method::KNOWLEDGE_PURGE,
                r#"{"id":"x","secrets":true,"confirm":true}"#,
                "id",
            ),
            (
                api::method::KNOWLEDGE_PURGE,
                r#"{"ids":["x"],"secrets":true,"confirm":true}"#,
                "ids",
            ),
            (
                api::method::KNOWLEDGE_UNDELETE,
                r#"{"undo_token":"x","ids":["y"]}"#,
                "ids",
            ),
        ] {
            let error = decode_any(api::method_info(method).unwrap(), json).unwrap_err();
            assert_eq!(error.code, -32602);
            assert_eq!(error.data.parameter.as_deref(), Some(name), "{json}: {}", error.message);
        }
    }
}
