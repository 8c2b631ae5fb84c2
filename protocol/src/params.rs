//! Decodes the parameters of a call.
//!
//! Parameters come as an object, or as an array in the order of [`Method::POSITIONAL`]. Three are common to
//! all methods: `project_id`, `timeout_ms` and `trace_id`. Everything else must be known: an unknown name is refused
//! with the nearest known one, a repeated name is refused, and a wrong type is refused with the path of the
//! parameter and what would have been right. (serde's `deny_unknown_fields` cannot do this together with
//! `flatten`, hence this module.) A parameter that is `null` counts as absent, unless it is a filter or a target
//! (see `empty`). Nothing is decoded that is larger than it may be (see `bounds`).
//!
//! Messages name parameters, never their values: a value may be a secret, or a megabyte.

mod bounds;
mod empty;
mod near;

use ccod_words::shortened;
use serde::Deserialize;
use serde::de::value::MapDeserializer;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::api::{Filter, Method, MethodInfo, Params, ProjectName, Store, StoreParams, rounded_integer};
use crate::error::WireError;

pub use bounds::Bounds;
pub(crate) use near::nearest_method;

/// The parameters that every method takes.
pub const COMMON: &[&str] = &["project_id", "timeout_ms", "trace_id"];
/// The longest deadline that a caller may ask for, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 600_000;
/// The longest `trace_id`, in bytes.
pub const TRACE_ID_MAX: usize = 256;
/// Names of one object that are looked at. No method has as many, so what stands behind them cannot make it right.
const NAMES_MAX: usize = 64;

/// The parameters of one call.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded<P> {
    /// The method's own.
    pub params: P,
    /// The project, if one was named; a valid name (or `"*"` where the method allows it).
    pub project_id: Option<String>,
    /// The deadline that was asked for, 1 to 600,000 ms.
    pub timeout_ms: Option<u64>,
    /// The caller's own name for the call.
    pub trace_id: Option<String>,
}

/// Decodes the parameters of `M` from raw JSON; none means an empty object.
///
/// # Errors
/// -32602 with the parameter's name where there is one.
pub fn decode<M: Method>(raw: Option<&RawValue>) -> Result<Decoded<M::Params>, WireError> {
    decode_str::<M>(raw.map(RawValue::get))
}

/// [`decode`] for JSON in a string.
///
/// # Errors
/// As [`decode`].
pub fn decode_str<M: Method>(json: Option<&str>) -> Result<Decoded<M::Params>, WireError> {
    decode_within::<M>(json, Bounds::default())
}

/// [`decode`] for JSON in a string, with other bounds than the default limits'.
///
/// # Errors
/// As [`decode`].
pub fn decode_within<M: Method>(json: Option<&str>, bounds: Bounds) -> Result<Decoded<M::Params>, WireError> {
    let json = json.map_or("{}", str::trim);
    let mut entries = match json.as_bytes().first() {
        None => Vec::new(),
        Some(b'[') => positional::<M>(json)?,
        Some(b'{') => named(json)?,
        Some(_) if json == "null" => Vec::new(),
        Some(_) => return Err(not_structured()),
    };
    // Lengths first: what follows looks at every element.
    bounds.check(&entries)?;
    // Before `null` becomes "absent": whoever misspells a filter whose value came out as `null` has named nothing that
    // would be left out.
    known_alone(&entries, M::POSITIONAL, M::ALIASES, COMMON)?;
    empty::refuse(&MethodInfo::of::<M>(), &entries)?;
    unrounded(&entries)?;
    entries.retain(|(_, value)| value.get() != "null");
    let project_id = take(&mut entries, "project_id", |raw| project(raw, M::SCOPE.takes_every()))?;
    let timeout_ms = take(&mut entries, "timeout_ms", timeout)?;
    let trace_id = take(&mut entries, "trace_id", trace)?;
    let _bounds_of_the_items = bounds.enter();
    let params = fields::<M::Params>(entries, M::POSITIONAL, M::ALIASES)?;
    params.check()?;
    Ok(Decoded {
        params,
        project_id,
        timeout_ms,
        trace_id,
    })
}

#[cfg(test)]
pub(crate) fn decode_any(method: &MethodInfo, json: &str) -> Result<(), WireError> {
    (method.check_params)(json)
}

/// Decodes one item of a batch: the parameters of `knowledge.store` without the common ones.
pub(crate) fn decode_item(raw: &RawValue) -> Result<StoreParams, WireError> {
    if !raw.get().starts_with('{') {
        return Err(WireError::invalid_params(
            "items",
            "each of `items` must be an object with a `text`",
        ));
    }
    let mut entries = named(raw.get())?;
    Bounds::present().check(&entries)?;
    known_alone(&entries, Store::POSITIONAL, Store::ALIASES, &[])?;
    unrounded(&entries)?;
    entries.retain(|(_, value)| value.get() != "null");
    let item = fields::<StoreParams>(entries, Store::POSITIONAL, Store::ALIASES)?;
    item.check()?;
    Ok(item)
}

