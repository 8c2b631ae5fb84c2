//! Enums of plain words.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::UnknownWord;

/// Gives an enum of plain words its list, `as_str`, `Display` and `FromStr`.
macro_rules! words {
    ($type:ident, $what:literal, [$($variant:ident = $word:literal),* $(,)?]) => {
        impl $type {
            /// Every value, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The value as it stands on the wire and on disk.
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
    /// A problem and how it was solved, if it was.
    Issue,
    /// Something that recurs.
    Pattern,
    /// Anything else.
    #[default]
    General,
    /// Written by tools about themselves.
    System,
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

impl KnowledgeType {
    /// The type of a stored word. One that a later version stored is general.
    #[must_use]
    pub fn of_stored(word: &str) -> Self {
        word.parse().unwrap_or_default()
    }
}

/// How a search finds items.
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

/// What a store does if the same content is stored already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDuplicate {
    /// Answers with the first item's id.
    #[default]
    Return,
    /// Stores the content again.
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

/// Whether a call that failed was carried out: `false`, `true` or `"unknown"` on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executed {
    /// Certainly not.
    No,
    /// Certainly; only the answer is late.
    Yes,
    /// Nobody knows: it may have been.
    Unknown,
}

impl Executed {
    /// What is known of a call that was started and never answered.
    #[must_use]
    pub const fn unanswered(writes: bool) -> Self {
        if writes { Self::Unknown } else { Self::No }
    }
}

impl Serialize for Executed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_bool(false),
            Self::Yes => serializer.serialize_bool(true),
            Self::Unknown => serializer.serialize_str("unknown"),
        }
    }
}

impl<'de> Deserialize<'de> for Executed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Bool(false) => Self::No,
            serde_json::Value::Bool(true) => Self::Yes,
            _ => Self::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees_with_serde<T: Copy + PartialEq + fmt::Debug + fmt::Display + Serialize + FromStr<Err = UnknownWord>>(
        all: &[T],
    ) {
        for value in all {
            assert_eq!(serde_json::to_string(value).unwrap(), format!("\"{value}\""));
            assert_eq!(value.to_string().parse::<T>().unwrap(), *value);
        }
    }

    #[test]
    fn words_agree_with_serde() {
        agrees_with_serde(KnowledgeType::ALL);
        agrees_with_serde(SearchMode::ALL);
        agrees_with_serde(OnDuplicate::ALL);
        agrees_with_serde(Order::ALL);
        agrees_with_serde(Durability::ALL);
        assert_eq!(KnowledgeType::ALL.len(), 9);
    }

    #[test]
    fn an_unknown_word_is_told_the_known_ones_and_never_repeated() {
        let error = "Decision".parse::<KnowledgeType>().unwrap_err();
        let refusal = error.to_string();
        assert!(
            refusal.contains("decision, architecture") && !refusal.contains("Decision"),
            "{refusal}"
        );
        assert_eq!(error.valid().len(), 9);
    }

    #[test]
    fn a_type_of_a_later_version_is_general() {
        assert_eq!(KnowledgeType::of_stored("issue"), KnowledgeType::Issue);
        assert_eq!(KnowledgeType::of_stored("recipe"), KnowledgeType::General);
    }
}
