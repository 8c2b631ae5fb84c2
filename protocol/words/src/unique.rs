//! JSON without repeated keys.
//!
//! serde_json keeps the last of two equal keys and drops the other silently. Whoever wrote a key twice meant two
//! things, so such an object is refused where its content is kept or compared.

use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

use crate::{Metadata, shortened};

/// Any JSON value, none of whose objects has a key twice, at whatever depth.
#[derive(Clone, Debug, PartialEq)]
pub struct UniqueKeys(pub Value);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Value;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("any JSON value")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::from(value))
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(Value::String(value))
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(UniqueKeys(value)) = list.next_element()? {
                    values.push(value);
                }
                Ok(Value::Array(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
                members(map).map(Value::Object)
            }
        }

        deserializer.deserialize_any(Any).map(Self)
    }
}

/// As [`UniqueKeys`], for an object.
struct UniqueObject(Metadata);

impl<'de> Deserialize<'de> for UniqueObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Metadata;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Metadata, A::Error> {
                members(map)
            }
        }

        deserializer.deserialize_map(Object).map(Self)
    }
}

fn members<'de, A: MapAccess<'de>>(mut map: A) -> Result<Metadata, A::Error> {
    let mut members = Map::new();
    while let Some(key) = map.next_key::<String>()? {
        if members.contains_key(&key) {
            return Err(de::Error::custom(format_args!(
                "the key `{}` is given twice; give it once",
                shortened(&key, 60)
            )));
        }
        let UniqueKeys(value) = map.next_value()?;
        members.insert(key, value);
    }
    Ok(members)
}

/// Metadata without doubled keys, for `#[serde(deserialize_with = ...)]`.
///
/// # Errors
/// When it is not an object, or has a key twice.
pub fn unique_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Metadata, D::Error> {
    UniqueObject::deserialize(deserializer).map(|UniqueObject(metadata)| metadata)
}

/// As [`unique_metadata`], where it may be absent.
///
/// # Errors
/// As [`unique_metadata`].
pub fn unique_metadata_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Metadata>, D::Error> {
    let metadata = Option::<UniqueObject>::deserialize(deserializer)?;
    Ok(metadata.map(|UniqueObject(metadata)| metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_without_doubled_keys_is_read_as_it_is() {
        for text in [
            "null",
            "true",
            "-3",
            "18446744073709551615",
            "1.5",
            "\"x\"",
            r#"[1,[],{"a":{"a":[{"a":null}]}}]"#,
            "{}",
        ] {
            let UniqueKeys(value) = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(value, serde_json::from_str::<Value>(text).expect("JSON"));
        }
    }

    #[test]
    fn a_doubled_key_is_named_at_whatever_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"[{"b":{"a":1,"c":2,"a":3}}]"#,
        ] {
            let error = serde_json::from_str::<UniqueKeys>(text).expect_err(text).to_string();
            assert!(error.contains("the key `a` is given twice"), "{error}");
        }
    }
}