/// The deadline that the parameters ask for, found without decoding them. Anything that is not a valid
/// `timeout_ms` counts as absent here: decoding refuses it later, with a message.
#[must_use]
pub fn peek_timeout(json: Option<&str>) -> Option<Duration> {
    peek(json, "timeout_ms", timeout).map(Duration::from_millis)
}

/// The `trace_id` of the parameters, found without decoding them, as [`peek_timeout`] finds the deadline.
#[must_use]
pub fn peek_trace_id(json: Option<&str>) -> Option<String> {
    peek(json, "trace_id", trace)
}

fn peek<'a, T>(
    json: Option<&'a str>,
    name: &str,
    read: impl FnOnce(&'a RawValue) -> Result<T, WireError>,
) -> Option<T> {
    let json = json?;
    // Most calls name neither, and a substring search is far cheaper than a parse of a large text.
    if !json.contains(name) || !json.trim_start().starts_with('{') {
        return None;
    }
    take(&mut named(json).ok()?, name, read).ok()?
}

pub(crate) fn not_structured() -> WireError {
    let mut error = WireError::invalid_params(
        "params",
        "`params` must be an object, or an array in the documented order",
    );
    error.data.parameter = None;
    error
}

type Entry<'a> = (Cow<'a, str>, &'a RawValue);

/// The entries of an object in their order; a repeated name is refused.
fn named(json: &str) -> Result<Vec<Entry<'_>>, WireError> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<Entry<'de>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            while let Some(Key(name)) = map.next_key()? {
                let value = map.next_value()?;
                if entries.len() < NAMES_MAX {
                    entries.push((name, value));
                }
            }
            Ok(entries)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(json);
    let entries = deserializer
        .deserialize_map(Entries)
        .map_err(|error| unreadable(&error))?;
    deserializer.end().map_err(|error| unreadable(&error))?;
    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_ref()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(twice(pair[0]));
    }
    Ok(entries)
}

/// The elements of an array under the names of their places.
fn positional<M: Method>(json: &str) -> Result<Vec<Entry<'_>>, WireError> {
    struct Elements(&'static [&'static str]);

    impl<'de> Visitor<'de> for Elements {
        /// The entries, and whether there were more elements than names.
        type Value = (Vec<Entry<'de>>, bool);

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut entries = Vec::new();
            for name in self.0 {
                match list.next_element::<&RawValue>()? {
                    Some(value) => entries.push((Cow::Borrowed(*name), value)),
                    None => return Ok((entries, false)),
                }
            }
            let mut more = false;
            while list.next_element::<serde::de::IgnoredAny>()?.is_some() {
                more = true;
            }
            Ok((entries, more))
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(json);
    let (entries, more) = deserializer
        .deserialize_seq(Elements(M::POSITIONAL))
        .map_err(|error| unreadable(&error))?;
    if more {
        let mut error = WireError::invalid_params(
            "params",
            format!(
                "`{}` takes at most {} positional parameters: {}",
                M::NAME,
                M::POSITIONAL.len(),
                listed(M::POSITIONAL)
            ),
        );
        error.data.parameter = None;
        return Err(error);
    }
    Ok(entries)
}

/// A key that borrows unless it holds escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

fn take<'a, T>(
    entries: &mut Vec<Entry<'a>>,
    name: &str,
    read: impl FnOnce(&'a RawValue) -> Result<T, WireError>,
) -> Result<Option<T>, WireError> {
    match entries.iter().position(|(entry, _)| entry == name) {
        Some(place) => read(entries.swap_remove(place).1).map(Some),
        None => Ok(None),
    }
}

fn project(raw: &RawValue, any: bool) -> Result<String, WireError> {
    let name: String = serde_json::from_str(raw.get()).map_err(|error| wrong("project_id", &error))?;
    if !(any && name == "*") {
        ProjectName::parse(&name, "project_id")?;
    }
    Ok(name)
}

fn timeout(raw: &RawValue) -> Result<u64, WireError> {
    match serde_json::from_str::<u64>(raw.get()) {
        Ok(timeout_ms) if (1..=TIMEOUT_MS_MAX).contains(&timeout_ms) => Ok(timeout_ms),
        _ => Err(WireError::invalid_params(
            "timeout_ms",
            format!("`timeout_ms` must be an integer from 1 to {TIMEOUT_MS_MAX}"),
        )),
    }
}

fn trace(raw: &RawValue) -> Result<String, WireError> {
    match serde_json::from_str::<String>(raw.get()) {
        Ok(trace_id) if trace_id.len() <= TRACE_ID_MAX => Ok(trace_id),
        _ => Err(WireError::invalid_params(
            "trace_id",
            format!("`trace_id` must be a text of at most {TRACE_ID_MAX} bytes"),
        )),
    }
}

/// What `name` is an alias of, among the known names.
fn alias_of(name: &str, known: &[&'static str], aliases: &[(&str, &'static str)]) -> Option<&'static str> {
    aliases
        .iter()
        .find(|(alias, target)| *alias == name && known.contains(target))
        .map(|(_, target)| *target)
}

