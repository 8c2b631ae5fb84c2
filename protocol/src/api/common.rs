//! Types that several methods share.

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::de::{self, IntoDeserializer, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use super::MetadataFilter;
use crate::error::WireError;

/// Free-form facts about an item: a JSON object.
pub type Metadata = serde_json::Map<String, serde_json::Value>;

/// Values that one list of a filter, and the list of projects, may have: each is compared with every row.
pub const FILTER_VALUES_MAX: usize = 256;

/// Metadata keys that one filter may have: each is a condition of its own in the query's plan.
pub const METADATA_FILTERS_MAX: usize = 32;

/// The project of a call that names none.
pub const DEFAULT_PROJECT: &str = "default";

/// A project that a call over several projects could not read or work on; the others were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectError {
    /// The project.
    pub project_id: String,
    /// The code of the error that a call for this project alone would have got.
    pub code: i32,
    /// Its message.
    pub message: String,
}

/// What kind of knowledge an item holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KnowledgeType {
    /// A decision and its reasons.
    Decision,
    /// How the system is built.
    Architecture,
    /// How something was done in code.
    Implementation,
    /// Settings and their effects.
    Configuration,
    /// Where a credential is kept (never the credential).
    Credential,
    /// A problem and what became of it.
    Issue,
    /// Something that recurs.
    Pattern,
    /// Anything else.
    #[default]
    General,
    /// Written by tools about themselves.
    System,
}

/// Gives an enum of plain words its list, `as_str`, `Display` and `FromStr`.
macro_rules! words {
    ($type:ident, $what:literal, [$($variant:ident = $word:literal),* $(,)?]) => {
        impl $type {
            /// Every value, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value as it stands on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|value| value.as_str() == word).ok_or_else(|| UnknownWord {
                    what: $what,
                    valid: &[$($word),*],
                })
            }
        }
    };
}

/// A word that is none of an enum's values. The word itself is left out: it may be long or secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what}; use one of: {}", valid.join(", "))]
pub struct UnknownWord {
    what: &'static str,
    valid: &'static [&'static str],
}

impl UnknownWord {
    /// The words that would have been accepted.
    #[must_use]
    pub fn valid(&self) -> &'static [&'static str] {
        self.valid
    }
}

words!(
    KnowledgeType,
    "type",
    [
        Decision = "decision",
        Architecture = "architecture",
        Implementation = "implementation",
        Configuration = "configuration",
        Credential = "credential",
        Issue = "issue",
        Pattern = "pattern",
        General = "general",
        System = "system",
    ]
);

/// Which evidence a search uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SearchMode {
    /// Meaning and keywords, fused.
    #[default]
    Hybrid,
    /// Meaning alone.
    Vector,
    /// Keywords alone; needs no model.
    Text,
}

words!(
    SearchMode,
    "mode",
    [Hybrid = "hybrid", Vector = "vector", Text = "text"]
);

/// What a store does when the same content is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDuplicate {
    /// Answers with the first item's id.
    #[default]
    Return,
    /// Stores it again.
    Store,
}

words!(OnDuplicate, "on_duplicate", [Return = "return", Store = "store"]);

/// The order of a listing, by creation time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Newest first.
    #[default]
    Newest,
    /// Oldest first.
    Oldest,
}

words!(Order, "order", [Newest = "newest", Oldest = "oldest"]);

/// What an acknowledgement of a write promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// It survives a loss of power.
    #[default]
    Full,
    /// It survives the end of the daemon, not of the machine.
    Fast,
}

words!(Durability, "durability", [Full = "full", Fast = "fast"]);

/// A value or a list of values; a list means any of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A single value.
    One(T),
    /// Any of these.
    Many(Vec<T>),
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
pub struct Filters {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only items created before this time (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Only items whose metadata has these values under these keys.
    #[serde(skip_serializing_if = "MetadataFilter::is_empty")]
    pub metadata: MetadataFilter,
}

impl Filters {
    /// The names that [`Filters`] adds to a method's parameters, in positional order.
    pub const NAMES: &'static [&'static str] = &["type", "agent", "session_id", "since", "until", "metadata"];

    /// Whether nothing is asked for.
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

