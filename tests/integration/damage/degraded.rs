//! A search that finds less than it was asked to says so, and says how it really searched.

use ccod_actors::lance::Dataset;
use ccod_actors::store::table::schema::{MODEL_KEY, TABLE_NAME};
use serde_json::json;

use crate::support::Daemon;

#[test]
fn a_project_of_another_model_is_searched_by_keywords_with_the_scores_of_keywords() {
    let mut daemon = Daemon::start();
    let id = daemon.store("Invoices are archived after ninety days");
    daemon.store("Retries of the mailer have a budget of ten percent");
    daemon.call("admin.shutdown", json!({}));
    daemon.wait();
    let home = daemon.into_home();
    let table = home.path().join(format!("knowledge/default/{TABLE_NAME}.lance"));
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut dataset = Dataset::open(table.to_str().unwrap()).await.unwrap();
        dataset
            .update_schema_metadata([(MODEL_KEY, "another-model@0")])
            .await
            .unwrap();
    });
    let daemon = Daemon::start_in(home, &[]);
    let found = daemon.call("knowledge.search", json!({"query": "archived invoices"}));
    assert_eq!(
        (&found["mode"], &found["count"]),
        (&json!("text"), &json!(1)),
        "{found}"
    );
    assert!(found["degraded"].as_str().unwrap().contains("another-model"), "{found}");
    assert_eq!(found["results"][0]["id"], json!(id));
    let text = daemon.call(
        "knowledge.search",
        json!({"query": "archived invoices", "mode": "text"}),
    );
    assert_eq!(found["results"][0]["score"], text["results"][0]["score"]);
    assert_eq!(text["degraded"], json!(null));

    let run = |arguments: &[&str]| {
        let output = daemon.home.run(&[&["search", "archived invoices"], arguments].concat());
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let told = run(&["--project", "default"]);
    assert!(told.contains("searched by text only"), "{told}");
    // A project beside it that can be searched in full is.
    daemon.call(
        "knowledge.store",
        json!({"text": "Invoices go out on Mondays", "project_id": "sound"}),
    );
    let found = daemon.call("knowledge.search", json!({"query": "invoices", "projects": "*"}));
    assert_eq!(
        (&found["mode"], &found["count"]),
        (&json!("hybrid"), &json!(2)),
        "{found}"
    );
    let told = run(&["--all-projects"]);
    assert!(told.contains("another-model") && !told.contains("only"), "{told}");
}
