//! Items, as callers give them, as the store keeps them and as results show them. All types that name the fields of an
//! item are in this file, so that a new field is added here first and the compiler finds most of the rest.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::time::rfc3339;
use crate::{KEY_BYTES_MAX, KnowledgeType, Metadata, OnDuplicate, unique_metadata, unique_metadata_if_any};

/// The content of an item, as its caller gave it: all that an update can change and a revision keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// The whole text; not blank.
    pub text: String,
    /// What kind of knowledge it is.
    pub knowledge_type: KnowledgeType,
    /// The agent that learned it.
    pub agent: Option<String>,
    /// The session in which it was learned.
    pub session_id: Option<String>,
    /// Facts about it.
    pub metadata: Metadata,
}

/// Parameters of `knowledge.store`, and of each item of `knowledge.store_batch`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoreParams {
    /// What to keep; at most 1 MB unless configured otherwise, never blank.
    #[schemars(length(min = 1))]
    pub text: String,
    /// What kind of knowledge it is.
    #[serde(default, rename = "type", alias = "knowledge_type")]
    pub knowledge_type: KnowledgeType,
    /// The agent that learned it.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The session in which it was learned.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// Facts about it; at most 64 KB as JSON unless configured otherwise. No object may hold a key twice.
    #[serde(
        default,
        skip_serializing_if = "Metadata::is_empty",
        deserialize_with = "unique_metadata"
    )]
    pub metadata: Metadata,
    /// The id to use, unique in its project; generated if absent.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Repeating a store with the same key stores once.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// What to do if the same content is stored already.
    #[serde(default)]
    pub on_duplicate: OnDuplicate,
}

impl StoreParams {
    /// The content of the item.
    #[must_use]
    pub fn into_content(self) -> Content {
        Content {
            text: self.text,
            knowledge_type: self.knowledge_type,
            agent: self.agent,
            session_id: self.session_id,
            metadata: self.metadata,
        }
    }
}

/// Parameters of `knowledge.update`. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateParams {
    /// The id of the item.
    pub id: String,
    /// The new text; it is embedded again.
    #[schemars(length(min = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The new type.
    #[serde(
        default,
        rename = "type",
        alias = "knowledge_type",
        skip_serializing_if = "Option::is_none"
    )]
    pub knowledge_type: Option<KnowledgeType>,
    /// The new agent.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The new session.
    #[schemars(length(min = 1, max = KEY_BYTES_MAX))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The new metadata; it replaces the old as a whole.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "unique_metadata_if_any"
    )]
    pub metadata: Option<Metadata>,
}

impl UpdateParams {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self {
            id: _,
            text,
            knowledge_type,
            agent,
            session_id,
            metadata,
        } = self;
        text.is_none() && knowledge_type.is_none() && agent.is_none() && session_id.is_none() && metadata.is_none()
    }

    /// Makes the changes.
    pub fn apply_to(&self, content: &mut Content) {
        fn change<T: Clone>(field: &mut T, new: Option<&T>) {
            if let Some(new) = new {
                field.clone_from(new);
            }
        }

        let Self {
            id: _,
            text,
            knowledge_type,
            agent,
            session_id,
            metadata,
        } = self;
        change(&mut content.text, text.as_ref());
        change(&mut content.knowledge_type, knowledge_type.as_ref());
        change(&mut content.metadata, metadata.as_ref());
        // An update can set these, and cannot remove them.
        for (field, new) in [(&mut content.agent, agent), (&mut content.session_id, session_id)] {
            if new.is_some() {
                field.clone_from(new);
            }
        }
    }
}

/// An item as `list` and `get` show it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Item {
    /// The item's id.
    pub id: String,
    /// The item's text.
    pub text: String,
    /// What kind of knowledge it is.
    #[serde(rename = "type")]
    pub knowledge_type: KnowledgeType,
    /// The item's project.
    pub project_id: String,
    /// The session in which it was learned.
    pub session_id: Option<String>,
    /// The agent that learned it.
    pub agent: Option<String>,
    /// When the item was created.
    #[serde(with = "rfc3339")]
    #[schemars(with = "String")]
    pub timestamp: DateTime<Utc>,
    /// When the item last changed.
    #[serde(with = "rfc3339")]
    #[schemars(with = "String")]
    pub updated_at: DateTime<Utc>,
    /// Facts about it.
    #[serde(default)]
    pub metadata: Metadata,
    /// How many passages its text is split into.
    #[serde(default)]
    pub passages: u32,
}

impl Item {
    /// The content of the item.
    #[must_use]
    pub fn content(&self) -> Content {
        Content {
            text: self.text.clone(),
            knowledge_type: self.knowledge_type,
            agent: self.agent.clone(),
            session_id: self.session_id.clone(),
            metadata: self.metadata.clone(),
        }
    }

