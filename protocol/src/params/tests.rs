//! What decoding accepts and refuses.

use super::*;
use crate::api;
use crate::api::{BatchItem, KnowledgeType, OnDuplicate, SearchMode};

fn refused<M: Method>(json: &str) -> WireError {
    let error = decode_str::<M>(Some(json)).map(|_| ()).unwrap_err();
    assert_eq!(error.code, -32602, "{json}");
    error
}

fn parameter<M: Method>(json: &str) -> String {
    let error = refused::<M>(json);
    error
        .data
        .parameter
        .clone()
        .unwrap_or_else(|| panic!("no parameter in: {}", error.message))
}

#[test]
fn an_unknown_name_is_refused_whatever_its_value_in_every_method() {
    for method in api::METHODS {
        for value in ["null", "[]", "{}", "\"\"", "0", "false", "\"x\""] {
            let error = decode_any(method, &format!(r#"{{"sesion_idd":{value}}}"#))
                .expect_err(&format!("{} {value}", method.name));
            assert_eq!(error.code, -32602, "{} {value}", method.name);
            assert_eq!(
                error.data.parameter.as_deref(),
                Some("sesion_idd"),
                "{} {value}",
                method.name
            );
            assert!(error.message.contains("there is no parameter"), "{}", error.message);
        }
    }
    // Beside what would have been enough, too.
    for (json, name) in [
        (r#"{"ids":null,"older_than_days":0,"dry_run":false}"#, "ids"),
        (r#"{"dry_run":false,"sesion_id":null}"#, "sesion_id"),
    ] {
        assert_eq!(parameter::<api::Cleanup>(json), name);
    }
    assert_eq!(
        parameter::<api::Delete>(r#"{"type":"general","sesion_id":null}"#),
        "sesion_id"
    );
    let batch = r#"{"items":[{"text":"a","agnet":null},{"text":"b","project_id":null}]}"#;
    let items = decode_str::<api::StoreBatch>(Some(batch)).unwrap().params.items;
    for (item, name) in items.iter().zip(["agnet", "project_id"]) {
        assert!(matches!(item, BatchItem::Invalid(error) if error.data.parameter.as_deref() == Some(name)));
    }
}

#[test]
fn the_range_of_a_number_is_the_same_whichever_way_it_is_wrong() {
    for value in [
        "0",
        "-1",
        "101",
        "\"5\"",
        "1.5",
        "[]",
        "99999999999",
        "1000000000000000000000000",
    ] {
        let error = refused::<api::Search>(&format!(r#"{{"query":"q","limit":{value}}}"#));
        assert_eq!(error.data.parameter.as_deref(), Some("limit"), "{value}");
        assert!(error.message.contains("from 1 to 100"), "{value}: {}", error.message);
    }
    let error = refused::<api::Search>(r#"{"query":"q","threshold":"x"}"#);
    assert!(error.message.contains("from 0 to 1"), "{}", error.message);
    // Of one without a range of its own its type is all there is to say.
    let error = refused::<api::PostCompaction>(r#"{"current_task":"q","budget_tokens":"x"}"#);
    assert!(
        error.message.contains("an integer from 0 to 4294967295"),
        "{}",
        error.message
    );
    let error = refused::<api::PostCompaction>(r#"{"current_task":"q","budget_tokens":1000000000000000000000000}"#);
    assert!(error.message.contains("out of range"), "{}", error.message);
    assert!(!error.message.contains("fraction"), "{}", error.message);
}

#[test]
fn metadata_with_a_doubled_key_is_refused_wherever_it_stands() {
    for metadata in [r#"{"a":1,"a":2}"#, r#"{"b":[{"a":1,"a":1}]}"#] {
        for error in [
            refused::<api::Store>(&format!(r#"{{"text":"x","metadata":{metadata}}}"#)),
            refused::<api::Update>(&format!(r#"{{"id":"x","metadata":{metadata}}}"#)),
        ] {
            let parameter = error.data.parameter.as_deref().unwrap_or_default();
            assert!(parameter.starts_with("metadata"), "{parameter}");
            assert!(
                error.message.contains("the key `a` is given twice"),
                "{}",
                error.message
            );
        }
        let batch = format!(r#"{{"items":[{{"text":"a","metadata":{metadata}}},{{"text":"b"}}]}}"#);
        let items = decode_str::<api::StoreBatch>(Some(&batch)).unwrap().params.items;
        assert!(matches!(&items[0], BatchItem::Invalid(error) if error.message.contains("`a` is given twice")));
        assert!(matches!(&items[1], BatchItem::Valid(_)));
    }
    // On one level the same key means several conditions; within a value it means nothing.
    decode_str::<api::Delete>(Some(r#"{"metadata":{"tag":"a","tag":"b"}}"#)).unwrap();
    for json in [
        r#"{"metadata":{"k":{"a":1,"a":2}}}"#,
        r#"{"metadata":[{"k":{"a":1,"a":2}}]}"#,
    ] {
        for error in [refused::<api::Delete>(json), refused::<api::List>(json)] {
            let parameter = error.data.parameter.as_deref().unwrap_or_default();
            assert!(parameter.starts_with("metadata"), "{parameter}");
            assert!(
                error.message.contains("the key `a` is given twice"),
                "{}",
                error.message
            );
        }
    }
}

#[test]
fn names_and_places_mean_the_same() {
    let by_name = decode_str::<api::Store>(Some(
        r#"{"text":"x","type":"issue","agent":"a","on_duplicate":"store"}"#,
    ));
    let by_place = decode_str::<api::Store>(Some(r#"["x","issue","a",null,{},null,null,"store"]"#));
    assert_eq!(by_name, by_place);
    let store = by_name.unwrap().params;
    assert_eq!(store.knowledge_type, KnowledgeType::Issue);
    assert_eq!(store.on_duplicate, OnDuplicate::Store);
}

#[test]
fn absent_params_are_an_empty_object() {
    for json in [None, Some("{}"), Some("[]"), Some("null"), Some(" {\n} ")] {
        let decoded = decode_str::<api::List>(json).unwrap();
        assert_eq!(decoded.params, api::ListParams::default());
        assert_eq!((decoded.project_id, decoded.timeout_ms), (None, None));
    }
    for json in ["1", "\"x\"", "true"] {
        assert_eq!(refused::<api::List>(json).data.parameter, None);
    }
}

#[test]
fn common_parameters() {
    let decoded = decode_str::<api::Search>(Some(
        r#"{"query":"q","project_id":"p","timeout_ms":250,"knowledge_type":["issue"]}"#,
    ))
    .unwrap();
    assert_eq!(decoded.project_id.as_deref(), Some("p"));
    assert_eq!(decoded.timeout_ms, Some(250));
    assert_eq!(decoded.params.filters.types(), [KnowledgeType::Issue]);
    for bad in ["0", "600001", "-1", "1.5", "\"5\"", "1e9"] {
        let error = refused::<api::Search>(&format!(r#"{{"query":"q","timeout_ms":{bad}}}"#));
        assert_eq!(error.data.parameter.as_deref(), Some("timeout_ms"));
        assert!(error.message.contains("1 to 600000"), "{}", error.message);
    }
    assert_eq!(
        parameter::<api::Search>(r#"{"query":"q","project_id":"../x"}"#),
        "project_id"
    );
    assert_eq!(
        parameter::<api::Search>(r#"{"query":"q","project_id":5}"#),
        "project_id"
    );
    assert_eq!(
        parameter::<api::Search>(r#"{"query":"q","project_id":"*"}"#),
        "project_id"
    );
    assert_eq!(
        decode_str::<api::Subscribe>(Some(r#"{"project_id":"*"}"#))
            .unwrap()
            .project_id
            .as_deref(),
        Some("*")
    );
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    for (given, near) in [
        ("limt", "limit"),
        ("Limit", "limit"),
        ("projectid", "project_id"),
        ("querry", "query"),
    ] {
        let error = refused::<api::Search>(&format!(r#"{{"query":"q","{given}":1}}"#));
        assert_eq!(error.data.parameter.as_deref(), Some(given));
        assert_eq!(error.data.extra["nearest"], near);
        assert!(error.message.contains(near), "{}", error.message);
    }
    assert!(
        refused::<api::Search>(r#"{"query":"q","zzzzzz":1}"#)
            .message
            .contains("threshold")
    );
    assert!(refused::<api::Stats>(r#"{"zzzzzz":1}"#).message.contains("project_id"));
}

#[test]
fn repeated_names_are_refused() {
    assert_eq!(parameter::<api::Search>(r#"{"query":"a","query":"b"}"#), "query");
    assert_eq!(parameter::<api::Search>(r#"{"query":"a","qu\u0065ry":"b"}"#), "query");
    assert_eq!(
        parameter::<api::Search>(r#"{"query":"a","type":"issue","knowledge_type":"issue"}"#),
        "type"
    );
}

#[test]
fn wrong_types_name_the_parameter_and_what_is_right() {
    for (json, name, right) in [
        (r#"{"query":5}"#, "query", "a string"),
        (r#"{}"#, "query", "missing"),
        (r#"{"query":null}"#, "query", "missing"),
        (r#"{"query":"  "}"#, "query", "not blank"),
        (r#"{"query":"q","limit":"many"}"#, "limit", "integer"),
        (r#"{"query":"q","limit":-1}"#, "limit", "integer"),
        (r#"{"query":"q","limit":1e30}"#, "limit", "integer"),
        (r#"{"query":"q","limit":0}"#, "limit", "1 to 100"),
        (r#"{"query":"q","limit":101}"#, "limit", "1 to 100"),
        (r#"{"query":"q","mode":"fuzzy"}"#, "mode", "hybrid"),
        (r#"{"query":"q","mode":3}"#, "mode", ""),
        (r#"{"query":"q","type":"bug"}"#, "type", "decision"),
        (r#"{"query":"q","type":["issue","bug"]}"#, "type", "decision"),
        (r#"{"query":"q","type":7}"#, "type", "a string or a list"),
        (r#"{"query":"q","agent":{}}"#, "agent", "a string or a list"),
        (r#"{"query":"q","since":"yesterday"}"#, "since", "RFC 3339"),
        (r#"{"query":"q","until":5}"#, "until", "a string"),
        (r#"{"query":"q","metadata":[]}"#, "metadata", "an object"),
        (r#"{"query":"q","threshold":2}"#, "threshold", "0 to 1"),
        (r#"{"query":"q","threshold":"x"}"#, "threshold", "number"),
        (r#"{"query":"q","projects":["a","../b"]}"#, "projects", "project name"),
        (r#"{"query":"q","as_of":{}}"#, "as_of", "version"),
        (r#"{"query":"q","explain":1}"#, "explain", "true or false"),
        (r#"{"query":"\ud800"}"#, "query", "surrogate"),
        (r#"{"query":"q","agent":"\udc00"}"#, "agent", "surrogate"),
        (r#"{"query":"q","metadata":{"a":1e999}}"#, "metadata", "out of range"),
    ] {
        let error = refused::<api::Search>(json);
        let named = error.data.parameter.clone().unwrap_or_default();
        assert!(
            named == name || named.starts_with(&format!("{name}.")) || named.starts_with(&format!("{name}[")),
            "{json}: {named:?} {}",
            error.message
        );
        assert!(error.message.contains(right), "{json}: {}", error.message);
        assert!(!error.data.retryable);
    }
}

#[test]
fn values_do_not_leak_into_messages() {
    let secret = "hunter2".repeat(1000);
    for json in [
        format!(r#"{{"query":"q","limit":"{secret}"}}"#),
        format!(r#"{{"query":"q","mode":"{secret}"}}"#),
        format!(r#"{{"query":"q","type":"{secret}"}}"#),
        format!(r#"{{"query":"q","explain":"{secret}"}}"#),
        format!(r#"{{"query":"q","metadata":"{secret}"}}"#),
        format!(r#"{{"query":"q","since":"{secret}"}}"#),
        format!(r#"{{"query":"q","project_id":"{secret}"}}"#),
        format!(r#"{{"query":"q","as_of":["{secret}"]}}"#),
    ] {
        let error = refused::<api::Search>(&json);
        assert!(!error.message.contains("hunter2"), "{}", error.message);
    }
}

#[test]
fn too_many_places() {
    assert_eq!(refused::<api::History>(r#"["a","b"]"#).data.parameter, None);
    assert_eq!(parameter::<api::Search>(r#"["q","x"]"#), "limit");
    let decoded = decode_str::<api::Search>(Some(r#"["q",3,null,"text",null,"issue"]"#))
        .unwrap()
        .params;
    assert_eq!((decoded.limit, decoded.mode), (3, SearchMode::Text));
    assert_eq!(decoded.filters.types(), [KnowledgeType::Issue]);
}

#[test]
fn bad_items_of_a_batch_fail_alone() {
    let batch = r#"{"items":[{"text":"a"},{"text":5},{"txt":"b"},7,{"text":" "},{"text":"\ud800"},{"text":"z","type":"issue"}]}"#;
    let items = decode_str::<api::StoreBatch>(Some(batch)).unwrap().params.items;
    let named: Vec<Option<String>> = items
        .iter()
        .map(|item| match item {
            BatchItem::Valid(_) => None,
            BatchItem::Invalid(error) => error.data.parameter.clone(),
        })
        .collect();
    let expected = [
        None,
        Some("text"),
        Some("txt"),
        Some("items"),
        Some("text"),
        Some("text"),
        None,
    ];
    assert_eq!(named.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    assert_eq!(parameter::<api::StoreBatch>(r#"{"items":[]}"#), "items");
    assert_eq!(parameter::<api::StoreBatch>(r#"{"items":{}}"#), "items");
    assert_eq!(parameter::<api::StoreBatch>("{}"), "items");
}

#[test]
fn rules_between_parameters() {
    assert_eq!(parameter::<api::Get>("{}"), "id");
    assert_eq!(parameter::<api::Get>(r#"{"id":"a","ids":["b"]}"#), "ids");
    assert_eq!(parameter::<api::Delete>("{}"), "id");
    assert!(decode_str::<api::Delete>(Some(r#"{"agent":"a"}"#)).is_ok());
    assert_eq!(parameter::<api::Purge>(r#"{"id":"a"}"#), "confirm");
    assert_eq!(parameter::<api::Update>(r#"{"id":"a"}"#), "text");
    assert_eq!(parameter::<api::Backup>(r#"{"path":"x"}"#), "path");
    assert_eq!(parameter::<api::Undelete>("{}"), "undo_token");
}

#[test]
fn no_path_has_control_characters() {
    fn check<M: Method>() {
        for (path, right) in [
            (r"/tmp/a\nb", "control"),
            (r"/tmp/a\u0000", "control"),
            (r"\u0000", "control"),
            (r"/tmp/\u0085", "control"),
            ("tmp/a", "absolute"),
            ("", "absolute"),
        ] {
            let error = refused::<M>(&format!(r#"{{"path":"{path}"}}"#));
            assert_eq!(error.data.parameter.as_deref(), Some("path"), "{} {path}", M::NAME);
            assert!(error.message.contains(right), "{} {path}: {}", M::NAME, error.message);
        }
        assert!(decode_str::<M>(Some(r#"{"path":"/tmp/ä b"}"#)).is_ok(), "{}", M::NAME);
    }
    check::<api::Backup>();
    check::<api::Restore>();
    check::<api::Import>();
    check::<api::Export>();
    // And no other method takes one.
    let with_path = api::METHODS.iter().filter(|row| row.positional.contains(&"path"));
    assert_eq!(with_path.count(), 4);
}

#[test]
fn an_integer_that_would_be_rounded_is_refused_in_all_metadata() {
    let metadata = r#""metadata":{"a":{"ticket":18446744073709551616}}"#;
    let store = format!(r#"{{"text":"t",{metadata}}}"#);
    for error in [
        refused::<api::Store>(&store),
        refused::<api::Store>(r#"["t","issue","a","s",{"a":{"ticket":-9223372036854775809}}]"#),
        refused::<api::Update>(&format!(r#"{{"id":"a",{metadata}}}"#)),
        refused::<api::Search>(&format!(r#"{{"query":"q",{metadata}}}"#)),
        refused::<api::List>(&format!("{{{metadata}}}")),
    ] {
        assert_eq!(error.data.parameter.as_deref(), Some("metadata"), "{}", error.message);
        assert!(error.message.contains("`a.ticket`"), "{}", error.message);
    }
    let batch = format!(r#"{{"items":[{store},{{"text":"u"}}]}}"#);
    let items = decode_str::<api::StoreBatch>(Some(&batch)).unwrap().params.items;
    assert!(matches!(&items[0], BatchItem::Invalid(error) if error.message.contains("`a.ticket`")));
    assert!(matches!(&items[1], BatchItem::Valid(_)));
    let most = r#"{"text":"t","metadata":{"a":18446744073709551615,"b":1e300}}"#;
    let kept = decode_str::<api::Store>(Some(most)).unwrap().params.metadata;
    assert_eq!(kept["a"].as_u64(), Some(u64::MAX));
}

#[test]
fn a_peek_sees_only_a_valid_timeout() {
    let peek = |json| peek_timeout(Some(json)).map(|timeout| timeout.as_millis());
    assert_eq!(peek(r#"{"query":"q","timeout_ms":7}"#), Some(7));
    assert_eq!(peek(r#"{"timeout_ms":0}"#), None);
    assert_eq!(peek(r#"{"query":"timeout_ms"}"#), None);
    assert_eq!(peek(r#"["timeout_ms"]"#), None);
    let peek = |json| peek_trace_id(Some(json));
    assert_eq!(peek(r#"{"query":"q","trace_id":"a\nb"}"#).as_deref(), Some("a\nb"));
    for none in [
        r#"{"trace_id":7}"#,
        r#"{"trace_id":null}"#,
        r#"{"query":"trace_id"}"#,
        r#"["trace_id"]"#,
    ] {
        assert_eq!(peek(none), None, "{none}");
    }
    assert_eq!(peek_timeout(None), None);
}

#[test]
fn defaults_survive_a_round_trip() {
    let search = api::SearchParams {
        query: "q".to_owned(),
        ..Default::default()
    };
    let text = serde_json::to_string(&search).unwrap();
    assert_eq!(decode_str::<api::Search>(Some(&text)).unwrap().params, search);
    let cleanup = serde_json::to_string(&api::CleanupParams::default()).unwrap();
    assert!(decode_str::<api::Cleanup>(Some(&cleanup)).unwrap().params.dry_run);
}
