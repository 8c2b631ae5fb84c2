//! The keys of the configuration, and the advice about unknown ones.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Config;

/// Limits that are copies of those in `items`, and so are not keys.
pub(super) const SHARED_LIMITS: [&str; 4] = [
    "limits.max_batch_items",
    "limits.max_embed_texts",
    "limits.max_text_bytes",
    "limits.max_metadata_bytes",
];

/// The keys that exist, with their default values, which also say the type.
pub(super) struct Schema {
    pub(super) defaults: BTreeMap<String, serde_json::Value>,
}

impl Schema {
    pub(super) fn new() -> Self {
        Self {
            defaults: Config::default().values().into_iter().collect(),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.defaults.keys().map(String::as_str)
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.defaults.contains_key(key)
    }

    pub(super) fn is_section(&self, key: &str) -> bool {
        let prefix = format!("{key}.");
        self.keys().any(|known| known.starts_with(&prefix))
    }

    /// Whether `name` is a section or is meant to be one. A name unlike all sections belongs to another program.
    pub(super) fn resembles_section(&self, name: &str) -> bool {
        self.keys()
            .filter_map(|known| known.split_once('.'))
            .any(|(section, _)| strsim::jaro_winkler(name, section) > 0.85)
    }

    /// The end of the message about an unknown key.
    pub(super) fn hint(&self, key: &str) -> String {
        if let Some((section, _)) = key.rsplit_once('.')
            && self.contains(section)
        {
            return format!("; `{section}` is a value, not a section");
        }
        let leaf = key.rsplit('.').next().unwrap_or(key);
        let nearest = self
            .keys()
            .map(|known| {
                let known_leaf = known.rsplit('.').next().unwrap_or(known);
                // The whole key, or its last part under another section (`retention_days` for
                // `store.retention_days`).
                let likeness = strsim::jaro_winkler(key, known).max(strsim::jaro_winkler(leaf, known_leaf) * 0.98);
                (likeness, known)
            })
            .max_by(|left, right| left.0.total_cmp(&right.0));
        match nearest {
            Some((likeness, known)) if likeness > 0.8 => format!("; did you mean `{known}`?"),
            _ => "; `ccoctl config show` lists all keys".to_owned(),
        }
    }
}

pub(super) fn to_json(value: &impl Serialize) -> serde_json::Value {
    // Plain structs of numbers, texts and paths that were made from UTF-8: this cannot fail.
    serde_json::to_value(value).unwrap_or_default()
}

pub(super) fn flatten(prefix: &str, value: &serde_json::Value, into: &mut Vec<(String, serde_json::Value)>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                let key = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&key, field, into);
            }
        }
        leaf => into.push((prefix.to_owned(), leaf.clone())),
    }
}
