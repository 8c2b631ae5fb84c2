//! The words of the domain: projects, items, filters, searches. Those that the wire has too are `ccod-words`'.
//!
//! Requests arrive here already decoded but not yet trusted: every constructor checks what it is given, and
//! names the parameter of the wire when it refuses.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use ccod_words::{
    Content, Filter, Item, KnowledgeType, OnDuplicate, OneOrMany, Order, PROBE_PREFIX, Passage, ProjectName,
    SearchMode, UpdateParams, format_time, metadata_term, parse_time, term_in_order,
};

pub use crate::clock::now_ms;
use crate::error::{KnowledgeError, KnowledgeResult};

/// A name of the daemon's own, for the project of one health probe.
pub fn probe_project() -> ProjectName {
    ProjectName::of_probe(rand::random())
}

/// An item to store, checked.
#[derive(Clone, Debug)]
pub struct NewItem {
    /// What it says.
    pub content: Content,
    /// The id, where the caller chose one.
    pub id: Option<String>,
    /// Makes a retry harmless.
    pub idempotency_key: Option<String>,
    /// What to do when the content is there already.
    pub on_duplicate: OnDuplicate,
    /// When it was created.
    pub timestamp: DateTime<Utc>,
    /// When it was last changed, for what comes from elsewhere; the time of the commit if absent.
    pub updated_at: Option<DateTime<Utc>>,
}

impl NewItem {
    /// Identifies the content: SHA-256 over type, agent and text, each with its length, as 64 hex digits. The
    /// project is not part of it, since every project has its own table.
    pub fn content_hash(&self) -> String {
        let Content {
            knowledge_type,
            agent,
            text,
            ..
        } = &self.content;
        content_hash(*knowledge_type, agent.as_deref(), text)
    }

    /// The id that the item gets when the caller chose none: `<type>-<milliseconds>-<8 hex>`.
    pub fn generated_id(&self) -> String {
        let suffix: u32 = rand::random();
        format!(
            "{}-{}-{suffix:08x}",
            self.content.knowledge_type,
            self.timestamp.timestamp_millis()
        )
    }
}

/// See [`NewItem::content_hash`].
pub(crate) fn content_hash(kind: KnowledgeType, agent: Option<&str>, text: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [kind.as_str(), agent.unwrap_or(""), text] {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").ok();
            text
        })
}

/// Names one deletion, so that it can be undone: the commits that closed the items, and when. The time tells a
/// deletion from others in the same commit, and from one of another history that had the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// The project.
    pub project: ProjectName,
    /// The first commit.
    pub sequence: i64,
    /// The last: a deletion of very many items is cut into several, with no other between them.
    pub last: i64,
    /// When its items were closed; the same time in all of its commits.
    pub at: DateTime<Utc>,
}

impl Deletion {
    /// The undo token; opaque to callers: hexadecimal of `<project>/<commit>/<milliseconds>`, and of
    /// `<project>/<first commit>/<milliseconds>/<last commit>` where there are several.
    pub fn token(&self) -> String {
        let mut plain = format!("{}/{}/{}", self.project, self.sequence, self.at.timestamp_millis());
        if self.last != self.sequence {
            plain.push_str(&format!("/{}", self.last));
        }
        hex(plain.as_bytes())
    }

    /// Reads an undo token.
    pub fn parse(token: &str) -> KnowledgeResult<Self> {
        let parse = || {
            let plain = String::from_utf8(unhex(token)?).ok()?;
            let mut parts = plain.split('/');
            let project = ProjectName::parse(parts.next()?, "undo_token").ok()?;
            let sequence = parts.next()?.parse().ok()?;
            let at = DateTime::from_timestamp_millis(parts.next()?.parse().ok()?)?;
            let last = match parts.next() {
                None => sequence,
                Some(last) => last.parse().ok().filter(|last| *last > sequence)?,
            };
            let deletion = Self {
                project,
                sequence,
                last,
                at,
            };
            parts.next().is_none().then_some(deletion)
        };
        parse().ok_or_else(|| {
            KnowledgeError::invalid("undo_token", "undo_token must be one that a delete or cleanup answered")
        })
    }
}

