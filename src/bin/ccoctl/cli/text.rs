//! Texts and metadata as they are given on the command line or by a pipe.

use std::io::Read;

use ccod::program::exit::{CliError, CliResult, Exit};
use ccod_protocol::api::{Metadata, MetadataFilter, rounded_integer};

/// `text`, or standard input if it is `-`.
pub(crate) fn text_or_stdin(text: String) -> CliResult<String> {
    if text != "-" {
        return Ok(text);
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .read_to_end(&mut bytes)
        .map_err(|error| CliError::io("read standard input", &error))?;
    let input = String::from_utf8(bytes)
        .map_err(|_| CliError::new(Exit::BadData, "standard input is not UTF-8").fix("convert it first (iconv)"))?;
    Ok(without_last_newline(&input).to_owned())
}

/// The text that came from a pipe: the newline at the end of its last line, in either form, is not part of it.
fn without_last_newline(input: &str) -> &str {
    match input.strip_suffix('\n') {
        Some(line) => line.strip_suffix('\r').unwrap_or(line),
        None => input,
    }
}

/// Refuses a blank text before a daemon is started for it.
pub(crate) fn check_not_blank(text: &str) -> CliResult<()> {
    if text.trim().is_empty() {
        return Err(
            CliError::new(Exit::BadData, "the text is empty, so there is nothing to store")
                .fix("if it comes from a variable or a pipe, see whether that holds anything"),
        );
    }
    Ok(())
}

/// As [`text_or_stdin`], and not blank.
pub(crate) fn text_to_store(text: String) -> CliResult<String> {
    let text = text_or_stdin(text)?;
    check_not_blank(&text)?;
    Ok(text)
}

pub(crate) fn parse_metadata(text: Option<&str>) -> CliResult<Metadata> {
    let Some(text) = text else {
        return Ok(Metadata::new());
    };
    let refused = |what: String| {
        CliError::new(Exit::BadData, format!("--metadata {what}")).fix("write it like '{\"file\":\"src/auth.rs\"}'")
    };
    if !text.trim_start().starts_with('{') {
        return Err(refused("is not a JSON object".to_owned()));
    }
    if let Some(place) = rounded_integer(text) {
        return Err(CliError::new(
            Exit::BadData,
            format!("--metadata {}", too_large(&place)),
        ));
    }
    let members: MetadataFilter =
        serde_json::from_str(text).map_err(|error| refused(format!("is not a JSON object: {error}")))?;
    let mut metadata = Metadata::new();
    for (key, value) in members {
        if metadata.contains_key(&key) {
            return Err(refused(format!("gives the key {key:?} two different values")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// The message about an integer at `place` that would be rounded here.
pub(crate) fn too_large(place: &str) -> String {
    format!("has an integer under `{place}` that needs more than 64 bits; give it as a string, in double quotes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_says_nothing_is_refused() {
        for blank in ["", "  ", "\n\t"] {
            assert_eq!(check_not_blank(blank).expect_err(blank).exit, Exit::BadData);
        }
        check_not_blank(" a ").expect("accepted");
    }

    #[test]
    fn the_end_of_the_last_line_is_not_part_of_a_text() {
        for (input, text) in [
            ("x", "x"),
            ("x\n", "x"),
            ("x\r\n", "x"),
            ("x\n\n", "x\n"),
            ("a\r\nb\r\n", "a\r\nb"),
            ("x\r", "x\r"),
            ("\r\n", ""),
        ] {
            assert_eq!(without_last_newline(input), text, "{input:?}");
        }
    }

    #[test]
    fn metadata_must_be_an_object() {
        for refused in ["[1]", "", "1", r#"{"a":1,"a":2}"#, "{"] {
            assert_eq!(parse_metadata(Some(refused)).expect_err("refused").exit, Exit::BadData);
        }
        let rounded = parse_metadata(Some(r#"{"a":{"b":18446744073709551616}}"#)).expect_err("refused");
        assert_eq!(rounded.exit, Exit::BadData);
        assert!(rounded.message.contains("`a.b`"), "{rounded}");
        assert_eq!(parse_metadata(Some("{\"a\":1}")).expect("accepted").len(), 1);
        assert!(parse_metadata(None).expect("none").is_empty());
    }
}
