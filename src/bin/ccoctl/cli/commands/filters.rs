//! The filters that `search`, `list`, `delete` and `cleanup` share.

use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::Value;

use ccod_protocol::api::{Filter, KnowledgeType, MetadataFilter, OneOrMany, rounded_integer};

use crate::cli::text::too_large;
use crate::cli::when;

/// Filters that `search`, `list`, `delete` and `cleanup` share.
#[derive(Debug, Default, Args)]
pub(crate) struct FilterArgs {
    /// Only items of this type; may be repeated
    #[arg(long = "type", value_name = "T")]
    knowledge_type: Vec<KnowledgeType>,
    /// Only items of this agent; may be repeated
    #[arg(long, value_name = "A")]
    agent: Vec<String>,
    /// Only items of this session; may be repeated
    #[arg(long, value_name = "S")]
    session: Vec<String>,
    /// Only items created at this time or later: 7d, 12h, a date, or RFC 3339
    #[arg(long, value_name = "D", value_parser = parse_time)]
    since: Option<DateTime<Utc>>,
    /// Only items created before this time
    #[arg(long, value_name = "D", value_parser = parse_time)]
    until: Option<DateTime<Utc>>,
    /// Only items whose metadata has this value under this key, or all of a JSON object; may be repeated
    #[arg(long = "meta", alias = "metadata", value_name = "KEY=VALUE", value_parser = parse_conditions)]
    metadata: Vec<MetadataFilter>,
}

impl FilterArgs {
    pub(crate) fn into_filters(self) -> Filter {
        Filter {
            knowledge_type: any_of(self.knowledge_type),
            agent: any_of(self.agent),
            session_id: any_of(self.session),
            since: self.since,
            until: self.until,
            metadata: self.metadata.into_iter().flatten().collect(),
        }
    }
}

pub(super) fn parse_time(text: &str) -> Result<DateTime<Utc>, String> {
    when::parse(text, when::now())
}

/// `key=value`, where the value is JSON if it reads as such and a text if not; or several as a JSON object, as
/// `store` takes them.
fn parse_conditions(text: &str) -> Result<MetadataFilter, String> {
    if text.trim_start().starts_with('{') {
        if let Some(place) = rounded_integer(text) {
            return Err(too_large(&place));
        }
        let conditions: MetadataFilter =
            serde_json::from_str(text).map_err(|error| format!("is not a JSON object: {error}"))?;
        // A script that computed an empty object must not get all items.
        if conditions.is_empty() {
            return Err("is an empty object, which does not mean all; leave it out".to_owned());
        }
        if let Some((key, _)) = conditions.iter().find(|(_, value)| value.is_null()) {
            return Err(format!("has no value for `{key}`"));
        }
        return Ok(conditions);
    }
    let (key, value) = text.split_once('=').ok_or("takes the form KEY=VALUE")?;
    if key.trim().is_empty() {
        return Err("takes the form KEY=VALUE, and the key is empty".to_owned());
    }
    if rounded_integer(value).is_some() && serde_json::from_str::<Value>(value).is_ok() {
        return Err(too_large(key));
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok(MetadataFilter::from_iter([(key.to_owned(), value)]))
}

fn any_of<T>(mut values: Vec<T>) -> Option<OneOrMany<T>> {
    match values.len() {
        0 => None,
        1 => values.pop().map(OneOrMany::One),
        _ => Some(OneOrMany::Many(values)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metadata_filters_take_json_or_text() {
        let conditions = |text| parse_conditions(text).map(|filter| serde_json::to_value(&filter).expect("serialises"));
        assert_eq!(conditions("a=1"), Ok(json!({"a": 1})));
        assert_eq!(conditions("a=b=c"), Ok(json!({"a": "b=c"})));
        assert_eq!(conditions(r#"{"a":1,"b":"x"}"#), Ok(json!({"a": 1, "b": "x"})));
        for refused in ["", "a", "{a}", "{}", "=x", " =x", "="] {
            assert!(conditions(refused).is_err(), "{refused:?}");
        }
        // Rounded, it would be another number; a text keeps it.
        for refused in ["a=18446744073709551616", r#"{"a":18446744073709551616}"#] {
            assert!(
                conditions(refused).is_err_and(|reason| reason.contains("`a`")),
                "{refused}"
            );
        }
        for kept in [
            r#"a="18446744073709551616""#,
            "a=18446744073709551616 of them",
            r#"{"a":"b=18446744073709551616"}"#,
        ] {
            assert!(conditions(kept).is_ok(), "{kept}");
        }
    }

    #[test]
    fn no_condition_on_metadata_is_dropped() {
        let filters = FilterArgs {
            metadata: ["tag=a", "tag=b", r#"{"tag":"c","n":1}"#]
                .map(|text| parse_conditions(text).expect("accepted"))
                .into(),
            ..FilterArgs::default()
        }
        .into_filters();
        assert_eq!(
            serde_json::to_value(&filters).expect("serialises"),
            json!({"metadata": [{"tag": "a", "n": 1}, {"tag": "b"}, {"tag": "c"}]})
        );
    }
}