/// The inverse of [`hex`].
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// The terms by which metadata is filtered exactly: `key=json`, one for each top-level key, and one for each
/// scalar element of a top-level list.
pub(crate) fn metadata_terms(metadata: &Map<String, Value>) -> Vec<String> {
    let mut terms = Vec::with_capacity(metadata.len());
    for (key, value) in metadata {
        terms.push(metadata_term(key, value));
        if let Value::Array(elements) = value {
            terms.extend(
                elements
                    .iter()
                    .filter(|element| !element.is_array() && !element.is_object())
                    .map(|element| metadata_term(key, element)),
            );
        }
    }
    terms
}

/// One revision of an item as it stands in the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredItem {
    /// What callers are shown.
    pub item: Item,
    /// Counts the changes from 1.
    pub revision: i64,
    /// SHA-256 of its content.
    pub content_hash: String,
    /// First commit of this revision.
    pub valid_from: i64,
    /// The commit that closed it; none while it is live.
    pub valid_to: Option<i64>,
}

impl StoredItem {
    /// Whether this is what a purge leaves: an id without anything else, so that feeds can report it.
    pub fn is_tombstone(&self) -> bool {
        self.item.passages == 0
    }
}

/// One result of a search.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The item.
    pub stored: StoredItem,
    /// The passage that matched best, its place in bytes.
    pub passage: Passage,
    /// The fused score, 0 to 1.
    pub score: f32,
    /// Cosine of query and passage, where the query was embedded.
    pub similarity: Option<f32>,
    /// BM25 of the passage, where a word matched.
    pub bm25: Option<f32>,
    /// Rank in the vector leg, from 1.
    pub vector_rank: Option<usize>,
    /// Rank in the keyword leg, from 1.
    pub text_rank: Option<usize>,
}

/// Counts of a project's live items.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemStats {
    /// Items.
    pub total: u64,
    /// Rows they take: one a passage.
    pub passages: u64,
    /// Items of each kind.
    pub by_kind: BTreeMap<String, u64>,
    /// Items of each agent; those without one count under the empty name.
    pub by_agent: BTreeMap<String, u64>,
    /// Oldest creation.
    pub oldest: Option<DateTime<Utc>>,
    /// Newest creation.
    pub newest: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_hash_keeps_its_parts_apart() {
        let hash = |agent, text| content_hash(KnowledgeType::General, agent, text);
        assert_eq!(hash(Some("ab"), "c"), hash(Some("ab"), "c"));
        assert_ne!(hash(Some("ab"), "c"), hash(Some("a"), "bc"));
        assert_eq!(hash(None, "c"), hash(Some(""), "c"));
    }

    #[test]
    fn undo_tokens_survive_the_wire() {
        let deletion = Deletion {
            project: ProjectName::parse("a.b-c", "project_id").unwrap(),
            sequence: 42,
            last: 42,
            at: now_ms(),
        };
        // As it was before a deletion could have several commits.
        let plain = format!("a.b-c/42/{}", deletion.at.timestamp_millis());
        assert_eq!(deletion.token(), hex(plain.as_bytes()));
        let long = Deletion {
            last: 1_042,
            ..deletion.clone()
        };
        for deletion in [deletion, long] {
            assert_eq!(Deletion::parse(&deletion.token()).unwrap(), deletion);
        }
        for bad in ["", "zz", "616", "ä", "612f31"] {
            assert!(Deletion::parse(bad).is_err(), "{bad}");
        }
        for bad in ["a/42/0/42", "a/42/0/41", "a/42/0/", "a/42/0/x", "a/42/0/43/1"] {
            assert!(Deletion::parse(&hex(bad.as_bytes())).is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_terms_cover_lists_and_scalars() {
        let metadata = serde_json::json!({"a": 1, "b": ["x", {"y": 1}], "c": null});
        let terms = metadata_terms(metadata.as_object().unwrap());
        assert_eq!(terms, ["a=1", r#"b=["x",{"y":1}]"#, r#"b="x""#, "c=null"]);
    }
}
