//! The words of the domain: projects, items, filters, searches.
//!
//! Requests arrive here already decoded but not yet trusted: every constructor checks what it is given, and
//! names the parameter of the wire when it refuses.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use crate::clock::now_ms;
use crate::error::{KnowledgeError, KnowledgeResult};

/// Longest project name, in characters (all of them ASCII).
pub const MAX_PROJECT_NAME: usize = 100;
/// Longest id, idempotency key, agent and session id, in bytes: they are keys, not places for text.
pub const MAX_KEY_BYTES: usize = 256;
/// The project of a request that names none.
pub const DEFAULT_PROJECT: &str = "default";

/// How the names of the projects of health probes begin. No caller can give such a name ([`ProjectName::parse`]), and
/// a directory of it is none of a user's.
pub(crate) const PROBE_PREFIX: &str = ".health-";

/// A checked project name: `[A-Za-z0-9][A-Za-z0-9._-]{0,99}`. Never a path. The daemon's own projects have names that
/// begin with a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectName(String);

impl ProjectName {
    /// Checks `name`; a refusal names `parameter`.
    pub fn parse(name: &str, parameter: &str) -> KnowledgeResult<Self> {
        let mut characters = name.chars();
        let first_is_alphanumeric = characters.next().is_some_and(|c| c.is_ascii_alphanumeric());
        let rest_is_plain = characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if first_is_alphanumeric && rest_is_plain && name.len() <= MAX_PROJECT_NAME {
            Ok(Self(name.to_owned()))
        } else {
            Err(KnowledgeError::invalid(
                parameter,
                format!(
                    "{parameter} must be 1 to {MAX_PROJECT_NAME} letters, digits, '.', '_' or '-', and begin \
                     with a letter or digit"
                ),
            ))
        }
    }

    /// A name of the daemon's own, for the project of one health probe.
    pub fn of_probe() -> Self {
        Self(format!("{PROBE_PREFIX}{:016x}", rand::random::<u64>()))
    }

    /// Whether the project is one of the daemon's own: it is never listed, and no caller can name it.
    pub fn is_own(&self) -> bool {
        self.0.starts_with('.')
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as compared for collisions: names equal but for case are one project on some file systems.
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl Default for ProjectName {
    fn default() -> Self {
        Self(DEFAULT_PROJECT.to_owned())
    }
}

impl fmt::Display for ProjectName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What kind of knowledge an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KnowledgeKind {
    /// A choice that was made, and why.
    Decision,
    /// How something is built.
    Architecture,
    /// How something was implemented.
    Implementation,
    /// A setting.
    Configuration,
    /// Where a credential lives (never the credential).
    Credential,
    /// A problem and what is known of it.
    Issue,
    /// Something that recurs.
    Pattern,
    /// Anything else.
    General,
    /// Written by the system itself.
    System,
}

impl KnowledgeKind {
    /// Every kind, with its name on the wire and on disk.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Decision, "decision"),
        (Self::Architecture, "architecture"),
        (Self::Implementation, "implementation"),
        (Self::Configuration, "configuration"),
        (Self::Credential, "credential"),
        (Self::Issue, "issue"),
        (Self::Pattern, "pattern"),
        (Self::General, "general"),
        (Self::System, "system"),
    ];

    /// The name on the wire and on disk.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("general", |(_, name)| name)
    }
}

impl FromStr for KnowledgeKind {
    type Err = KnowledgeError;

    fn from_str(name: &str) -> KnowledgeResult<Self> {
        Self::ALL
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(kind, _)| *kind)
            .ok_or_else(|| {
                let names: Vec<&str> = Self::ALL.iter().map(|(_, name)| *name).collect();
                KnowledgeError::invalid("type", format!("type must be one of {}", names.join(", ")))
            })
    }
}

/// RFC 3339, UTC, milliseconds: the only form in which times leave the daemon.
pub fn format_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Parses an RFC 3339 time, or a date (midnight UTC); a refusal names `parameter`.
pub fn parse_time(text: &str, parameter: &str) -> KnowledgeResult<DateTime<Utc>> {
    let parsed = DateTime::parse_from_rfc3339(text)
        .map(|time| time.with_timezone(&Utc))
        .ok()
        .or_else(|| {
            let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
            Some(date.and_hms_opt(0, 0, 0)?.and_utc())
        });
    parsed.ok_or_else(|| {
        KnowledgeError::invalid(
            parameter,
            format!("{parameter} must be an RFC 3339 time such as 2026-01-31T09:30:00Z, or a date such as 2026-01-31"),
        )
    })
}

/// What a store does when the content is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDuplicate {
    /// Returns the item that is there.
    #[default]
    Return,
    /// Stores another one.
    Store,
}