    /// The types asked for; empty means any.
    #[must_use]
    pub fn types(&self) -> &[KnowledgeType] {
        self.knowledge_type.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// The agents asked for; empty means any.
    #[must_use]
    pub fn agents(&self) -> &[String] {
        self.agent.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// The sessions asked for; empty means any.
    #[must_use]
    pub fn session_ids(&self) -> &[String] {
        self.session_id.as_ref().map_or(&[], OneOrMany::as_slice)
    }

    /// Refuses times that cannot be read.
    ///
    /// # Errors
    /// -32602 naming `since` or `until`.
    pub fn check(&self) -> Result<(), WireError> {
        let lists = [
            ("type", self.types().len(), FILTER_VALUES_MAX),
            ("agent", self.agents().len(), FILTER_VALUES_MAX),
            ("session_id", self.session_ids().len(), FILTER_VALUES_MAX),
            ("metadata", self.metadata.len(), METADATA_FILTERS_MAX),
        ];
        for (name, count, max) in lists {
            if count > max {
                return Err(out_of_range(
                    name,
                    format!("at most {max} values, this filter has {count}"),
                ));
            }
        }
        for (name, value) in [("since", &self.since), ("until", &self.until)] {
            if let Some(text) = value {
                parse_time(name, text)?;
            }
        }
        Ok(())
    }
}

/// A point in a project's past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a version number or an RFC 3339 time")]
pub enum AsOf {
    /// A version, as results report it.
    Version(u64),
    /// A time (RFC 3339).
    Time(String),
}

/// Reads a time: RFC 3339, or a date alone, which means its first moment in UTC.
///
/// # Errors
/// -32602 naming `parameter` and the form that is expected.
pub fn parse_time(parameter: &str, text: &str) -> Result<DateTime<Utc>, WireError> {
    let full = if text.len() == 10 {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    DateTime::parse_from_rfc3339(&full)
        .map(|time| time.with_timezone(&Utc))
        .map_err(|_| {
            WireError::invalid_params(
                parameter,
                format!("`{parameter}` must be a time in RFC 3339, such as 2026-01-31T12:00:00.000Z, or a date"),
            )
        })
}

/// Writes a time as results show it: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn format_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Refuses what is no project name: `[A-Za-z0-9][A-Za-z0-9._-]{0,99}`. A name becomes a directory, so
/// nothing that could leave its place gets past here.
///
/// # Errors
/// -32602 naming `parameter` and the rule.
pub fn check_project_name(parameter: &str, name: &str) -> Result<(), WireError> {
    let bytes = name.as_bytes();
    let starts_well = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    let rest_is_well = bytes
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if starts_well && rest_is_well && bytes.len() <= 100 {
        return Ok(());
    }
    Err(WireError::invalid_params(
        parameter,
        format!(
            "`{parameter}` must be a project name: 1 to 100 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
        ),
    ))
}

/// -32602 for a number out of its range.
pub(crate) fn out_of_range(parameter: &str, range: impl fmt::Display) -> WireError {
    WireError::invalid_params(parameter, format!("`{parameter}` must be {range}"))
}

pub(crate) fn is_false(flag: &bool) -> bool {
    !*flag
}

pub(crate) fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_agree_with_serde() {
        for value in KnowledgeType::ALL {
            assert_eq!(serde_json::to_string(value).unwrap(), format!("\"{value}\""));
            assert_eq!(value.as_str().parse::<KnowledgeType>().unwrap(), *value);
        }
        assert_eq!(KnowledgeType::ALL.len(), 9);
        let refusal = "Decision".parse::<KnowledgeType>().unwrap_err().to_string();
        assert!(
            refusal.contains("decision, architecture") && !refusal.contains("Decision"),
            "{refusal}"
        );
    }

    #[test]
    fn project_names() {
        for good in ["default", "a", "A.b_c-9", &"x".repeat(100)] {
            check_project_name("project_id", good).unwrap();
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-a",
            "_a",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(101),
        ] {
            let error = check_project_name("project_id", bad).unwrap_err();
            assert_eq!(error.data.parameter.as_deref(), Some("project_id"), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(
            format_time(parse_time("since", "2026-01-31T13:00:00+01:00").unwrap()),
            "2026-01-31T12:00:00.000Z"
        );
        assert_eq!(
            format_time(parse_time("since", "2026-01-31").unwrap()),
            "2026-01-31T00:00:00.000Z"
        );
        for bad in ["yesterday", "2026-02-31", "", "2026-01-31T12:00:00", "äöüäö"] {
            assert_eq!(parse_time("since", bad).unwrap_err().code, -32602, "{bad}");
        }
    }

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
}
