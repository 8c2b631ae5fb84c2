//! When the process, or the system, has no file descriptors left.
//!
//! Every query and every commit opens files, so any of them may fail because of it. It says nothing about the data
//! and passes, so it has an error of its own ([`KnowledgeError::NoDescriptors`]), and `admin.health` shows it for a
//! while.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;

use crate::error::KnowledgeError;

/// How long `admin.health` reports it.
pub const SHOWN_FOR: Duration = Duration::from_secs(60);
/// When a retry makes sense, in milliseconds: queries and commits give theirs back when they end.
pub const RETRY_AFTER_MS: u64 = 1_000;
/// What can be done about it.
pub const REMEDY: &str = "close connections that are not needed, or raise the limit (LimitNOFILE of the systemd unit, \
                          SoftResourceLimits of the launchd agent, or ulimit -n) and start the daemon again";

/// When none was left the last time. One for the process, as the descriptors are.
static LACKED_AT: Mutex<Option<Instant>> = Mutex::new(None);

/// Whether an error number says that none is left.
pub(crate) fn is_lack(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE)
}

/// Whether a text quotes such an error of the system, as Rust writes it.
pub(crate) fn reports_lack(text: &str) -> bool {
    [Errno::EMFILE, Errno::ENFILE]
        .into_iter()
        .any(|errno| text.contains(&format!("(os error {})", errno as i32)))
}

/// What [`KnowledgeError::NoDescriptors`] says: a clause; the time to try again is added to it.
#[must_use]
pub fn lack_clause() -> String {
    format!("no file descriptors are left: {REMEDY}")
}

/// The error where none is left; it also notes the time.
pub(crate) fn lack() -> KnowledgeError {
    *LACKED_AT.lock() = Some(Instant::now());
    KnowledgeError::NoDescriptors
}

/// When a query or a commit last found none left.
#[must_use]
pub fn lacked_at() -> Option<Instant> {
    *LACKED_AT.lock()
}

/// What `admin.health` says at `now`, if none was left a short while ago.
#[must_use]
pub fn trouble(lacked_at: Option<Instant>, now: Instant) -> Option<String> {
    let ago = now.saturating_duration_since(lacked_at?);
    (ago < SHOWN_FOR).then(|| {
        let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((soft, _)) => format!(" (the limit is {soft})"),
            Err(_) => String::new(),
        };
        format!(
            "the daemon had no file descriptors left {} s ago{limit}: {REMEDY}",
            ago.as_secs()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shown_for_a_while() {
        let then = Instant::now();
        assert_eq!(trouble(None, then), None);
        let shown = trouble(Some(then), then + Duration::from_secs(59)).unwrap();
        assert!(shown.contains("59 s ago") && shown.contains("LimitNOFILE"), "{shown}");
        assert_eq!(trouble(Some(then), then + SHOWN_FOR), None);
    }

    #[test]
    fn texts_of_the_system_are_recognised() {
        let text = std::io::Error::from_raw_os_error(Errno::EMFILE as i32).to_string();
        assert!(reports_lack(&text), "{text}");
        assert!(!reports_lack("(os error 2)") && !reports_lack("24"));
    }
}
