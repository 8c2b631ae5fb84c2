//! Replays the inputs that fuzzing has found worth keeping. `protocol/fuzz` says how to find more.

#[path = "../../fuzz/check.rs"]
mod check;

#[test]
fn the_corpus_holds() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with(".gitattributes") {
            continue;
        }
        let input = std::fs::read(&path).unwrap();
        // Shown only if the check fails: it says which input it was.
        println!("{}", path.display());
        check::check(&input);
        count += 1;
    }
    assert!(count >= 50, "only {count} inputs were found in {directory}");
}
