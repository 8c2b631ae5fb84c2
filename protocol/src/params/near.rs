//! The name that was probably meant by one that does not exist.

use crate::api::{method, method_info};

/// Longer names are not compared: the measures are quadratic in the lengths, and the name is the caller's.
const LONGEST: usize = 100;

/// The candidate most like `name`, if any is like it at all.
pub(super) fn nearest_parameter<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this, two names have little more in common than their letters.
    const ALIKE: f64 = 0.5;
    if name.len() > LONGEST {
        return None;
    }
    let lower = name.to_lowercase();
    candidates
        .map(|candidate| (candidate, strsim::normalized_damerau_levenshtein(&lower, candidate)))
        .filter(|(_, likeness)| *likeness >= ALIKE)
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .map(|(candidate, _)| candidate)
}

/// The method that `name` is a slip of the keyboard for, if there is one. The distance is small, because callers may
/// call what is suggested.
pub(crate) fn nearest_method<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > LONGEST {
        return None;
    }
    let lower = name.to_lowercase();
    candidates
        .map(|candidate| (candidate, strsim::damerau_levenshtein(&lower, candidate)))
        .filter(|(candidate, distance)| *distance <= farthest(candidate))
        .min_by_key(|(_, distance)| *distance)
        .map(|(candidate, _)| candidate)
}

/// How far a name may be from that of a method to be taken for it: a quarter of what is its own, for many begin alike.
/// What changes or ends something must be near by any measure.
fn farthest(method: &str) -> usize {
    let own = method.rsplit('.').next().map_or(0, str::len);
    let far = (own / 4).max(1);
    let harmless = method_info(method).is_some_and(|row| !row.writes && row.name != method::ADMIN_SHUTDOWN);
    if harmless { far } else { far.min(2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::METHODS;

    fn nearest(name: &str) -> Option<&'static str> {
        nearest_method(name, METHODS.iter().map(|row| row.name))
    }

    #[test]
    fn a_slip_of_the_keyboard_is_recognised() {
        for (given, meant) in [
            ("knowledge.serch", "knowledge.search"),
            ("knowledge.Search", "knowledge.search"),
            ("knowlege.list", "knowledge.list"),
            ("admin.retsore", "admin.restore"),
            ("admin.healht", "admin.health"),
            ("knowledge.post_compact", "knowledge.post_compaction"),
            ("rpc.versoin", "rpc.version"),
        ] {
            assert_eq!(nearest(given), Some(meant), "{given}");
        }
    }

    #[test]
    fn what_only_has_the_beginning_in_common_is_not_suggested() {
        for given in [
            "admin.nope",
            "admin.report",
            "admin.",
            "knowledge.foo",
            "knowledge.find",
            "rpc.x",
            "sql.x",
            "x",
            "",
        ] {
            assert_eq!(nearest(given), None, "{given}");
        }
    }

    #[test]
    fn what_changes_or_ends_something_is_suggested_for_a_slip_of_two_keys_at_most() {
        for row in METHODS {
            if row.writes || row.name == method::ADMIN_SHUTDOWN {
                assert!(farthest(row.name) <= 2, "{}", row.name);
            }
        }
    }
}
