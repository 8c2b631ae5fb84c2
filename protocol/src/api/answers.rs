//! The typed client reads every answer that the daemon may write, also one of which everything is left out that may
//! be. The trap is a field that is left out when it is empty, and has no default when it is read.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::METHODS;

/// A value of `schema`, by the rules of what is written. Objects have all of their members down to the level `full`,
/// and below it only those that are always written.
fn sample(schema: &Value, definitions: &Map<String, Value>, full: usize) -> Value {
    let Value::Object(rules) = schema else {
        return json!(1); // Anything.
    };
    if let Some(Value::String(reference)) = rules.get("$ref") {
        let name = reference.rsplit('/').next().unwrap();
        return sample(&definitions[name], definitions, full);
    }
    if let Some(value) = rules.get("const") {
        return value.clone();
    }
    if let Some(Value::Array(values)) = rules.get("enum") {
        return values[0].clone();
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(Value::Array(choices)) = rules.get(choice) {
            let is_null = |choice: &&Value| choice["type"] == "null";
            let chosen = match choices.iter().find(is_null) {
                Some(_) if full == 0 => return Value::Null,
                _ => choices.iter().find(|choice| !is_null(choice)),
            };
            let mut value = sample(chosen.unwrap(), definitions, full);
            // What stands beside the choice belongs to all of them.
            if let (Value::Object(members), Some(_)) = (&mut value, rules.get("properties")) {
                members.extend(object(rules, definitions, full));
            }
            return value;
        }
    }
    let kind = match rules.get("type") {
        Some(Value::Array(kinds)) if full == 0 && kinds.contains(&json!("null")) => return Value::Null,
        Some(Value::Array(kinds)) => kinds.iter().find(|kind| *kind != "null").unwrap().as_str(),
        Some(kind) => kind.as_str(),
        None if rules.contains_key("properties") => Some("object"),
        None => None,
    };
    match kind {
        // Any text, also where it has to be a time.
        Some("string") => json!("2026-01-31T12:00:00.000Z"),
        Some("integer") => rules.get("minimum").cloned().unwrap_or_else(|| json!(0)),
        Some("number") => json!(0.5),
        Some("boolean") => json!(true),
        Some("null") => Value::Null,
        Some("array") => match rules.get("items") {
            Some(items) => json!([sample(items, definitions, full)]),
            None => json!([]),
        },
        Some("object") => Value::Object(object(rules, definitions, full)),
        _ => json!(1),
    }
}

fn object(rules: &Map<String, Value>, definitions: &Map<String, Value>, full: usize) -> Map<String, Value> {
    let required = rules.get("required").and_then(Value::as_array);
    let is_required = |name: &String| required.is_some_and(|names| names.contains(&json!(name)));
    let mut members = Map::new();
    if let Some(Value::Object(properties)) = rules.get("properties") {
        for (name, schema) in properties {
            if full > 0 || is_required(name) {
                members.insert(name.clone(), sample(schema, definitions, full.saturating_sub(1)));
            }
        }
    }
    if let (Some(of_others @ Value::Object(_)), true) = (rules.get("additionalProperties"), full > 0) {
        members.insert("other".to_owned(), sample(of_others, definitions, full - 1));
    }
    members
}

#[test]
fn every_answer_that_may_be_written_can_be_read() {
    let mut objects = 0;
    for method in METHODS {
        let mut generator = SchemaSettings::default().for_serialize().into_generator();
        let schema = (method.result_schema)(&mut generator).to_value();
        let definitions = generator.take_definitions(false);
        for full in 0..5 {
            let answer = sample(&schema, &definitions, full);
            objects += usize::from(answer.is_object());
            let read = (method.check_result)(&answer.to_string());
            assert!(read.is_ok(), "{}: {}\n{answer:#}", method.name, read.unwrap_err());
        }
    }
    assert!(objects > 100, "{objects}");
}

/// That the test above can fail.
#[test]
fn a_field_that_is_left_out_and_has_no_default_is_found() {
    #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    struct Trap {
        always: u64,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        sometimes: Vec<String>,
    }
    let mut generator = SchemaSettings::default().for_serialize().into_generator();
    let schema = generator.subschema_for::<Trap>().to_value();
    let definitions = generator.take_definitions(false);
    let answer = sample(&schema, &definitions, 0);
    assert_eq!(answer, json!({"always": 0}));
    assert!(serde_json::from_value::<Trap>(answer).is_err());
    assert!(serde_json::from_value::<Trap>(sample(&schema, &definitions, 1)).is_ok());
}
