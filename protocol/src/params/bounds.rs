//! How much of a parameter is decoded at all.
//!
//! A request of 16 MiB may be a list of eight million zeros, and each of them would become a value, or an error,
//! of a hundred times its size. So lists are counted and objects are measured in their raw JSON, before anything
//! is made of them.

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::cell::Cell;
use std::fmt;

use super::{Entry, Ranges};
use crate::error::WireError;
use crate::limits::Limits;

/// Elements of a list that has no limit of its own.
const OTHER_LIST_MAX: usize = 100_000;

/// What JSON may be larger by than the same written compactly: six bytes for one (`\u0041`), and some white space.
const RAW_FACTOR: usize = 8;

/// The limits that decoding keeps, in numbers of elements and in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Items of a `knowledge.store_batch`.
    pub items: usize,
    /// Texts of an `embedding.embed`.
    pub texts: usize,
    /// Metadata of an item, in bytes of compact JSON.
    pub metadata_bytes: usize,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            items: limits.max_batch_items,
            texts: limits.max_embed_texts,
            metadata_bytes: limits.max_metadata_bytes,
        }
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::from(&Limits::default())
    }
}

thread_local! {
    /// The bounds of the decoding that is under way on this thread. The items of a batch are decoded by serde,
    /// which takes no arguments along.
    static PRESENT: Cell<Option<Bounds>> = const { Cell::new(None) };
}

/// The bounds that hold on this thread until it is dropped.
pub(super) struct Scope(Option<Bounds>);

impl Bounds {
    pub(super) fn enter(self) -> Scope {
        Scope(PRESENT.replace(Some(self)))
    }

    pub(super) fn present() -> Self {
        PRESENT.get().unwrap_or_default()
    }

    fn of_list(self, name: &str, ranges: &Ranges) -> usize {
        match name {
            "items" => self.items,
            "texts" => self.texts,
            _ => ranges.most_elements(name).unwrap_or(OTHER_LIST_MAX),
        }
    }

    /// Refuses what is too large to be decoded.
    ///
    /// # Errors
    /// -32602 naming the parameter, its limit and what it has.
    pub(super) fn check(self, entries: &[Entry<'_>], ranges: &Ranges) -> Result<(), WireError> {
        for (name, raw) in entries {
            let most = self.of_list(name, ranges);
            // A list of n elements has at least 2 n + 1 bytes, so most lists need not be counted.
            if raw.get().starts_with('[') && raw.get().len() > 2 * most {
                let count = list_length(raw);
                if count > most {
                    return Err(WireError::invalid_params(
                        name.as_ref(),
                        format!("`{name}` must be at most {most} values, this list has {count}; send it in parts"),
                    ));
                }
            }
            if name == "metadata" && raw.get().len() / RAW_FACTOR > self.metadata_bytes {
                return Err(WireError::invalid_params(
                    "metadata",
                    format!(
                        "`metadata` must be at most {} bytes as JSON, this one has {}",
                        self.metadata_bytes,
                        raw.get().len()
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        PRESENT.set(self.0);
    }
}

/// The number of elements of a list; what cannot be read is left to the decoding, which says why.
fn list_length(raw: &RawValue) -> usize {
    struct Count;

    impl<'de> Visitor<'de> for Count {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while list.next_element::<IgnoredAny>()?.is_some() {
                count += 1;
            }
            Ok(count)
        }
    }

    serde_json::Deserializer::from_str(raw.get())
        .deserialize_seq(Count)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use crate::api::{self, BatchItem};
    use crate::error::WireError;
    use crate::params::{Bounds, decode_str, decode_within};

    fn named<M: api::Method>(json: &str) -> WireError {
        decode_str::<M>(Some(json)).map(drop).unwrap_err()
    }

    #[test]
    fn lists_are_counted_before_anything_is_made_of_them() {
        let zeros = |count: usize| vec!["0"; count].join(",");
        for (error, parameter, most) in [
            (
                named::<api::StoreBatch>(&format!(r#"{{"items":[{}]}}"#, zeros(2_000_000))),
                "items",
                "1000",
            ),
            (
                named::<api::Embed>(&format!(r#"{{"texts":[{}]}}"#, zeros(1_001))),
                "texts",
                "1000",
            ),
            (
                named::<api::Get>(&format!(r#"{{"ids":[{}]}}"#, zeros(1_001))),
                "ids",
                "1000",
            ),
            (
                named::<api::List>(&format!(r#"{{"agent":[{}]}}"#, zeros(257))),
                "agent",
                "256",
            ),
            (
                named::<api::Search>(&format!(r#"{{"query":"q","projects":[{}]}}"#, zeros(257))),
                "projects",
                "256",
            ),
            (
                named::<api::Search>(&format!(r#"{{"query":"q","as_of":[{}]}}"#, zeros(100_001))),
                "as_of",
                "100000",
            ),
        ] {
            assert_eq!(error.code, -32602);
            assert_eq!(error.data.parameter.as_deref(), Some(parameter));
            assert!(error.message.contains(most), "{}", error.message);
        }
        // Those of the limit are decoded.
        let most = format!(r#"{{"items":[{}]}}"#, zeros(1_000));
        let items = decode_str::<api::StoreBatch>(Some(&most)).unwrap().params.items;
        assert!(items.iter().all(|item| matches!(item, BatchItem::Invalid(_))) && items.len() == 1_000);
    }

    #[test]
    fn the_bounds_are_those_that_are_configured() {
        let bounds = Bounds {
            items: 2,
            ..Bounds::default()
        };
        let batch = r#"{"items":[{"text":"a"},{"text":"b"},{"text":"c"}]}"#;
        let error = decode_within::<api::StoreBatch>(Some(batch), bounds)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.data.parameter.as_deref(), Some("items"));
        decode_str::<api::StoreBatch>(Some(batch)).unwrap();
    }

    #[test]
    fn metadata_is_measured_before_it_is_decoded_and_fails_its_item_alone() {
        let many: Vec<String> = (0..100_000).map(|number| format!("\"k{number}\":0")).collect();
        let large = format!("{{{}}}", many.join(","));
        let error = named::<api::Store>(&format!(r#"{{"text":"x","metadata":{large}}}"#));
        assert_eq!(error.data.parameter.as_deref(), Some("metadata"));
        let batch = format!(r#"{{"items":[{{"text":"a","metadata":{large}}},{{"text":"b"}}]}}"#);
        let items = decode_str::<api::StoreBatch>(Some(&batch)).unwrap().params.items;
        assert!(matches!(&items[0], BatchItem::Invalid(error) if error.data.parameter.as_deref() == Some("metadata")));
        assert!(matches!(&items[1], BatchItem::Valid(_)));
    }

    #[test]
    fn more_names_than_any_method_has_are_not_kept() {
        let many: Vec<String> = (0..500_000).map(|number| format!("\"k{number}\":0")).collect();
        let error = named::<api::Search>(&format!("{{\"query\":\"q\",{}}}", many.join(",")));
        assert_eq!(error.data.parameter.as_deref(), Some("k0"));
    }
}
