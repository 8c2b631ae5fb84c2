//! The OpenRPC document of `rpc.discover`, generated from the types.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::api::{Cancel, METHODS, Method, MethodInfo};
use crate::error::ErrorKind;
use crate::params::{TIMEOUT_MS_MAX, TRACE_ID_MAX};

/// Describes the methods that are served. `version` is the daemon's; `registered` are the names under
/// which methods are registered. Other names of a method are listed with it, not as methods of their own;
/// names that the contract does not know are left out. `rpc.cancel` is
/// always there: the connection itself serves it.
pub fn document<'a>(version: &str, registered: impl IntoIterator<Item = &'a str>) -> Value {
    let registered: Vec<&str> = registered.into_iter().collect();
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = SchemaGenerator::new(settings);
    let methods: Vec<Value> = METHODS
        .iter()
        .filter(|row| registered.contains(&row.name) || row.name == Cancel::NAME)
        .map(|row| describe(row, &mut generator))
        .collect();
    let schemas = generator.take_definitions(true);
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "ccod",
            "version": version,
            "description": "Knowledge daemon of CCO. JSON-RPC 2.0 over a Unix socket; one line out per response.",
        },
        "methods": methods,
        "components": { "schemas": schemas },
    })
}

fn describe(row: &MethodInfo, generator: &mut SchemaGenerator) -> Value {
    let reference = (row.params_schema)(generator).to_value();
    let schema = match reference
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|path| path.rsplit('/').next())
    {
        Some(name) => generator.definitions().get(name).cloned().unwrap_or_default(),
        None => reference,
    };
    let properties = schema.get("properties").cloned().unwrap_or_default();
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let mut params: Vec<Value> = row
        .positional
        .iter()
        .map(|name| {
            let schema = properties.get(*name).cloned().unwrap_or(Value::Bool(true));
            json!({ "name": name, "required": required.contains(name), "schema": schema })
        })
        .collect();
    let one_project = json!({ "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$" });
    params.push(json!({
        "name": "project_id", "required": false, "summary": row.scope.summary(),
        "schema": if row.scope.takes_every() { json!({ "anyOf": [one_project, { "const": "*" }] }) } else { one_project },
    }));
    params.push(json!({
        "name": "trace_id", "required": false,
        "summary": "By name only. The caller's own name for the call; the call's error, its log lines and the answer to `explain` show it.",
        "schema": { "type": "string", "maxLength": TRACE_ID_MAX },
    }));
    params.push(json!({
        "name": "timeout_ms", "required": false,
        "summary": "By name only. Milliseconds until the deadline. The default of a single write grows by half a millisecond for each byte of its parameters.",
        "schema": { "type": "integer", "minimum": 1, "maximum": TIMEOUT_MS_MAX, "default": row.default_timeout_ms },
    }));
    let aliases: Value = row
        .aliases
        .iter()
        .filter(|(_, name)| row.positional.contains(name))
        .map(|(alias, name)| ((*alias).to_owned(), json!(name)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    json!({
        "name": row.name,
        "summary": row.summary,
        "paramStructure": "either",
        "params": params,
        "result": { "name": "result", "schema": (row.result_schema)(generator).to_value() },
        "errors": ErrorKind::ALL.iter().map(|kind| json!({ "code": kind.code(), "message": kind.as_str() })).collect::<Vec<_>>(),
        "x-writes": row.writes,
        "x-other-names": row.other_names,
        "x-parameter-aliases": aliases,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::method;

    #[test]
    fn what_is_registered_is_described_and_references_resolve() {
        let names: Vec<&str> = METHODS.iter().map(|row| row.name).chain(["other.method"]).collect();
        let document = document("1.2.3", names);
        assert_eq!(document["methods"].as_array().unwrap().len(), METHODS.len());
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("\"$ref\":\"").skip(1) {
            let target = reference.split('"').next().unwrap();
            let name = target
                .strip_prefix("#/components/schemas/")
                .unwrap_or_else(|| panic!("{target}"));
            assert!(schemas.contains_key(name), "{name}");
        }
        let search = document["methods"]
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["name"] == method::KNOWLEDGE_SEARCH)
            .unwrap();
        let params = search["params"].as_array().unwrap();
        assert_eq!(
            (&params[0]["name"], &params[0]["required"]),
            (&json!("query"), &json!(true))
        );
        assert_eq!(params.iter().filter(|entry| entry["required"] == true).count(), 1);
        assert_eq!(params.last().unwrap()["schema"]["default"], 10_000);
        assert!(params.iter().all(|entry| entry["schema"].is_object()), "{params:#?}");
    }

    #[test]
    fn the_project_is_described_as_the_method_takes_it() {
        let document = document("1", METHODS.iter().map(|row| row.name));
        for method in document["methods"].as_array().unwrap() {
            let name = method["name"].as_str().unwrap();
            let row = crate::api::method_info(name).unwrap();
            let params = method["params"].as_array().unwrap();
            let project = params.iter().find(|entry| entry["name"] == "project_id").unwrap();
            // The document and the daemon agree on whether `*` is a project.
            let takes_every = project["schema"]["anyOf"]
                .as_array()
                .is_some_and(|any| any.iter().any(|one| one["const"] == "*"));
            let refused = (row.check_params)(r#"{"project_id":"*"}"#)
                .err()
                .and_then(|error| error.data.parameter.clone())
                .is_some_and(|parameter| parameter == "project_id");
            assert_eq!(takes_every, !refused, "{name}");
            let all = [
                "knowledge.stats",
                "knowledge.projects",
                "admin.verify",
                "admin.optimize",
                "admin.backup",
                "admin.restore",
                "admin.reembed",
                "admin.status",
                "admin.metrics",
            ];
            assert_eq!(
                project["summary"].as_str().unwrap().contains("all projects"),
                all.contains(&name),
                "{name}"
            );
        }
    }

    #[test]
    fn only_what_is_registered() {
        let document = document("1", [method::RPC_VERSION, method::KNOWLEDGE_LIST]);
        let methods = document["methods"].as_array().unwrap();
        assert_eq!(methods.len(), 3);
        assert_eq!(methods[2]["name"], method::RPC_CANCEL);
        assert_eq!(methods[0]["x-other-names"], json!(["knowledge.query"]));
    }
}