    /// One of its revisions: `number`, current from version `valid_from` on and, if it was replaced, up to `valid_to`.
    #[must_use]
    pub fn into_revision(self, number: u64, valid_from: u64, valid_to: Option<u64>) -> Revision {
        Revision {
            revision: number,
            text: self.text,
            knowledge_type: self.knowledge_type,
            agent: self.agent,
            session_id: self.session_id,
            metadata: self.metadata,
            updated_at: self.updated_at,
            valid_from,
            valid_to,
        }
    }

    /// A hit on this item, which nothing has scored yet.
    #[must_use]
    pub fn into_hit(self, passage: Passage) -> SearchHit {
        SearchHit {
            id: self.id,
            text: self.text,
            passage,
            knowledge_type: self.knowledge_type,
            project_id: self.project_id,
            session_id: self.session_id,
            agent: self.agent,
            timestamp: self.timestamp,
            metadata: self.metadata,
            score: 0.0,
            similarity: None,
            bm25: None,
            explain: None,
        }
    }
}

/// One revision of an item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Revision {
    /// The number of the revision, from 1.
    pub revision: u64,
    /// The text it had.
    pub text: String,
    /// The type it had.
    #[serde(rename = "type")]
    pub knowledge_type: KnowledgeType,
    /// The agent it had.
    pub agent: Option<String>,
    /// The session it had.
    pub session_id: Option<String>,
    /// The metadata it had.
    #[serde(default)]
    pub metadata: Metadata,
    /// When the revision was written.
    #[serde(with = "rfc3339")]
    #[schemars(with = "String")]
    pub updated_at: DateTime<Utc>,
    /// The version from which it was current.
    pub valid_from: u64,
    /// The version from which it was no longer current; null if it still is.
    pub valid_to: Option<u64>,
}

/// The part of an item that matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Passage {
    /// The text of the passage.
    pub text: String,
    /// Where the passage begins in the item's text, in bytes.
    pub start: u64,
    /// Where the passage ends in the item's text, in bytes.
    pub end: u64,
    /// The number of the passage in the item, from 0.
    pub index: u32,
}

impl Passage {
    /// The passage with its place in bytes of UTF-8, of one whose place counts the Unicode scalar values of `text`, the
    /// item's whole text. What lies behind the end of the text becomes the end.
    #[must_use]
    pub fn in_bytes_of(self, text: &str) -> Self {
        if text.is_ascii() {
            return self; // Characters and bytes are the same.
        }
        let byte_of = |position: u64| {
            let nth = usize::try_from(position).unwrap_or(usize::MAX);
            text.char_indices().nth(nth).map_or(text.len(), |(byte, _)| byte) as u64
        };
        Self {
            start: byte_of(self.start),
            end: byte_of(self.end),
            ..self
        }
    }
}

/// One hit of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SearchHit {
    /// The item's id.
    pub id: String,
    /// The item's whole text.
    pub text: String,
    /// The passage that matched best.
    pub passage: Passage,
    /// What kind of knowledge it is.
    #[serde(rename = "type")]
    pub knowledge_type: KnowledgeType,
    /// The item's project.
    pub project_id: String,
    /// The session in which it was learned.
    pub session_id: Option<String>,
    /// The agent that learned it.
    pub agent: Option<String>,
    /// When the item was created.
    #[serde(with = "rfc3339")]
    #[schemars(with = "String")]
    pub timestamp: DateTime<Utc>,
    /// Facts about it.
    #[serde(default)]
    pub metadata: Metadata,
    /// The fused score, 0 to 1, higher is better.
    pub score: f32,
    /// The cosine similarity of query and passage; null if the search by meaning did not find it.
    pub similarity: Option<f32>,
    /// The keyword score; null if the search by keywords did not find it.
    pub bm25: Option<f32>,
    /// How the score was computed, if `explain` was true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explain: Option<serde_json::Value>,
}

/// An item as a file holds it. Absent fields get the defaults of `knowledge.store`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its whole text.
    pub text: String,
    /// Its id.
    #[serde(default)]
    pub id: Option<String>,
    /// What kind of knowledge it is.
    #[serde(default, rename = "type", alias = "knowledge_type")]
    pub knowledge_type: Option<KnowledgeType>,
    /// The session in which it was learned.
    #[serde(default)]
    pub session_id: Option<String>,
    /// The agent that learned it.
    #[serde(default)]
    pub agent: Option<String>,
    /// When it was created; read by the import, which names it when it is wrong.
    #[serde(default)]
    pub timestamp: Option<String>,
    /// When it last changed.
    #[serde(default)]
    pub updated_at: Option<String>,
    /// Facts about it.
    #[serde(default, deserialize_with = "unique_metadata_if_any")]
    pub metadata: Option<Metadata>,
    /// Its old project; the caller chooses the new one.
    #[serde(default, rename = "project_id")]
    _project_id: IgnoredAny,
    /// How many passages it had; its text is split again.
    #[serde(default, rename = "passages")]
    _passages: IgnoredAny,
}

