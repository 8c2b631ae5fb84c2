//! What is said of parameters that cannot be decoded.

use ccod_words::shortened;
use std::borrow::Cow;

use super::near;
use crate::error::WireError;

pub(crate) fn not_structured() -> WireError {
    let mut error = WireError::invalid_params(
        "params",
        "`params` must be an object, or an array in the documented order",
    );
    error.data.parameter = None;
    error
}

pub(super) fn twice(name: &str) -> WireError {
    let name = shortened(name, 60);
    WireError::invalid_params(name.clone(), format!("`{name}` is given twice; give it once"))
}

pub(super) fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

pub(super) fn unknown(name: &str, known: &[&'static str], common: &[&'static str]) -> WireError {
    let all = || known.iter().chain(common).copied();
    let near = near::nearest_parameter(name, all());
    let name = shortened(name, 60);
    let message = match near {
        Some(near) => format!("there is no parameter `{name}`; did you mean `{near}`?"),
        None => format!(
            "there is no parameter `{name}`; the parameters are: {}",
            listed(&all().collect::<Vec<_>>())
        ),
    };
    let error = WireError::invalid_params(name, message);
    match near {
        Some(near) => error.with_extra("nearest", near),
        None => error,
    }
}

pub(super) fn unreadable(error: &serde_json::Error) -> WireError {
    let mut refusal = wrong("params", error);
    refusal.data.parameter = None;
    refusal
}

/// Says what is wrong with the parameter at `path`, from serde's words but without the value.
pub(super) fn wrong(path: &str, error: &serde_json::Error) -> WireError {
    let text = error.to_string();
    let text = text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]);
    if let Some(rest) = text.strip_prefix("missing field `") {
        let field = rest.trim_end_matches('`');
        let full = if path.is_empty() {
            field.to_owned()
        } else {
            format!("{path}.{field}")
        };
        return WireError::invalid_params(full.clone(), format!("`{full}` is missing"));
    }
    let name = if path.is_empty() { "params" } else { path };
    let message = if let Some((_, expected)) = text
        .strip_prefix("unknown variant")
        .and_then(|rest| rest.split_once(", expected "))
    {
        format!("`{name}` must be {}", expected.replace('`', ""))
    } else if let Some((found, expected)) = text
        .strip_prefix("invalid type: ")
        .and_then(|rest| rest.rsplit_once(", expected "))
    {
        if is_whole(found) {
            format!("`{name}` must be {}; this number is out of range", plain(expected))
        } else {
            format!("`{name}` must be {}, not {}", plain(expected), found_type(found))
        }
    } else if let Some((_, expected)) = text
        .strip_prefix("invalid value: ")
        .and_then(|rest| rest.rsplit_once(", expected "))
    {
        format!("`{name}` must be {}", plain(expected))
    } else if text.contains("surrogate") || text.contains("hex escape") {
        format!("`{name}` holds a lone surrogate escape, which is not a character; remove it or give the pair")
    } else if text.contains("number out of range") {
        format!("`{name}` holds a number that is out of range")
    } else if let Some(expected) = text.strip_prefix("expected ") {
        format!("`{name}` must be {}", shortened(expected, 120))
    } else if error.is_data() {
        format!("`{name}` cannot be read: {}", shortened(text, 120))
    } else {
        format!("`{name}` is not well-formed: {}", shortened(text, 120))
    };
    if path.is_empty() {
        let mut refusal = WireError::invalid_params("params", message);
        refusal.data.parameter = None;
        return refusal;
    }
    WireError::invalid_params(path, message)
}

/// What serde expected, in words for people who do not write Rust.
fn plain(expected: &str) -> Cow<'_, str> {
    Cow::Borrowed(match expected {
        "u8" => "an integer from 0 to 255",
        "u32" => "an integer from 0 to 4294967295",
        "u64" | "usize" => "an integer of 0 or more",
        "i32" | "i64" => "an integer",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other if other.starts_with("enum ") => "one of its words",
        other => return Cow::Owned(shortened(other, 120)),
    })
}

/// Whether what was found is a number without a fraction that is too large for an integer.
fn is_whole(found: &str) -> bool {
    found
        .strip_prefix("floating point `")
        .and_then(|rest| rest.strip_suffix('`'))
        .and_then(|number| number.parse::<f64>().ok())
        .is_some_and(|number| number.fract() == 0.0 && number.abs() >= i64::MAX as f64)
}

fn found_type(found: &str) -> &'static str {
    match found.split_whitespace().next().unwrap_or_default() {
        "string" | "character" => "a string",
        "integer" => "an integer",
        "floating" => "a fraction",
        "boolean" => "true or false",
        "sequence" => "a list",
        "map" => "an object",
        "null" | "unit" => "null",
        _ => "this",
    }
}
