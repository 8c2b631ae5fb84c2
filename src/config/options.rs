//! The options as their structs describe them: reason, default and range. The checks and `docs/configuration.md` are made
//! from this.

use std::collections::BTreeSet;

use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::Value;

use super::Config;

/// One option.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigOption {
    /// Its dotted key.
    pub key: String,
    /// What it is, and why its default is what it is.
    pub about: String,
    /// Least number that it takes, if it takes numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// Greatest number, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
}

impl ConfigOption {
    /// `1 to 127`, or `at least 1`.
    pub fn range(&self) -> String {
        match (self.minimum, self.maximum) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (Some(least), None) => format!("at least {least}"),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => "any value".to_owned(),
        }
    }
}

/// The options of these keys, in their order.
pub(super) fn options_of<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<ConfigOption> {
    let wanted: BTreeSet<&str> = keys.collect();
    if wanted.is_empty() {
        return Vec::new(); // Nothing was changed, which is the usual case: no schema is made.
    }
    let all = options().into_iter();
    all.filter(|option| wanted.contains(option.key.as_str())).collect()
}

/// Every option that is a key, in the order of the keys. The schema has another order where serde_json keeps that of the
/// structs, as it does in a build with LanceDB.
pub fn options() -> Vec<ConfigOption> {
    let generator = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = generator.into_generator().into_root_schema_for::<Config>();
    let mut found = Vec::new();
    walk("", schema.as_value(), &mut found);
    let keys: BTreeSet<String> = Config::default().values().into_iter().map(|(key, _)| key).collect();
    found.retain(|option| keys.contains(&option.key));
    found.sort_by(|one, other| one.key.cmp(&other.key));
    found
}

fn walk(key: &str, schema: &Value, found: &mut Vec<ConfigOption>) {
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            let key = if key.is_empty() {
                name.clone()
            } else {
                format!("{key}.{name}")
            };
            walk(&key, property, found);
        }
        return;
    }
    let about = schema["description"].as_str().unwrap_or_default();
    found.push(ConfigOption {
        key: key.to_owned(),
        about: about.split_whitespace().collect::<Vec<_>>().join(" "),
        minimum: schema["minimum"].as_f64(),
        maximum: schema["maximum"].as_f64(),
    });
}
