//! What logs and answers say about a panic: that it was one, and where it happened. They say nothing about the machine
//! that built the program.
//!
//! What a panic says (its payload) may quote the text that was worked on, so it goes neither to the log nor to a
//! caller. The hook notes the place, [`catch`] gives it to the code that goes on after the panic, and [`untold`] takes
//! the payload out of texts that other crates make of panics (of a task that was joined; LanceDB).

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, Location, PanicHookInfo};

use futures::FutureExt;

thread_local! {
    /// Where the last panic of this thread was, until somebody has caught it.
    static LAST_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic that was caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    /// File and line; none where no hook has noted it.
    place: Option<String>,
}

impl fmt::Display for Panic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(formatter, "a panic at {place}"),
            None => formatter.write_str("a panic; the log says where"),
        }
    }
}

impl std::error::Error for Panic {}

impl Panic {
    fn last() -> Self {
        Self {
            place: LAST_PLACE.with_borrow_mut(Option::take),
        }
    }
}

/// Runs `future`; a panic in it is an error that says where it was.
///
/// # Errors
/// When it panicked.
pub async fn catch<T>(future: impl Future<Output = T>) -> Result<T, Panic> {
    AssertUnwindSafe(future)
        .catch_unwind()
        .await
        .map_err(|_said| Panic::last())
}

/// As [`catch`], for a plain function.
///
/// # Errors
/// When it panicked.
pub fn catch_in<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    std::panic::catch_unwind(AssertUnwindSafe(work)).map_err(|_said| Panic::last())
}

/// Has the process log where its panics are, and not what they say. With `RUST_BACKTRACE` set, also how they came
/// about. Call it once, before anything else runs.
pub fn install_hook() {
    std::panic::set_hook(Box::new(tell_place));
}

fn tell_place(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), place);
    // The thread may be ending already, and then nobody catches it either.
    LAST_PLACE.try_with(|last| last.replace(Some(place.clone()))).ok();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{}", without_build_paths(&backtrace.to_string())),
        _ => String::new(),
    };
    if tracing::dispatcher::has_been_set() {
        tracing::error!(
            place,
            thread,
            "a panic; what it says may quote a text and is not logged{backtrace}"
        );
    } else {
        writeln!(
            std::io::stderr(),
            "a panic at {place} in the thread {thread}{backtrace}"
        )
        .ok();
    }
}

/// File and line, without the directories of the machine that the program was built on.
fn place(location: &Location<'_>) -> String {
    format!("{}:{}", without_build_paths(location.file()), location.line())
}

/// `text` without the directories of the machine that the program was built on: the sources of other crates are named
/// from the crate on, in errors (Lance puts its own lines into them), places and backtraces.
#[must_use]
pub fn without_build_paths(text: &str) -> Cow<'_, str> {
    // Behind each comes one directory: of the registry, or of the compiler's commit.
    let mut told = Cow::Borrowed(text);
    for place in ["/registry/src/", "/rustc/"] {
        if told.contains(place) {
            told = Cow::Owned(without_paths_through(place, &told));
        }
    }
    told
}

fn without_paths_through(place: &str, text: &str) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(place) {
        let begins_path = |character: char| character.is_whitespace() || "\"'`([{<,;:=".contains(character);
        let (before, after) = (&rest[..at], &rest[at + place.len()..]);
        told.push_str(before.trim_end_matches(|character| !begins_path(character)));
        rest = after.split_once('/').map_or(after, |(_, inside)| inside);
    }
    told.push_str(rest);
    told
}

/// `text` without the payloads of panics: tokio puts that of a joined task into its error, and other crates quote that
/// error in theirs.
#[must_use]
pub fn untold(text: &str) -> Cow<'_, str> {
    const MARK: &str = " panicked with message ";
    let Some((before, said)) = text.split_once(MARK) else {
        return Cow::Borrowed(text);
    };
    let after = quoted(said).map_or("", |length| &said[length..]);
    Cow::Owned(format!("{before} panicked{}", untold(after)))
}

/// How long the quoted text at the beginning is, quotes included; none if there is none.
fn quoted(text: &str) -> Option<usize> {
    let mut escaped = false;
    let inside = text.strip_prefix('"')?;
    let end = inside.find(|character| {
        let ends = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        ends
    })?;
    Some(end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_panic_said_is_taken_out_of_the_texts_of_others() {
        let secret = r#"a "secret" with \ and "#;
        let joined = tokio::spawn(async move { panic!("{secret}{}", 1) }).await.unwrap_err();
        assert!(joined.to_string().contains("secret"), "{joined}");
        let told = format!("External error: {joined}, caused by {joined} (os error 5)");
        let untold = untold(&told);
        assert!(!untold.contains("secret"), "{untold}");
        assert!(untold.ends_with("panicked (os error 5)"), "{untold}");
        assert_eq!(untold.matches(" panicked").count(), 2);
        // Where it is quoted again, its end cannot be known.
        assert_eq!(super::untold(r#"x panicked with message \"secret\" y"#), "x panicked");
        assert_eq!(super::untold("nothing of the kind"), "nothing of the kind");
    }

    #[tokio::test]
    async fn what_is_caught_says_that_it_was_a_panic_and_nothing_else() {
        let said = catch(async { panic!("secret") }).await.map(|()| String::new());
        assert!(!said.unwrap_err().to_string().contains("secret"));
        assert!(
            !catch_in(|| panic!("secret"))
                .map(|()| 0)
                .unwrap_err()
                .to_string()
                .contains("secret")
        );
        assert_eq!(catch_in(|| 7).unwrap(), 7);
    }

    #[test]
    fn texts_do_not_name_the_machine_that_built_the_program() {
        let registry = "/home/somebody/.cargo/registry/src/index-0123456789abcdef/";
        let text = format!(
            "LanceError(IO): not found: /data/a.lance, {registry}lance-io-14.0.2/src/local.rs:9:5, \
             at {registry}b-1/src/lib.rs\n  at ({registry}c-2/x.rs)"
        );
        assert_eq!(
            without_build_paths(&text),
            "LanceError(IO): not found: /data/a.lance, lance-io-14.0.2/src/local.rs:9:5, at b-1/src/lib.rs\n  at (c-2/x.rs)"
        );
        assert_eq!(without_build_paths("/data/registry/x"), "/data/registry/x");
        assert_eq!(
            without_build_paths(
                "failed to fill whole buffer, /rustc/59807616e1/library/core/src/ops/function.rs:250:5"
            ),
            "failed to fill whole buffer, library/core/src/ops/function.rs:250:5"
        );
    }

    #[test]
    fn a_place_does_not_name_the_machine_that_built_the_program() {
        assert!(place(Location::caller()).contains("panics.rs:"));
    }
}
