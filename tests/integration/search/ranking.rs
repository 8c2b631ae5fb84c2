//! What is found, in which order, with which scores, and how much of it.

use serde_json::{Value, json};

use crate::support::{Daemon, ids};

#[test]
fn modes_report_their_scores_apart_and_nothing_matches_nothing() {
    let daemon = Daemon::start();
    let id = daemon.store("The scheduler uses a hierarchical timing wheel, see fooBarWheel and error E0277.");
    daemon.store("Invoices are rendered to PDF by a headless browser.");

    let hybrid = daemon.call("knowledge.search", json!({"query": "timing wheel"}));
    let best = &hybrid["results"][0];
    assert_eq!(best["id"], id.as_str());
    let (score, similarity) = (best["score"].as_f64().unwrap(), best["similarity"].as_f64().unwrap());
    assert!(
        (score - (0.7 * similarity + 0.3)).abs() < 1e-3,
        "the best of both legs: {best}"
    );
    assert!(best["similarity"].as_f64().unwrap() > 0.3);
    assert!(best["bm25"].as_f64().unwrap() > 0.0);
    assert_eq!(best["passage"]["index"], 0);

    let vector = daemon.call("knowledge.search", json!({"query": "timing wheel", "mode": "vector"}));
    assert_eq!(vector["results"][0]["bm25"], Value::Null);
    let text = daemon.call("knowledge.search", json!({"query": "timing wheel", "mode": "text"}));
    assert_eq!(ids(&text), [id.as_str()]);
    assert_eq!(text["results"][0]["similarity"], Value::Null);

    for identifier in ["fooBarWheel", "foobarwheel", "E0277", "e0277"] {
        assert_eq!(
            daemon.search_ids(json!({"query": identifier, "mode": "text"})),
            [id.as_str()],
            "{identifier}"
        );
    }
    // No word and no meaning in common; stop words alone; punctuation alone.
    for query in ["zxqv wvutsrq qqqq", "xylophone"] {
        assert_eq!(
            daemon.search_ids(json!({"query": query, "mode": "text"})),
            Vec::<String>::new()
        );
        assert_eq!(
            daemon.search_ids(json!({"query": query})),
            Vec::<String>::new(),
            "{query}"
        );
    }
    for query in ["the of and", "?!...", "🚀"] {
        assert_eq!(
            daemon.search_ids(json!({"query": query, "mode": "text"})),
            Vec::<String>::new(),
            "{query}"
        );
    }
    let high = daemon.call(
        "knowledge.search",
        json!({"query": "timing wheel", "threshold": 0.99, "mode": "vector"}),
    );
    assert_eq!(high["count"], 0);
}

#[test]
fn filters_are_applied_before_the_best_are_taken() {
    let daemon = Daemon::start();
    let mut items = Vec::new();
    for index in 0..60 {
        items.push(
            json!({"text": format!("Cache invalidation note number {index} about the cache."), "agent": "noise"}),
        );
    }
    let wanted = json!({
        "text": "Something about caches that ranks low, with many other words that have nothing to do with it at all.",
        "type": "issue", "agent": "ana", "session_id": "s-1", "metadata": {"ticket": 7, "tags": ["a", "it's"], "deep": {"x": [1]}}
    });
    items.push(wanted);
    let batch = daemon.call("knowledge.store_batch", json!({"items": items}));
    assert_eq!(batch["stored"], 61, "{batch:#}");
    let id = batch["ids"][60].clone();

    let only = |filter: Value| {
        let mut params = json!({"query": "cache invalidation", "limit": 5});
        params
            .as_object_mut()
            .unwrap()
            .extend(filter.as_object().unwrap().clone());
        daemon.search_ids(params)
    };
    for filter in [
        json!({"type": "issue"}),
        json!({"knowledge_type": ["issue", "pattern"]}),
        json!({"agent": "ana"}),
        json!({"session_id": ["s-1", "s-2"]}),
        json!({"metadata": {"ticket": 7}}),
        json!({"metadata": {"tags": "it's"}}),
        json!({"metadata": {"tags": ["a", "it's"], "deep": {"x": [1]}}}),
    ] {
        assert_eq!(only(filter.clone()), [id.as_str().unwrap()], "{filter}");
    }
    assert_eq!(only(json!({"metadata": {"ticket": 8}})).len(), 0);
    assert_eq!(only(json!({"agent": "' OR 1=1 --"})).len(), 0);
    assert_eq!(only(json!({"until": "2020-01-01"})).len(), 0);
    assert_eq!(only(json!({"since": "2020-01-01", "agent": "ana"})).len(), 1);

    let counted = daemon.call("knowledge.list", json!({"type": "issue"}));
    assert_eq!((counted["total"].as_u64(), ids(&counted).len()), (Some(1), 1));
}

