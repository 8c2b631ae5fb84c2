//! Keys: ids, idempotency keys, agents and sessions. They name something and must not hold free text.

use crate::Invalid;

/// The most bytes of a key.
pub const KEY_BYTES_MAX: usize = 256;

/// Refuses what is not a key: blank, too long, or with control characters.
///
/// # Errors
/// Names `parameter` and what it must be.
pub fn check_key(value: &str, parameter: &str) -> Result<(), Invalid> {
    let refusal = if value.trim().is_empty() {
        format!("`{parameter}` must not be blank")
    } else if value.len() > KEY_BYTES_MAX {
        format!(
            "`{parameter}` must be at most {KEY_BYTES_MAX} bytes, this one has {}",
            value.len()
        )
    } else if value.chars().any(char::is_control) {
        format!("`{parameter}` must not contain control characters")
    } else {
        return Ok(());
    };
    Err(Invalid::new(parameter, refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_and_can_be_seen() {
        for good in ["x", "a key with spaces", "ключ", &"k".repeat(KEY_BYTES_MAX)] {
            check_key(good, "id").unwrap();
        }
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        for (bad, why) in [
            ("", "blank"),
            (" \u{a0}", "blank"),
            (long.as_str(), "at most 256 bytes, this one has 257"),
            ("a\nb", "control characters"),
            ("a\0", "control characters"),
        ] {
            let error = check_key(bad, "session_id").unwrap_err();
            assert_eq!(error.parameter, "session_id");
            assert!(
                error.message.contains("`session_id` must") && error.message.contains(why),
                "{error}"
            );
        }
    }
}