impl Record {
    /// The item as `knowledge.store` takes it; its times stay behind.
    #[must_use]
    pub fn into_params(self) -> StoreParams {
        StoreParams {
            text: self.text,
            knowledge_type: self.knowledge_type.unwrap_or_default(),
            agent: self.agent,
            session_id: self.session_id,
            metadata: self.metadata.unwrap_or_default(),
            id: self.id,
            idempotency_key: None,
            on_duplicate: OnDuplicate::Return,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item() -> Item {
        Item {
            id: "issue-1-ab".to_owned(),
            text: "a text".to_owned(),
            knowledge_type: KnowledgeType::Issue,
            project_id: "web".to_owned(),
            session_id: None,
            agent: Some("a".to_owned()),
            timestamp: DateTime::from_timestamp_millis(1_795_362_864_593).unwrap(),
            updated_at: DateTime::from_timestamp_millis(1_795_362_864_600).unwrap(),
            metadata: Metadata::from_iter([("k".to_owned(), json!(1))]),
            passages: 1,
        }
    }

    #[test]
    fn items_stand_on_the_wire_member_by_member_as_they_always_have() {
        let shown = serde_json::to_string(&item()).unwrap();
        assert_eq!(
            shown,
            r#"{"id":"issue-1-ab","text":"a text","type":"issue","project_id":"web","session_id":null,"agent":"a","timestamp":"2026-11-22T15:54:24.593Z","updated_at":"2026-11-22T15:54:24.600Z","metadata":{"k":1},"passages":1}"#
        );
        assert_eq!(serde_json::from_str::<Item>(&shown).unwrap(), item());

        let revision = item().into_revision(2, 5, Some(9));
        assert_eq!(
            serde_json::to_string(&revision).unwrap(),
            r#"{"revision":2,"text":"a text","type":"issue","agent":"a","session_id":null,"metadata":{"k":1},"updated_at":"2026-11-22T15:54:24.600Z","valid_from":5,"valid_to":9}"#
        );
        let passage = Passage {
            text: "text".to_owned(),
            start: 2,
            end: 6,
            index: 0,
        };
        assert_eq!(
            serde_json::to_string(&item().into_hit(passage)).unwrap(),
            r#"{"id":"issue-1-ab","text":"a text","passage":{"text":"text","start":2,"end":6,"index":0},"type":"issue","project_id":"web","session_id":null,"agent":"a","timestamp":"2026-11-22T15:54:24.593Z","metadata":{"k":1},"score":0.0,"similarity":null,"bm25":null}"#
        );
    }

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let before = item().content();
        let mut content = before.clone();
        UpdateParams::default().apply_to(&mut content);
        assert_eq!(content, before);
        assert!(UpdateParams::default().is_empty());

        let update: UpdateParams =
            serde_json::from_value(json!({"id": "issue-1-ab", "type": "pattern", "session_id": "s", "metadata": {}}))
                .unwrap();
        assert!(!update.is_empty());
        update.apply_to(&mut content);
        let expected = Content {
            knowledge_type: KnowledgeType::Pattern,
            session_id: Some("s".to_owned()),
            metadata: Metadata::new(),
            ..before
        };
        assert_eq!(content, expected);
    }

    #[test]
    fn what_is_shown_of_an_item_can_be_stored_again() {
        let record: Record = serde_json::from_value(serde_json::to_value(item()).unwrap()).unwrap();
        assert_eq!(record.timestamp.as_deref(), Some("2026-11-22T15:54:24.593Z"));
        let params = record.into_params();
        assert_eq!(params.id.as_deref(), Some("issue-1-ab"));
        assert_eq!(params.into_content(), item().content());
        assert!(serde_json::from_value::<Record>(json!({"text": "x", "txet": "y"})).is_err());
    }

    #[test]
    fn places_in_characters_become_places_in_bytes() {
        for text in ["", "plain", "größe", "状态页", "a🚀b", "e\u{301}\r\n…"] {
            let characters: Vec<char> = text.chars().collect();
            for start in 0..=characters.len() {
                for end in start..=characters.len() {
                    let part: String = characters[start..end].iter().collect();
                    let passage = Passage {
                        text: part.clone(),
                        start: start as u64,
                        end: end as u64,
                        index: 0,
                    };
                    let passage = passage.in_bytes_of(text);
                    assert_eq!(text[passage.start as usize..passage.end as usize], part);
                }
            }
        }
    }
}
