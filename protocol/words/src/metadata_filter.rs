//! The filter by metadata: conditions of which all must hold, several on one key included.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::{METADATA_FILTERS_MAX, Metadata, UniqueKeys};

/// Conditions on metadata, all of which must hold: under each key stands the value, alone or in a list.
///
/// On the wire it is an object, or a list of objects where one key has several values:
/// `[{"tag":"a"},{"tag":"b"}]` is met by an item with `{"tag":["a","b"]}`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetadataFilter(Vec<(String, Value)>);

impl MetadataFilter {
    /// Whether there is no condition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many conditions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The conditions: key and value.
    pub fn iter(&self) -> impl Iterator<Item = &(String, Value)> {
        self.0.iter()
    }
}

/// The term that a condition on metadata asks for: `key=value`, the value as JSON writes it. An item has one for each
/// key of its metadata, and one for each element of a list that is neither a list nor an object.
///
/// The keys of objects are in the order of their bytes, so that objects are equal whatever order they were written in.
///
/// Stored rows hold these terms, so the format is part of what lies on disk.
#[must_use]
pub fn metadata_term(key: &str, value: &Value) -> String {
    format!("{key}={}", in_order(value))
}

/// A term as [`metadata_term`] writes it now, of one that was written when keys of objects still kept the order of
/// their caller. None where it is the same.
#[must_use]
pub fn term_in_order(term: &str) -> Option<String> {
    // A key may have this sign in it too, and then what is behind the first is mostly no JSON.
    let values = term.match_indices('=').map(|(at, _)| (&term[..at], &term[at + 1..]));
    let mut objects = values.filter(|(_, value)| value.starts_with(['{', '[']));
    let (key, value) = objects.find_map(|(key, json)| Some((key, serde_json::from_str(json).ok()?)))?;
    Some(metadata_term(key, &value)).filter(|ordered| ordered != term)
}

/// A value with the keys of its objects in the order of their bytes.
fn in_order(value: &Value) -> Cow<'_, Value> {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<(&String, &Value)> = object.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            let entries = entries
                .into_iter()
                .map(|(key, value)| (key.clone(), in_order(value).into_owned()));
            Cow::Owned(Value::Object(entries.collect()))
        }
        Value::Array(values) => Cow::Owned(values.iter().map(|value| in_order(value).into_owned()).collect()),
        _ => Cow::Borrowed(value),
    }
}

impl FromIterator<(String, Value)> for MetadataFilter {
    /// The same condition twice is one.
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(conditions: I) -> Self {
        let mut filter = Self::default();
        for condition in conditions {
            if !filter.0.contains(&condition) {
                filter.0.push(condition);
            }
        }
        filter
    }
}

impl IntoIterator for MetadataFilter {
    type Item = (String, Value);
    type IntoIter = std::vec::IntoIter<(String, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Serialize for MetadataFilter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut objects = vec![Metadata::new()];
        for (key, value) in &self.0 {
            match objects.iter_mut().find(|object| !object.contains_key(key)) {
                Some(object) => drop(object.insert(key.clone(), value.clone())),
                None => objects.push(Metadata::from_iter([(key.clone(), value.clone())])),
            }
        }
        match objects.as_slice() {
            // As all daemons understand it.
            [object] => object.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

/// The members of one object. A key that occurs twice is two conditions: neither is dropped.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of keys and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some((key, UniqueKeys(value))) = map.next_entry()? {
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl<'de> Deserialize<'de> for MetadataFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = MetadataFilter;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of keys and values, or a list of such objects")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MetadataFilter, A::Error> {
                let Members(members) = Members::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(members.into_iter().collect())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<MetadataFilter, A::Error> {
                let mut conditions = Vec::new();
                while let Some(Members(members)) = list.next_element()? {
                    if members.is_empty() {
                        return Err(de::Error::custom(
                            "an empty object in the list is not a condition; leave it out",
                        ));
                    }
                    conditions.extend(members);
                }
                if conditions.is_empty() {
                    return Err(de::Error::custom("an empty list is not a condition; leave it out"));
                }
                Ok(conditions.into_iter().collect())
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for MetadataFilter {
    fn schema_name() -> Cow<'static, str> {
        "MetadataFilter".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Conditions on metadata, all of which must hold: under each key stands the value, alone \
                or in a list. An object, or a list of objects where one key has several values; at most 32 conditions \
                in all.",
            "anyOf": [
                { "type": "object", "minProperties": 1, "maxProperties": METADATA_FILTERS_MAX },
                {
                    "type": "array",
                    "items": { "type": "object", "minProperties": 1 },
                    "minItems": 1,
                    "maxItems": METADATA_FILTERS_MAX,
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> MetadataFilter {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn written(filter: &MetadataFilter) -> Value {
        serde_json::to_value(filter).expect("serialises")
    }

    #[test]
    fn one_value_for_each_key_is_an_object() {
        assert_eq!(written(&read("{}")), json!({}));
        assert_eq!(written(&read(r#"{"a":1,"b":["x"]}"#)), json!({"a": 1, "b": ["x"]}));
    }

    #[test]
    fn no_condition_is_dropped_where_a_key_has_several_values() {
        let both = read(r#"[{"tag":"a","n":1},{"tag":"b"}]"#);
        assert_eq!(both.len(), 3);
        assert_eq!(written(&both), json!([{"tag": "a", "n": 1}, {"tag": "b"}]));
        assert_eq!(read(r#"{"tag":"a","tag":"b","n":1}"#).len(), 3);
        assert_eq!(written(&read(r#"[{"tag":"a"},{"tag":"a"}]"#)), json!({"tag": "a"}));
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for text in [
            "[]",
            "[{}]",
            r#"[{"a":1},{}]"#,
            "null",
            "\"a=1\"",
            "[[]]",
            "[1]",
            r#"{"a":{"b":1,"b":2}}"#,
        ] {
            assert!(serde_json::from_str::<MetadataFilter>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn objects_are_equal_whatever_the_order_of_their_keys() {
        let one: Value = serde_json::from_str(r#"{"b":[{"y":1,"x":null}],"a":"="}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"a":"=","b":[{"x":null,"y":1}]}"#).unwrap();
        let term = r#"k={"a":"=","b":[{"x":null,"y":1}]}"#;
        assert_eq!(metadata_term("k", &one), term);
        assert_eq!(metadata_term("k", &other), term);
        assert_ne!(metadata_term("k", &json!([2, 1])), metadata_term("k", &json!([1, 2])));
    }

    #[test]
    fn terms_of_before_are_put_in_order() {
        assert_eq!(
            term_in_order(r#"k={"b":1,"a":2}"#).as_deref(),
            Some(r#"k={"a":2,"b":1}"#)
        );
        assert_eq!(
            term_in_order(r#"a=b={"b":1,"a":2}"#).as_deref(),
            Some(r#"a=b={"a":2,"b":1}"#)
        );
        for same in ["k=1", "k=\"{\"", r#"k={"a":2,"b":1}"#, "k=[2,1]", "k", "", r#"k={"a":"#] {
            assert_eq!(term_in_order(same), None, "{same}");
        }
    }
}