#[test]
fn long_texts_are_found_by_any_of_their_passages() {
    let daemon = Daemon::start();
    let filler = |topic: &str| {
        format!("This part of the handbook is about {topic} and says again what the team agreed on. ").repeat(40)
    };
    let text = format!(
        "{}The emergency phone number of the data centre is written on the blue door. {}",
        filler("vacation days"),
        filler("expense reports")
    );
    let stored = daemon.call("knowledge.store", json!({"text": text}));
    assert!(stored["passages"].as_u64().unwrap() > 3, "{stored}");
    daemon.store("A short note about something else.");

    let found = daemon.call(
        "knowledge.search",
        json!({"query": "emergency phone number of the data centre", "limit": 3}),
    );
    let hits = found["results"].as_array().unwrap();
    let same = hits.iter().filter(|hit| hit["id"] == stored["id"]).count();
    assert_eq!(same, 1, "an item is one result, whatever its passages");
    let best = &hits[0];
    assert_eq!(best["text"], text);
    let passage = &best["passage"];
    assert!(passage["text"].as_str().unwrap().contains("emergency phone number"));
    let (start, end) = (
        passage["start"].as_u64().unwrap() as usize,
        passage["end"].as_u64().unwrap() as usize,
    );
    assert_eq!(&text[start..end], passage["text"].as_str().unwrap());

    let stats = daemon.call("knowledge.stats", json!({}));
    assert_eq!(stats["total"], 2);
    assert_eq!(
        stats["passages"].as_u64().unwrap(),
        stored["passages"].as_u64().unwrap() + 1
    );
}

#[test]
fn a_passage_says_where_it_stands_in_bytes() {
    let daemon = Daemon::start();
    let texts = [
        ("cjk", "状态页面也要支持中文，重试队列会在故障后恢复。".repeat(30)),
        (
            "emoji",
            "The rollout 🚀 of the 👩‍👩‍👧‍👦 service went ✅ fine, said the crab 🦀. ".repeat(30),
        ),
        (
            "marks",
            "Cafe\u{301} re\u{301}sume\u{301} des e\u{301}ve\u{301}nements: la file d'attente est pleine. ".repeat(30),
        ),
        (
            "crlf",
            "Grüße from the first line\r\nand from the second one\r\n\r\n".repeat(40),
        ),
        (
            "ascii",
            "Plain words about the state of the deployment and its queue. ".repeat(40),
        ),
        ("short", "größer als ein Byte".to_owned()),
    ];
    for (agent, text) in &texts {
        let marked = format!("{text}the last words: zebra{agent}");
        let stored = daemon.call("knowledge.store", json!({"text": marked, "agent": agent}));
        assert!(
            *agent == "short" || stored["passages"].as_u64().unwrap() > 1,
            "{agent}: {stored}"
        );
        for query in [format!("zebra{agent}"), text.chars().take(20).collect()] {
            for mode in ["hybrid", "vector"] {
                let found = daemon.call(
                    "knowledge.search",
                    json!({"query": query, "agent": agent, "mode": mode}),
                );
                let hit = &found["results"][0];
                let (whole, passage) = (hit["text"].as_str().unwrap(), &hit["passage"]);
                assert_eq!(whole, marked);
                let place = |end: &str| usize::try_from(passage[end].as_u64().unwrap()).unwrap();
                let cut = whole.get(place("start")..place("end"));
                assert_eq!(cut, passage["text"].as_str(), "{agent}, {query}: {passage}");
            }
        }
        // The last passage ends where the text does, in bytes.
        let found = daemon.call(
            "knowledge.search",
            json!({"query": format!("zebra{agent}"), "agent": agent, "mode": "text"}),
        );
        assert_eq!(found["results"][0]["passage"]["end"], marked.len(), "{agent}");
    }
}

#[test]
fn budget_and_threshold_limit_what_comes_back() {
    let daemon = Daemon::start();
    let items: Vec<Value> = (0..5)
        .map(|n| json!({"text": format!("Release checklist step {n}: {}", "tag the build ".repeat(20))}))
        .collect();
    daemon.call("knowledge.store_batch", json!({"items": items}));
    let all = daemon.call("knowledge.search", json!({"query": "release checklist"}));
    assert_eq!((&all["count"], &all["omitted"]), (&json!(5), &json!(0)));
    let some = daemon.call(
        "knowledge.search",
        json!({"query": "release checklist", "budget_tokens": 170}),
    );
    assert_eq!((&some["count"], &some["omitted"]), (&json!(2), &json!(3)), "{some:#}");
    let one = daemon.call(
        "knowledge.search",
        json!({"query": "release checklist", "budget_tokens": 1}),
    );
    assert_eq!((&one["count"], &one["omitted"]), (&json!(1), &json!(4)));
    let paged: Vec<String> = (0..5)
        .flat_map(|offset| daemon.search_ids(json!({"query": "release checklist", "limit": 1, "offset": offset})))
        .collect();
    assert_eq!(paged, ids(&all));
}
