//! The parameters of a call as names and raw JSON.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

use super::refusal::{listed, twice, unreadable};
use crate::api::Method;
use crate::error::WireError;

/// Names of one object that are looked at. No method has as many, so what stands behind them cannot make it right.
const NAMES_MAX: usize = 64;

pub(super) type Entry<'a> = (Cow<'a, str>, &'a RawValue);

/// The entries of an object in their order; a repeated name is refused.
pub(super) fn named(json: &str) -> Result<Vec<Entry<'_>>, WireError> {
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
pub(super) fn positional<M: Method>(json: &str) -> Result<Vec<Entry<'_>>, WireError> {
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
pub(super) struct Key<'a>(pub(super) Cow<'a, str>);

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

pub(super) fn take<'a, T>(
    entries: &mut Vec<Entry<'a>>,
    name: &str,
    read: impl FnOnce(&'a RawValue) -> Result<T, WireError>,
) -> Result<Option<T>, WireError> {
    match entries.iter().position(|(entry, _)| entry == name) {
        Some(place) => read(entries.swap_remove(place).1).map(Some),
        None => Ok(None),
    }
}
