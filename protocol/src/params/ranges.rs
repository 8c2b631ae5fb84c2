//! The ranges of a method's parameters, read from the schema of their type: the attribute on a field
//! (`#[schemars(range(...))]`, `#[schemars(length(...))]`) is both what `rpc.discover` shows and what is checked here.
//!
//! The schema is walked once for each method. A request costs a look into a short list for each of its parameters.

use schemars::generate::SchemaSettings;
use serde_json::Value;
use serde_json::value::RawValue;

use super::entries::{Entry, Key};
use crate::api::{Method, out_of_range};
use crate::error::WireError;

/// The ranges of a method's parameters.
#[derive(Debug)]
pub struct Ranges(Vec<(String, Range)>);

/// The range of a parameter, for values of one kind.
#[derive(Clone, Debug)]
enum Range {
    Number {
        integer: bool,
        least: Option<f64>,
        most: Option<f64>,
    },
    /// A text. Its length is counted in bytes of UTF-8, and one of white space alone counts as empty.
    Text {
        not_blank: bool,
        most: Option<usize>,
    },
    List {
        not_empty: bool,
        most: Option<usize>,
    },
}

impl Ranges {
    /// Reads them from the schema of the parameters of `M`, for all names that `M` takes.
    #[must_use]
    pub fn of<M: Method>() -> Self {
        let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<M::Params>();
        let mut ranges = Vec::new();
        for (name, property) in schema.as_value()["properties"].as_object().into_iter().flatten() {
            find(name, property, &mut ranges);
        }
        let of_aliases: Vec<(String, Range)> = M::ALIASES
            .iter()
            .flat_map(|(alias, target)| {
                let of_target = ranges.iter().filter(move |(name, _)| name == target);
                of_target.map(|(_, range)| ((*alias).to_owned(), range.clone()))
            })
            .collect();
        ranges.extend(of_aliases);
        Self(ranges)
    }

    fn of_name(&self, name: &str) -> impl Iterator<Item = &Range> {
        self.0
            .iter()
            .filter(move |(other, _)| other == name)
            .map(|(_, range)| range)
    }

    /// The most elements that a list may have as the parameter `name`, if that is fixed.
    pub(super) fn most_elements(&self, name: &str) -> Option<usize> {
        self.of_name(name).find_map(|range| match range {
            Range::List { most, .. } => *most,
            _ => None,
        })
    }

    /// Refuses what is out of its range. A value of a wrong type is in none: the decoding has refused it before.
    ///
    /// # Errors
    /// -32602 naming the parameter and its range.
    pub(super) fn check(&self, entries: &[Entry<'_>]) -> Result<(), WireError> {
        for (name, raw) in entries {
            for range in self.of_name(name) {
                if let Some(right) = range.broken_by(name, raw) {
                    return Err(out_of_range(name, right));
                }
            }
        }
        Ok(())
    }

    /// The refusal of a value of another type than the number `name`, with the number's range. None if `name` is not a
    /// number or has no range.
    pub(super) fn not_a_number(&self, name: &str) -> Option<WireError> {
        self.of_name(name).find_map(|range| match range {
            Range::Number { integer, least, most } => {
                let kind = if *integer { "an integer" } else { "a number" };
                Some(out_of_range(name, format!("{kind}, {}", in_words(*least, *most))))
            }
            _ => None,
        })
    }
}

impl Range {
    /// What would be right, if `raw` is of this range's kind and outside of the range.
    fn broken_by(&self, name: &str, raw: &RawValue) -> Option<String> {
        let json = raw.get();
        match (self, json.as_bytes().first()?) {
            (Self::Number { least, most, .. }, b'-' | b'0'..=b'9') => {
                let number: f64 = json.parse().ok()?;
                let is_out = least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most);
                is_out.then(|| in_words(*least, *most))
            }
            (Self::Text { not_blank, most }, b'"') => {
                // The text is not longer than its JSON, and most texts begin with what is not blank.
                let may_be_long = most.is_some_and(|most| json.len() > most);
                let may_be_blank = *not_blank && !json.as_bytes()[1].is_ascii_alphanumeric();
                if !may_be_long && !may_be_blank {
                    return None;
                }
                let Key(text) = serde_json::from_str(json).ok()?;
                match most {
                    _ if *not_blank && text.trim().is_empty() => Some("a text that is not blank".to_owned()),
                    Some(most) if text.len() > *most => {
                        Some(format!("at most {most} bytes, this one has {}", text.len()))
                    }
                    _ => None,
                }
            }
            // The most elements are checked before the decoding, by `Bounds`.
            (Self::List { not_empty: true, .. }, b'[') if json[1..].trim_start().starts_with(']') => {
                let element = name.strip_suffix('s').unwrap_or("value");
                Some(format!("a list of at least one {element}"))
            }
            _ => None,
        }
    }
}

/// Collects the ranges that a schema and its alternatives have.
fn find(name: &str, schema: &Value, ranges: &mut Vec<(String, Range)>) {
    for alternative in ["anyOf", "oneOf"] {
        for schema in schema[alternative].as_array().into_iter().flatten() {
            find(name, schema, ranges);
        }
    }
    let count = |keyword: &str| schema[keyword].as_u64().and_then(|count| usize::try_from(count).ok());
    let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
    // Of an unsigned integer the schema always has the least, which its type says well enough.
    if most.is_some() || least.is_some_and(|least| least != 0.0) {
        let is_integer = |kind: &Value| kind == "integer";
        let kind = &schema["type"];
        let integer = is_integer(kind) || kind.as_array().is_some_and(|kinds| kinds.iter().any(is_integer));
        ranges.push((name.to_owned(), Range::Number { integer, least, most }));
    }
    let (least, most) = (count("minLength"), count("maxLength"));
    if least.is_some() || most.is_some() {
        let not_blank = least.is_some_and(|least| least > 0);
        ranges.push((name.to_owned(), Range::Text { not_blank, most }));
    }
    let (least, most) = (count("minItems"), count("maxItems"));
    if least.is_some() || most.is_some() {
        let not_empty = least.is_some_and(|least| least > 0);
        ranges.push((name.to_owned(), Range::List { not_empty, most }));
    }
}

