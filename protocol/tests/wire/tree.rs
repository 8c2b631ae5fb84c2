//! What the crate depends on.

use std::process::Command;

#[test]
fn neither_the_store_nor_the_model_is_in_the_tree() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args([
            "tree",
            "--offline",
            "-p",
            "ccod-protocol",
            "-e",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("jsonrpsee"), "{tree}");
    for heavy in ["lance", "candle", "arrow", "datafusion", "tokenizers", "hyper "] {
        assert!(!tree.lines().any(|line| line.starts_with(heavy)), "{heavy} in:\n{tree}");
    }
}
