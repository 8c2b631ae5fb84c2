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
mod common;
mod empty;
mod entries;
mod near;
mod ranges;
mod refusal;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use serde::Deserialize;
use serde::de::value::MapDeserializer;
use serde_json::value::RawValue;
use std::borrow::Cow;

use crate::api::{Filter, Method, MethodInfo, Params, Store, StoreParams, rounded_integer};
use crate::error::WireError;

use common::{project, timeout, trace};
use entries::{Entry, Key, named, positional, take};
use refusal::{twice, unknown, wrong};

pub use bounds::Bounds;
pub use common::{COMMON, TIMEOUT_MS_MAX, TRACE_ID_MAX, peek_timeout, peek_trace_id};
pub(crate) use near::nearest_method;
pub use ranges::Ranges;
pub(crate) use refusal::not_structured;

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
    bounds.check(&entries, M::ranges())?;
    // Before `null` becomes "absent": a misspelled filter whose value is `null` is refused, not left out.
    known_alone(&entries, M::POSITIONAL, M::ALIASES, COMMON)?;
    empty::refuse(&MethodInfo::of::<M>(), &entries)?;
    unrounded(&entries)?;
    entries.retain(|(_, value)| value.get() != "null");
    let project_id = take(&mut entries, "project_id", |raw| project(raw, M::SCOPE.takes_every()))?;
    let timeout_ms = take(&mut entries, "timeout_ms", timeout)?;
    let trace_id = take(&mut entries, "trace_id", trace)?;
    let _bounds_of_the_items = bounds.enter();
    let params = fields::<M>(entries)?;
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
    Bounds::present().check(&entries, Store::ranges())?;
    known_alone(&entries, Store::POSITIONAL, Store::ALIASES, &[])?;
    unrounded(&entries)?;
    entries.retain(|(_, value)| value.get() != "null");
    let item = fields::<Store>(entries)?;
    item.check()?;
    Ok(item)
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

/// Decodes the parameters of `M`, all of whose names are known, and checks their ranges.
fn fields<M: Method>(mut entries: Vec<Entry<'_>>) -> Result<M::Params, WireError> {
    for (name, _) in &mut entries {
        if let Some(target) = alias_of(name, M::POSITIONAL, M::ALIASES) {
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
    let result = M::Params::deserialize(serde_path_to_error::Deserializer::new(map, &mut track));
    let params = result.map_err(|error: serde_json::Error| {
        let path = track.path().to_string();
        if path != "." && !path.is_empty() {
            // The same range, whichever way a value is wrong.
            return M::ranges().not_a_number(&path).unwrap_or_else(|| wrong(&path, &error));
        }
        // Inside a flattened struct the path is lost: find the filter that is wrong on its own.
        filter_at_fault(&entries).unwrap_or_else(|| wrong("", &error))
    })?;
    M::ranges().check(&entries)?;
    Ok(params)
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