fn in_words(least: Option<f64>, most: Option<f64>) -> String {
    match (least, most) {
        (Some(least), Some(most)) => format!("from {least} to {most}"),
        (Some(least), None) => format!("{least} or more"),
        (None, Some(most)) => format!("at most {most}"),
        (None, None) => "any number".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::api::{METHODS, Method, Search, method_info};
    use crate::openrpc::document;
    use crate::params::samples::call;

    /// The schema itself, or what it refers to.
    fn resolved<'a>(schema: &'a Value, document: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => &document["components"]["schemas"][reference.rsplit('/').next().unwrap()],
            None => schema,
        }
    }

    /// Values at the ends of each range of a parameter, and beyond them: the value as JSON, and whether it is accepted.
    fn ends(name: &str, schema: &Value, document: &Value) -> Vec<(String, bool)> {
        let schema = resolved(schema, document);
        let mut values = Vec::new();
        for alternative in ["anyOf", "oneOf"] {
            for schema in schema[alternative].as_array().into_iter().flatten() {
                values.extend(ends(name, schema, document));
            }
        }
        let is_integer = schema["type"] == "integer" || schema["type"][0] == "integer";
        let step = if is_integer { 1.0 } else { 0.001 };
        for (keyword, beyond) in [("minimum", -step), ("maximum", step)] {
            if let Some(end) = schema[keyword].as_f64() {
                values.push((end.to_string(), true));
                values.push(((end + beyond).to_string(), false));
            }
        }
        let element = match name {
            "items" => r#"{"text":"x"}"#,
            "metadata" => r#"{"k":1}"#,
            "type" => r#""issue""#,
            _ => r#""x""#,
        };
        let text = |length: usize| format!("\"{}\"", "x".repeat(length));
        let list = |length: usize| format!("[{}]", vec![element; length].join(","));
        let object = |length: usize| {
            let members: Vec<String> = (0..length).map(|number| format!("\"k{number}\":1")).collect();
            format!("{{{}}}", members.join(","))
        };
        let kinds: [(&str, &dyn Fn(usize) -> String); 3] =
            [("Length", &text), ("Items", &list), ("Properties", &object)];
        for (keyword, value_of) in kinds {
            let length = |end: &str| schema[format!("{end}{keyword}")].as_u64().map(|length| length as usize);
            if let Some(least) = length("min") {
                values.extend([(value_of(least), true), (value_of(least - 1), false)]);
            }
            if let Some(most) = length("max") {
                values.extend([(value_of(most), true), (value_of(most + 1), false)]);
            }
        }
        values
    }

    #[test]
    fn what_is_shown_of_a_range_is_what_is_checked_in_all_methods() {
        let document = document("1", METHODS.iter().map(|row| row.name));
        let mut tried = 0;
        for method in document["methods"].as_array().unwrap() {
            let params = method["params"].as_array().unwrap();
            let info = method_info(method["name"].as_str().unwrap()).unwrap();
            for param in params {
                let name = param["name"].as_str().unwrap();
                for (value, accepted) in ends(name, &param["schema"], &document) {
                    let mut given = vec![(name, value.as_str())];
                    // What such a call is about, unless that is what is tried.
                    let target = ["id", "undo_token"]
                        .into_iter()
                        .find(|target| info.positional.contains(target));
                    given.extend(
                        target
                            .filter(|target| name != *target && !info.selects(name))
                            .map(|target| (target, "\"x\"")),
                    );
                    let result = call(info, &given);
                    let short: String = value.chars().take(60).collect();
                    assert_eq!(result.is_ok(), accepted, "{} {name} {short}: {result:?}", info.name);
                    if let Err(error) = result {
                        assert_eq!(error.code, -32602, "{} {name} {short}", info.name);
                        assert_eq!(error.data.parameter.as_deref(), Some(name), "{} {short}", info.name);
                        assert!(error.message.contains(&format!("`{name}` must ")), "{}", error.message);
                    }
                    tried += 1;
                }
            }
        }
        assert!(tried > 300, "{tried}");
    }

    #[test]
    fn the_document_shows_the_ranges() {
        let document = document("1", [Search::NAME]);
        let params = document["methods"][0]["params"].as_array().unwrap();
        let schema = |name: &str| {
            resolved(
                &params.iter().find(|param| param["name"] == name).unwrap()["schema"],
                &document,
            )
        };
        for (name, keyword, end) in [
            ("limit", "minimum", json!(1)),
            ("limit", "maximum", json!(100)),
            ("offset", "maximum", json!(10_000)),
            ("threshold", "minimum", json!(0.0)),
            ("threshold", "maximum", json!(1.0)),
            ("budget_tokens", "minimum", json!(1)),
            ("query", "minLength", json!(1)),
            ("query", "maxLength", json!(16_384)),
        ] {
            assert_eq!(schema(name)[keyword], end, "{name} {keyword}");
        }
        assert!(schema("agent").to_string().contains("OneOrMany"), "{}", schema("agent"));
        assert!(document["components"].to_string().contains("\"maxItems\":256"));
    }
}