/// Refuses names that are not known, whatever their values are.
fn known_alone(
    entries: &[Entry<'_>],
    known: &[&'static str],
    aliases: &[(&str, &'static str)],
    common: &[&'static str],
) -> Result<(), WireError> {
    let is_known =
        |name: &str| known.contains(&name) || common.contains(&name) || alias_of(name, known, aliases).is_some();
    match entries.iter().find(|(name, _)| !is_known(name)) {
        Some((name, _)) => Err(unknown(name, known, common)),
        None => Ok(()),
    }
}

/// Refuses metadata, of an item or in a filter, in which a number would become another one.
fn unrounded(entries: &[Entry<'_>]) -> Result<(), WireError> {
    let Some((name, value)) = entries.iter().find(|(name, _)| name == "metadata") else {
        return Ok(());
    };
    match rounded_integer(value.get()) {
        Some(place) => Err(WireError::invalid_params(
            name.as_ref(),
            format!("`{name}` has an integer under `{place}` that needs more than 64 bits; give it as a string"),
        )),
        None => Ok(()),
    }
}

/// Decodes the fields of a parameter type, all of whose names are in `known`, or aliases of those.
fn fields<P: Params>(
    mut entries: Vec<Entry<'_>>,
    known: &[&'static str],
    aliases: &[(&str, &'static str)],
) -> Result<P, WireError> {
    for (name, _) in &mut entries {
        if let Some(target) = alias_of(name, known, aliases) {
            *name = Cow::Borrowed(target);
        }
    }
    // An alias beside its name; at most as many entries as known names, so the square is small.
    for (place, (name, _)) in entries.iter().enumerate() {
        if entries[..place].iter().any(|(other, _)| other == name) {
            return Err(twice(name));
        }
    }
    let pairs = entries.iter().map(|(name, value)| (name.as_ref(), *value));
    let mut track = serde_path_to_error::Track::new();
    let map = MapDeserializer::<_, serde_json::Error>::new(pairs);
    let result = P::deserialize(serde_path_to_error::Deserializer::new(map, &mut track));
    result.map_err(|error: serde_json::Error| {
        let path = track.path().to_string();
        if path != "." && !path.is_empty() {
            let what = wrong(&path, &error);
            return match range_of::<P>(&entries, &path) {
                Some(mut range) => {
                    let kind = if what.message.contains("an integer") {
                        "an integer"
                    } else {
                        "a number"
                    };
                    range.message = range.message.replacen("must be ", &format!("must be {kind}, "), 1);
                    range
                }
                None => what,
            };
        }
        // Inside a flattened struct the path is lost: find the filter that is wrong on its own.
        filter_at_fault(&entries).unwrap_or_else(|| wrong("", &error))
    })
}

/// What the parameter type itself says of its number `name`: the same range, whichever way a value is wrong. None where
/// it is no number, or has no range.
fn range_of<P: Params>(entries: &[Entry<'_>], name: &str) -> Option<WireError> {
    if !entries.iter().any(|(other, _)| other == name) {
        return None;
    }
    ["0", "-1"].into_iter().find_map(|number| {
        let number: &RawValue = serde_json::from_str(number).ok()?;
        let pairs = entries
            .iter()
            .map(|(other, value)| (other.as_ref(), if other == name { number } else { *value }));
        let params = P::deserialize(MapDeserializer::<_, serde_json::Error>::new(pairs)).ok()?;
        params
            .check()
            .err()
            .filter(|error| error.data.parameter.as_deref() == Some(name))
    })
}

fn filter_at_fault(entries: &[Entry<'_>]) -> Option<WireError> {
    entries
        .iter()
        .filter(|(name, _)| Filter::NAMES.contains(&name.as_ref()))
        .find_map(|(name, value)| {
            let mut track = serde_path_to_error::Track::new();
            let map = MapDeserializer::<_, serde_json::Error>::new(std::iter::once((name.as_ref(), *value)));
            let result = Filter::deserialize(serde_path_to_error::Deserializer::new(map, &mut track));
            result.err().map(|error| wrong(&track.path().to_string(), &error))
        })
}

fn twice(name: &str) -> WireError {
    let name = shortened(name, 60);
    WireError::invalid_params(name.clone(), format!("`{name}` is given twice; give it once"))
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn unknown(name: &str, known: &[&'static str], common: &[&'static str]) -> WireError {
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

fn unreadable(error: &serde_json::Error) -> WireError {
    let mut refusal = wrong("params", error);
    refusal.data.parameter = None;
    refusal
}

/// Says what is wrong with the parameter at `path`, from serde's words but without the value.
fn wrong(path: &str, error: &serde_json::Error) -> WireError {
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
        format!("`{name}` holds a lone surrogate escape, which is no character; remove it or give the pair")
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

#[cfg(test)]
mod tests {
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
        let error = refused::<api::Search>(r#"{"query":"q","offset":"x"}"#);
        assert!(
            error.message.contains("an integer from 0 to 4294967295"),
            "{}",
            error.message
        );
        let error = refused::<api::Search>(r#"{"query":"q","offset":1000000000000000000000000}"#);
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
}