/// An item to store, checked.
#[derive(Clone, Debug)]
pub struct NewItem {
    /// The whole text; not blank.
    pub text: String,
    /// What kind it is.
    pub kind: KnowledgeKind,
    /// Who learned it.
    pub agent: Option<String>,
    /// In which session.
    pub session_id: Option<String>,
    /// Anything else, as JSON.
    pub metadata: Map<String, Value>,
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
        content_hash(self.kind, self.agent.as_deref(), &self.text)
    }

    /// The id that the item gets when the caller chose none: `<type>-<milliseconds>-<8 hex>`.
    pub fn generated_id(&self) -> String {
        let suffix: u32 = rand::random();
        format!(
            "{}-{}-{suffix:08x}",
            self.kind.as_str(),
            self.timestamp.timestamp_millis()
        )
    }
}

/// See [`NewItem::content_hash`].
pub fn content_hash(kind: KnowledgeKind, agent: Option<&str>, text: &str) -> String {
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

/// What changes in an item; what is absent stays as it is.
#[derive(Clone, Debug, Default)]
pub struct ItemPatch {
    /// The new text.
    pub text: Option<String>,
    /// The new kind.
    pub kind: Option<KnowledgeKind>,
    /// The new agent.
    pub agent: Option<String>,
    /// The new session.
    pub session_id: Option<String>,
    /// The new metadata, as a whole.
    pub metadata: Option<Map<String, Value>>,
}

/// Names one deletion, so that it can be undone: the commit that closed the items, and when. The time tells a
/// deletion from others in the same commit, and from one of another history that had the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// The project.
    pub project: ProjectName,
    /// The commit.
    pub sequence: i64,
    /// When its items were closed.
    pub at: DateTime<Utc>,
}

impl Deletion {
    /// The undo token; opaque to callers: hexadecimal of `<project>/<commit>/<milliseconds>`.
    pub fn token(&self) -> String {
        hex(format!("{}/{}/{}", self.project, self.sequence, self.at.timestamp_millis()).as_bytes())
    }

    /// Reads an undo token.
    pub fn parse(token: &str) -> KnowledgeResult<Self> {
        let parse = || {
            let plain = String::from_utf8(unhex(token)?).ok()?;
            let mut parts = plain.split('/');
            let deletion = Self {
                project: ProjectName::parse(parts.next()?, "undo_token").ok()?,
                sequence: parts.next()?.parse().ok()?,
                at: DateTime::from_timestamp_millis(parts.next()?.parse().ok()?)?,
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

/// Checks a key (`id`, `agent`, ...): not blank, not too long, no control characters.
pub fn check_key(value: &str, parameter: &str) -> KnowledgeResult<()> {
    if value.trim().is_empty() {
        return Err(KnowledgeError::invalid(
            parameter,
            format!("{parameter} must not be blank"),
        ));
    }
    if value.len() > MAX_KEY_BYTES {
        return Err(KnowledgeError::invalid(
            parameter,
            format!(
                "{parameter} must be at most {MAX_KEY_BYTES} bytes, this one has {}",
                value.len()
            ),
        ));
    }
    if value.chars().any(char::is_control) {
        return Err(KnowledgeError::invalid(
            parameter,
            format!("{parameter} must not contain control characters"),
        ));
    }
    Ok(())
}

/// The terms by which metadata is filtered exactly: `key=json`, one for each top-level key, and one for each
/// scalar element of a top-level list.
pub fn metadata_terms(metadata: &Map<String, Value>) -> Vec<String> {
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

/// One term of [`metadata_terms`].
pub fn metadata_term(key: &str, value: &Value) -> String {
    format!("{key}={value}")
}

/// Which items a search, list, delete or cleanup concerns. Every part narrows; empty parts do not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemFilter {
    /// Any of these kinds.
    pub kinds: Vec<KnowledgeKind>,
    /// Any of these agents.
    pub agents: Vec<String>,
    /// Any of these sessions.
    pub session_ids: Vec<String>,
    /// Created at or after.
    pub since: Option<DateTime<Utc>>,
    /// Created before.
    pub until: Option<DateTime<Utc>>,
    /// All of these: a top-level metadata key, and the value that stands under it, alone or in a list. A key may have
    /// several.
    pub metadata: Vec<(String, Value)>,
}

impl ItemFilter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a search finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SearchMode {
    /// Vectors and keywords, fused.
    #[default]
    Hybrid,
    /// Vectors only.
    Vector,
    /// Keywords only.
    Text,
}

impl SearchMode {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hybrid => "hybrid",
            Self::Vector => "vector",
            Self::Text => "text",
        }
    }
}

/// One item as it stands in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredItem {
    /// Its id, unique in its project.
    pub id: String,
    /// Counts the changes from 1.
    pub revision: i64,
    /// The whole text.
    pub text: String,
    /// Number of passages that it is embedded as.
    pub passages: u32,
    /// What kind it is.
    pub kind: String,
    /// Its project.
    pub project: String,
    /// Who learned it.
    pub agent: Option<String>,
    /// In which session.
    pub session_id: Option<String>,
    /// Anything else.
    pub metadata: Map<String, Value>,
    /// When it was created.
    pub timestamp: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
    /// SHA-256 of its content.
    pub content_hash: String,
    /// First commit of this revision.
    pub valid_from: i64,
    /// The commit that closed it; none while it is live.
    pub valid_to: Option<i64>,
}

impl StoredItem {
    /// Whether this is what a purge leaves: an id without anything else, so that feeds can tell of it.
    pub fn is_tombstone(&self) -> bool {
        self.passages == 0
    }
}

/// The passage of an item that matched.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchedPassage {
    /// Its text.
    pub text: String,
    /// Where it begins in the item's text: in bytes of UTF-8 where it is an answer, in Unicode scalar values in
    /// the table ([`MatchedPassage::in_bytes_of`]).
    pub start: i64,
    /// Where it ends (exclusive), in the same unit.
    pub end: i64,
    /// Which passage it is, from 0.
    pub index: i32,
}

