//! The filters of searches, listings and deletions. The store matches with what the wire decodes.

use std::fmt;
use std::marker::PhantomData;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::de::{self, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::time::rfc3339_if_any;
use crate::{Invalid, KnowledgeType, MetadataFilter};

/// Values that one list of a filter, and the list of projects, may have: each is compared with every row.
pub const FILTER_VALUES_MAX: usize = 256;

/// Metadata keys that one filter may have: each is a condition of its own in the query's plan.
pub const METADATA_FILTERS_MAX: usize = 32;

/// A value or a list of values; a list means any of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A single value.
    One(T),
    /// Any of these.
    Many(#[schemars(length(min = 1, max = FILTER_VALUES_MAX))] Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values as a slice.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }

    /// The values as a vector.
    pub fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        }
    }
}

impl<T> From<T> for OneOrMany<T> {
    fn from(value: T) -> Self {
        Self::One(value)
    }
}

// By hand: an untagged enum reports no more than "did not match any variant", which names neither the
// wrong element nor the valid values.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
                T::deserialize(word.into_deserializer()).map(OneOrMany::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMany::Many(values))
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// The conditions that searches, listings and deletions share. All given ones must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Filter {
    /// Only items of these types (`type` on the wire, alias `knowledge_type`).
    #[serde(rename = "type", alias = "knowledge_type", skip_serializing_if = "Option::is_none")]
    pub knowledge_type: Option<OneOrMany<KnowledgeType>>,
    /// Only items of these agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<OneOrMany<String>>,
    /// Only items of these sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<OneOrMany<String>>,
    /// Only items created at this time or later (RFC 3339).
    #[serde(with = "rfc3339_if_any", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub since: Option<DateTime<Utc>>,
    /// Only items created before this time (RFC 3339).
    #[serde(with = "rfc3339_if_any", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub until: Option<DateTime<Utc>>,
    /// Only items whose metadata has these values under these keys.
    #[serde(skip_serializing_if = "MetadataFilter::is_empty")]
    pub metadata: MetadataFilter,
}

impl Filter {
    /// The names that [`Filter`] adds to a method's parameters, in positional order.
    pub const NAMES: &'static [&'static str] = &["type", "agent", "session_id", "since", "until", "metadata"];

    /// Whether there is no condition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            knowledge_type,
            agent,
            session_id,
            since,
            until,
            metadata,
        } = self;
        knowledge_type.is_none()
            && agent.is_none()
            && session_id.is_none()
            && since.is_none()
            && until.is_none()
            && metadata.is_empty()
    }

    /// The types that are asked for; empty means any.
    #[must_use]
    pub fn types(&self) -> &[KnowledgeType] {
        self.knowledge_type.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// The agents that are asked for; empty means any.
    #[must_use]
    pub fn agents(&self) -> &[String] {
        self.agent.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// The sessions that are asked for; empty means any.
    #[must_use]
    pub fn session_ids(&self) -> &[String] {
        self.session_id.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// Refuses more conditions on metadata than a query can compare. The lengths of the lists are in the schema.
    ///
    /// # Errors
    /// Names `metadata` and how many conditions it may have.
    pub fn check(&self) -> Result<(), Invalid> {
        match self.metadata.len() {
            count if count > METADATA_FILTERS_MAX => Err(Invalid::new(
                "metadata",
                format!("`metadata` must be at most {METADATA_FILTERS_MAX} values, this filter has {count}"),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_or_many_names_the_valid_values() {
        let one: OneOrMany<KnowledgeType> = serde_json::from_str("\"issue\"").unwrap();
        assert_eq!(one.as_slice(), [KnowledgeType::Issue]);
        let many: OneOrMany<KnowledgeType> = serde_json::from_str("[\"issue\",\"pattern\"]").unwrap();
        assert_eq!(many.into_vec().len(), 2);
        let error = serde_json::from_str::<OneOrMany<KnowledgeType>>("\"bug\"")
            .unwrap_err()
            .to_string();
        assert!(error.contains("decision"), "{error}");
    }

    #[test]
    fn times_are_decoded_once_and_written_as_they_were_meant() {
        for (given, written) in [
            ("2026-01-31", "2026-01-31T00:00:00.000Z"),
            ("2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00.000Z"),
            ("2026-01-31T12:00:00.0005Z", "2026-01-31T12:00:00.000500Z"),
        ] {
            let filter: Filter = serde_json::from_value(json!({"since": given, "until": null})).unwrap();
            assert!(!filter.is_empty() && filter.until.is_none());
            assert_eq!(serde_json::to_value(&filter).unwrap(), json!({"since": written}));
        }
        let error = serde_json::from_value::<Filter>(json!({"until": "secret"})).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("RFC 3339") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn there_are_no_more_conditions_on_metadata_than_a_query_compares() {
        let of = |count: usize| Filter {
            metadata: (0..count).map(|number| (format!("k{number}"), json!(1))).collect(),
            ..Filter::default()
        };
        of(METADATA_FILTERS_MAX).check().unwrap();
        let error = of(METADATA_FILTERS_MAX + 1).check().unwrap_err();
        assert_eq!(error.parameter, "metadata");
        assert!(error.message.contains("32") && error.message.contains("33"), "{error}");
    }
}
