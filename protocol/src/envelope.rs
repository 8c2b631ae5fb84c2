//! The envelope of JSON-RPC 2.0, read by hand.
//!
//! An id may be a number that fits no type, so it is kept as raw JSON and echoed byte for byte. What is a call, a
//! notification or neither is decided here.

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

use crate::error::WireError;

/// A request, borrowed from the bytes it came in.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// The raw id; none makes it a notification.
    pub(crate) id: Option<&'a str>,
    pub(crate) method: Cow<'a, str>,
    /// An object or an array, if there is any.
    pub(crate) params: Option<&'a str>,
}

/// A value that is not a request, or a request that cannot be called.
#[derive(Debug)]
pub(crate) struct Refusal<'a> {
    /// The raw id to answer with; none means null.
    pub(crate) id: Option<&'a str>,
    pub(crate) error: WireError,
    /// Whether it was a notification, which gets no answer even if it is wrong.
    pub(crate) silent: bool,
}

#[derive(Default)]
struct Members<'a> {
    jsonrpc: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    method: Option<&'a RawValue>,
    params: Option<&'a RawValue>,
    repeated: Option<&'static str>,
}

enum Member {
    Jsonrpc,
    Id,
    Method,
    Params,
    Other,
}

impl<'de> serde::Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Member;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Member, E> {
                Ok(match name {
                    "jsonrpc" => Member::Jsonrpc,
                    "id" => Member::Id,
                    "method" => Member::Method,
                    "params" => Member::Params,
                    _ => Member::Other,
                })
            }
        }

        deserializer.deserialize_identifier(Name)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Members::default();
        while let Some(member) = map.next_key()? {
            let (name, place) = match member {
                Member::Jsonrpc => ("jsonrpc", &mut members.jsonrpc),
                Member::Id => ("id", &mut members.id),
                Member::Method => ("method", &mut members.method),
                Member::Params => ("params", &mut members.params),
                Member::Other => {
                    map.next_value::<serde::de::IgnoredAny>()?;
                    continue;
                }
            };
            if place.replace(map.next_value()?).is_some() {
                members.repeated = Some(name);
            }
        }
        Ok(members)
    }
}

/// Reads a JSON object as a request.
///
/// # Errors
/// -32600 for what is not a request, -32602 for parameters that are neither object nor array.
pub(crate) fn read(json: &str) -> Result<Request<'_>, Refusal<'_>> {
    let refuse = |id, message: &str| Refusal {
        id,
        error: WireError::invalid_request(message),
        silent: false,
    };
    if !json.starts_with('{') {
        return Err(refuse(None, "a request must be a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let members = match deserializer.deserialize_map(MembersVisitor) {
        Ok(members) => members,
        // The framer has accepted the grammar; what is left is a lone surrogate in a name.
        Err(_) => return Err(refuse(None, "the names of the request cannot be read")),
    };
    if let Some(name) = members.repeated {
        return Err(refuse(None, &format!("`{name}` is given twice; give it once")));
    }
    if members
        .jsonrpc
        .is_none_or(|version| string(version).as_deref() != Some("2.0"))
    {
        return Err(refuse(None, "`jsonrpc` must be \"2.0\""));
    }
    let id = members.id.map(RawValue::get);
    if id.is_some_and(|id| !is_id(id)) {
        return Err(refuse(None, "`id` must be a string, a number or null"));
    }
    let Some(method) = members.method.and_then(string) else {
        return Err(refuse(id, "`method` must be a string that names a method"));
    };
    let params = members.params.map(RawValue::get);
    match params.map(|params| params.as_bytes()[0]) {
        None | Some(b'{' | b'[') => Ok(Request { id, method, params }),
        Some(b'n') => Ok(Request {
            id,
            method,
            params: None,
        }),
        Some(_) => Err(Refusal {
            id,
            error: crate::params::not_structured(),
            silent: id.is_none(),
        }),
    }
}

fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    if let Ok(text) = serde_json::from_str::<&str>(raw.get()) {
        return Some(Cow::Borrowed(text));
    }
    serde_json::from_str::<String>(raw.get()).ok().map(Cow::Owned)
}

pub(crate) fn is_id(raw: &str) -> bool {
    matches!(raw.as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9' | b'n'))
}

/// An id as `rpc.cancel` compares it: the text of a string however it is escaped, else the raw JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IdKey {
    Text(String),
    Raw(String),
}

impl IdKey {
    pub(crate) fn of(raw: &str) -> Self {
        match serde_json::from_str::<String>(raw) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Raw(raw.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kept_as_they_came() {
        for id in [
            "1",
            "-1",
            "0",
            "-0",
            "123456789012345678901234567890",
            "1.5",
            "1e400",
            "\"a\"",
            "\"\\u0041\\n\"",
            "\"\"",
            "null",
            "\"\\ud800\"",
        ] {
            let json = format!(r#"{{"jsonrpc":"2.0","id": {id} ,"method":"m"}}"#);
            assert_eq!(read(&json).unwrap().id, Some(id));
        }
        assert_eq!(read(r#"{"jsonrpc":"2.0","method":"m"}"#).unwrap().id, None);
    }

    #[test]
    fn what_is_no_request() {
        for (json, id) in [
            ("1", None),
            ("\"x\"", None),
            ("null", None),
            ("{}", None),
            (r#"{"id":1,"method":"m"}"#, None),
            (r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#, None),
            (r#"{"jsonrpc":2.0,"id":1,"method":"m"}"#, None),
            (r#"{"jsonrpc":"2.0","id":true,"method":"m"}"#, None),
            (r#"{"jsonrpc":"2.0","id":false,"method":"m"}"#, None),
            (r#"{"jsonrpc":"2.0","id":[],"method":"m"}"#, None),
            (r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#, None),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"m"}"#, None),
            (r#"{"jsonrpc":"2.0","id":1}"#, Some("1")),
            (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, Some("1")),
            (r#"{"jsonrpc":"2.0","id":1,"method":null}"#, Some("1")),
            (r#"{"jsonrpc":"2.0","id":1,"method":"\ud800"}"#, Some("1")),
        ] {
            let refusal = read(json).unwrap_err();
            assert_eq!(
                (refusal.error.code, refusal.id, refusal.silent),
                (-32600, id, false),
                "{json}"
            );
        }
    }

    #[test]
    fn params_are_structured() {
        for (params, expected) in [("{}", Some("{}")), ("[1]", Some("[1]")), ("null", None)] {
            let json = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{params}}}"#);
            assert_eq!(read(&json).unwrap().params, expected);
        }
        for params in ["1", "\"x\"", "true", "false", "-1"] {
            let json = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{params}}}"#);
            let refusal = read(&json).unwrap_err();
            assert_eq!(
                (refusal.error.code, refusal.id, refusal.silent),
                (-32602, Some("1"), false)
            );
            let json = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{params}}}"#);
            assert!(read(&json).unwrap_err().silent);
        }
    }

    #[test]
    fn names_may_be_escaped_and_others_are_ignored() {
        let request = read(r#"{"jsonrpc":"2\u002e0","\u0069d":7,"method":"a\/b","extra":[1,{"id":9}]}"#).unwrap();
        assert_eq!((request.id, request.method.as_ref()), (Some("7"), "a/b"));
    }

    #[test]
    fn cancelling_does_not_care_how_a_string_is_escaped() {
        assert_eq!(IdKey::of("\"a\""), IdKey::of("\"\\u0061\""));
        assert_ne!(IdKey::of("1"), IdKey::of("\"1\""));
        assert_ne!(IdKey::of("1"), IdKey::of("-1"));
    }
}