impl MatchedPassage {
    /// The passage with its place in bytes of UTF-8, of a place in Unicode scalar values in `text`, the item's
    /// whole text. What lies behind the end of the text becomes the end.
    #[must_use]
    pub fn in_bytes_of(self, text: &str) -> Self {
        if text.is_ascii() {
            return self; // One and the same.
        }
        let byte_of = |position: i64| {
            let nth = usize::try_from(position).unwrap_or(0);
            let byte = text.char_indices().nth(nth).map_or(text.len(), |(byte, _)| byte);
            i64::try_from(byte).unwrap_or(i64::MAX)
        };
        Self {
            start: byte_of(self.start),
            end: byte_of(self.end),
            ..self
        }
    }
}

/// One result of a search.
#[derive(Clone, Debug)]
pub struct SearchHit {
    /// The item.
    pub item: StoredItem,
    /// The passage that matched best.
    pub passage: MatchedPassage,
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
    fn places_in_characters_become_places_in_bytes() {
        for text in ["", "plain", "größe", "状态页", "a🚀b", "e\u{301}\r\n…"] {
            let characters: Vec<char> = text.chars().collect();
            for start in 0..=characters.len() {
                for end in start..=characters.len() {
                    let part: String = characters[start..end].iter().collect();
                    let passage = MatchedPassage {
                        text: part.clone(),
                        start: start as i64,
                        end: end as i64,
                        index: 0,
                    };
                    let passage = passage.in_bytes_of(text);
                    assert_eq!(text[passage.start as usize..passage.end as usize], part);
                }
            }
        }
    }

    #[test]
    fn no_caller_can_name_a_project_of_the_daemon() {
        let (one, other) = (ProjectName::of_probe(), ProjectName::of_probe());
        assert_ne!(one, other);
        assert!(one.is_own() && one.as_str().starts_with(PROBE_PREFIX));
        assert!(ProjectName::parse(one.as_str(), "project_id").is_err());
        for legal in ["health", "ccod-health-probe", "knowledge-manager-test"] {
            assert!(!ProjectName::parse(legal, "project_id").unwrap().is_own());
        }
    }

    #[test]
    fn project_names_are_never_paths() {
        for good in ["a", "default", "cc-orchestra", "v1.2_x", "9lives", &"x".repeat(100)] {
            assert!(ProjectName::parse(good, "project_id").is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-x",
            "_x",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(101),
        ] {
            let error = ProjectName::parse(bad, "project_id").expect_err(bad);
            assert!(matches!(error, KnowledgeError::InvalidParameter { parameter, .. } if parameter == "project_id"));
        }
    }

    #[test]
    fn content_hash_keeps_its_parts_apart() {
        let hash = |agent, text| content_hash(KnowledgeKind::General, agent, text);
        assert_eq!(hash(Some("ab"), "c"), hash(Some("ab"), "c"));
        assert_ne!(hash(Some("ab"), "c"), hash(Some("a"), "bc"));
        assert_eq!(hash(None, "c"), hash(Some(""), "c"));
    }

    #[test]
    fn undo_tokens_survive_the_wire() {
        let deletion = Deletion {
            project: ProjectName::parse("a.b-c", "project_id").unwrap(),
            sequence: 42,
            at: now_ms(),
        };
        assert_eq!(Deletion::parse(&deletion.token()).unwrap(), deletion);
        for bad in ["", "zz", "616", "ä", "612f31"] {
            assert!(Deletion::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_utc_milliseconds() {
        let time = parse_time("2026-01-31T10:30:00.123456+01:00", "since").unwrap();
        assert_eq!(format_time(time), "2026-01-31T09:30:00.123Z");
        assert_eq!(
            format_time(parse_time("2026-01-31", "since").unwrap()),
            "2026-01-31T00:00:00.000Z"
        );
        assert!(parse_time("yesterday", "since").is_err());
    }

    #[test]
    fn metadata_terms_cover_lists_and_scalars() {
        let metadata = serde_json::json!({"a": 1, "b": ["x", {"y": 1}], "c": null});
        let terms = metadata_terms(metadata.as_object().unwrap());
        assert_eq!(terms, ["a=1", r#"b=["x",{"y":1}]"#, r#"b="x""#, "c=null"]);
    }
}
