//! What the crates depend on.

use std::process::Command;

use serde_json::Value;

/// The crates under `package`, a line each.
fn tree(package: &str) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "-p", package, "-e", "normal", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn assert_without(tree: &str, names: &[&str]) {
    for name in names {
        assert!(!tree.lines().any(|line| line.starts_with(name)), "{name} in:\n{tree}");
    }
}

#[test]
fn neither_the_store_nor_the_model_is_in_the_tree() {
    let tree = tree("ccod-protocol");
    assert!(tree.contains("jsonrpsee"), "{tree}");
    assert_without(
        &tree,
        &[
            "lance",
            "candle",
            "arrow",
            "datafusion",
            "tokenizers",
            "hyper ",
            "ccod-actors",
        ],
    );
}

#[test]
fn protocol_and_actors_do_not_know_each_other() {
    // From the manifests: a build of the wire alone has none of the engine's crates.
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ours_under = |package: &str| -> Vec<String> {
        let packages = metadata["packages"].as_array().unwrap();
        let package = packages.iter().find(|found| found["name"] == package).unwrap();
        let dependencies = package["dependencies"].as_array().unwrap();
        let names = dependencies
            .iter()
            .map(|dependency| dependency["name"].as_str().unwrap());
        names
            .filter(|name| name.starts_with("ccod"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(ours_under("ccod-protocol"), ["ccod-words"]);
    assert_eq!(ours_under("ccod-actors"), ["ccod-index", "ccod-model", "ccod-words"]);
    assert_eq!(ours_under("ccod-index"), ["ccod-words"]);
    assert_eq!(ours_under("ccod-model"), [""; 0]);
    assert_eq!(ours_under("ccod-words"), [""; 0]);
}

#[test]
fn the_model_knows_neither_the_store_nor_the_runtime() {
    let tree = tree("ccod-model");
    assert!(tree.contains("candle-core"), "{tree}");
    assert_without(
        &tree,
        &[
            "lance",
            "arrow",
            "datafusion",
            "tokio",
            "ractor",
            "jsonrpsee",
            "ccod-w",
            "ccod-a",
        ],
    );
}

#[test]
fn the_words_are_light() {
    let tree = tree("ccod-words");
    assert!(tree.contains("schemars"), "{tree}");
    assert_without(
        &tree,
        &[
            "tokio",
            "jsonrpsee",
            "lance",
            "arrow",
            "candle",
            "ccod-protocol",
            "ccod-actors",
        ],
    );
}
