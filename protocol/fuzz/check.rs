//! What must hold for every input, shared by the fuzz target and the test that replays its corpus.
//!
//! The first two bytes of an input choose the limits and how the rest is cut into chunks; the rest is what a
//! client sends before it ends its input. Checked are
//!
//! 1. the framer: the same frames for every way of cutting, and the same values as serde_json's own reading
//!    of a stream;
//! 2. the server, over a real socket: one line of valid JSON for each answer and nothing else, ids as they
//!    came, silence for notifications, the rules of batches, the code of each error; and that nothing of the
//!    connection is left afterwards.
//!
//! What to expect is worked out here from the frames, apart from the code that is checked.

use ccod_protocol::api::{self, Method};
use ccod_protocol::codec::{Frame, Framer};
use ccod_protocol::endpoint::{self, BindOptions, EndpointLock};
use ccod_protocol::error::WireError;
use ccod_protocol::limits::{Limits, ServerStats};
use ccod_protocol::methods::Methods;
use ccod_protocol::params;
use ccod_protocol::server::Server;
use ccod_protocol::service::Service;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

/// Checks one input; panics if anything does not hold.
pub(crate) fn check(data: &[u8]) {
    let [first, second, input @ ..] = data else { return };
    let limits = limits(first & 1 == 1);
    let cuts = Cuts::new(*first, *second);

    let frames = frames(&limits, [input]);
    assert_eq!(
        frames,
        self::frames(&limits, cuts.clone().of(input)),
        "cut as the input says"
    );
    assert_eq!(frames, self::frames(&limits, input.chunks(1)), "byte by byte");
    compare_with_serde(&limits, input, &frames);

    let mut expected = Expected::default();
    for frame in &frames {
        expected.frame(frame, &limits);
    }
    SERVERS.with(|servers| {
        let servers = &servers[usize::from(first & 1)];
        let output = servers.exchange(input, cuts);
        expected.compare(&output);
    });
}

/// Two sets: one that small inputs stay within, one that they go over.
fn limits(tight: bool) -> Limits {
    let limits = Limits {
        max_response_bytes: 64 << 10,
        max_batch_requests: 8,
        max_in_flight_per_connection: 4,
        reply_queue_lines: 4,
        ..Limits::default()
    };
    match tight {
        false => limits,
        true => Limits {
            max_message_bytes: 160,
            max_depth: 4,
            ..limits
        },
    }
}

/// Cuts an input into chunks, and says how long to wait between them.
#[derive(Clone)]
struct Cuts {
    state: u32,
    longest: usize,
}

impl Cuts {
    fn new(first: u8, second: u8) -> Self {
        Self {
            state: u32::from(second) << 8 | u32::from(first) | 1 << 16,
            longest: 1 << (second % 9),
        }
    }

    fn next(&mut self) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 17;
        self.state ^= self.state << 5;
        self.state as usize
    }

    fn of(mut self, mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
        std::iter::from_fn(move || {
            let length = (1 + self.next() % self.longest).min(input.len());
            let (chunk, rest) = input.split_at(length);
            input = rest;
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

fn frames<'a>(limits: &Limits, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Frame> {
    let mut framer = Framer::new(limits.max_message_bytes, limits.max_depth);
    let mut frames = Vec::new();
    for chunk in chunks {
        framer.push(chunk);
        frames.extend(framer.by_ref());
        assert!(
            framer.buffered() <= limits.max_message_bytes + chunk.len(),
            "too much is held"
        );
    }
    frames.extend(framer.finish());
    assert_eq!((framer.next(), framer.finish()), (None, None), "frames after the end");
    frames
}

/// As far as serde_json reads the input as values, the framer must have found the same ones.
fn compare_with_serde(limits: &Limits, input: &[u8], frames: &[Frame]) {
    for frame in frames {
        if let Frame::Value(value) = frame {
            assert!(value.len() <= limits.max_message_bytes && depth(value) <= limits.max_depth);
            assert!(
                serde_json::from_slice::<IgnoredAny>(value).is_ok(),
                "a value that is not JSON"
            );
        }
    }
    let mut frames = frames.iter();
    for value in serde_json::Deserializer::from_slice(input).into_iter::<&RawValue>() {
        let found = frames.next();
        match value {
            Ok(value)
                if value.get().len() > limits.max_message_bytes || depth(value.get().as_bytes()) > limits.max_depth =>
            {
                assert!(matches!(found, Some(Frame::TooLarge | Frame::TooDeep)), "{found:?}");
                return;
            }
            Ok(value) => {
                let same = matches!(found, Some(Frame::Value(bytes)) if bytes == value.get().as_bytes());
                assert!(same, "{found:?} instead of {value}");
            }
            Err(_) => {
                assert!(!matches!(found, None | Some(Frame::Value(_))), "{found:?}");
                return;
            }
        }
    }
    assert_eq!(frames.next(), None, "more than serde_json found");
}

fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut string, mut escape) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escape => escape = false,
            b'\\' if string => escape = true,
            b'"' => string = !string,
            b'[' | b'{' if !string => depth += 1,
            b']' | b'}' if !string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// What a request may be answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// This result, byte for byte.
    Result(String),
    Code(i32),
    /// A result, whatever it is, or this error.
    AnyResultOr(i32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    /// Raw JSON.
    id: String,
    outcome: Outcome,
    /// Whether its deadline may pass first.
    hurried: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Single(Answer),
    Batch(Vec<Answer>),
}

/// The lines that an input must be answered with, in any order.
#[derive(Debug, Default)]
struct Expected {
    lines: Vec<Line>,
    /// The ids of the calls that may tell of their progress.
    progress: Vec<String>,
    /// Whether some call might be cancelled.
    cancels: bool,
}

impl Expected {
    fn error(&mut self, code: i32) {
        self.lines.push(Line::Single(error("null", code)));
    }

    fn frame(&mut self, frame: &Frame, limits: &Limits) {
        match frame {
            Frame::SyntaxError(_) | Frame::Incomplete | Frame::Http => self.error(-32_700),
            Frame::TooLarge => self.error(-32_007),
            Frame::TooDeep => self.error(-32_600),
            Frame::Value(value) if value[0] == b'[' => {
                let entries: Vec<&RawValue> = serde_json::from_slice(value).expect("an array");
                if entries.is_empty() {
                    return self.error(-32_600);
                }
                if entries.len() > limits.max_batch_requests {
                    return self.error(-32_010);
                }
                let answers: Vec<Answer> = entries.iter().filter_map(|entry| self.request(entry.get())).collect();
                if !answers.is_empty() {
                    self.lines.push(Line::Batch(answers));
                }
            }
            Frame::Value(value) => {
                let text = std::str::from_utf8(value).expect("UTF-8");
                let answer = self.request(text);
                self.lines.extend(answer.map(Line::Single));
            }
        }
    }

    /// The answer to one request; none to a notification.
    fn request(&mut self, json: &str) -> Option<Answer> {
        let Ok(Members(members)) = serde_json::from_str::<Members<'_>>(json) else {
            return Some(error("null", -32_600));
        };
        let named = |name: &str| members.iter().filter(|(key, _)| key == name).count();
        let member = |name: &str| {
            members
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.get())
        };
        let text = |raw: Option<&str>| raw.and_then(|raw| serde_json::from_str::<String>(raw).ok());
        let twice = ["jsonrpc", "id", "method", "params"].iter().any(|name| named(name) > 1);
        if twice || text(member("jsonrpc")).as_deref() != Some("2.0") {
            return Some(error("null", -32_600));
        }
        let id = member("id");
        if id.is_some_and(|id| id.starts_with(['{', '[', 't', 'f'])) {
            return Some(error("null", -32_600));
        }
        let Some(method) = text(member("method")) else {
            return Some(error(id.unwrap_or("null"), -32_600));
        };
        let params = member("params").filter(|params| *params != "null");
        self.cancels |= method == api::Cancel::NAME;
        let id = id?;
        if params.is_some_and(|params| !params.starts_with(['{', '['])) {
            return Some(error(id, -32_602));
        }
        let outcome = match method.as_str() {
            "test.echo" | "test.later" | "test.sync" => {
                Outcome::Result(params.unwrap_or("null").replace(['\n', '\r'], " "))
            }
            "test.pretty" => Outcome::Result(PRETTY.replace(['\n', '\r'], " ")),
            "test.progress" => {
                self.progress.push(id.to_owned());
                Outcome::Result("null".to_owned())
            }
            "test.error" => Outcome::Code(-32_020),
            "test.panic" => Outcome::Code(-32_603),
            "test.big" => Outcome::Code(-32_008),
            api::Cancel::NAME => Outcome::AnyResultOr(-32_602),
            name if DECODED.contains(&name) => Outcome::AnyResultOr(-32_602),
            _ => Outcome::Code(-32_601),
        };
        Some(Answer {
            id: id.to_owned(),
            outcome,
            hurried: params.is_some_and(|params| params.contains("timeout_ms")),
        })
    }

    /// Each line of the output must be one that was expected, and none may be missing.
    fn compare(mut self, output: &[u8]) {
        let output = std::str::from_utf8(output).expect("the output is UTF-8");
        assert!(output.is_empty() || output.ends_with('\n'), "half a line: {output:?}");
        let mut found = Vec::new();
        for line in output.lines() {
            assert!(!line.contains('\r'), "more than one line: {line:?}");
            if !self.is_progress(line) {
                found.push(read_line(line));
            }
        }
        // A line may be the answer to several requests of the same id, so this is a matching.
        let mut answers = vec![None; self.lines.len()];
        for place in 0..found.len() {
            let fits = self.find_place(&found, place, &mut answers, &mut vec![false; self.lines.len()]);
            assert!(
                fits,
                "not expected: {:?}\nfound: {found:?}\nexpected: {:?}",
                found[place], self.lines
            );
        }
        let missing: Vec<&Line> = (0..answers.len())
            .filter(|place| answers[*place].is_none())
            .map(|place| &self.lines[place])
            .collect();
        assert!(missing.is_empty(), "not answered: {missing:?}\nfound: {found:?}");
    }

    /// Finds an expected line for `found[which]`, moving those that were placed before where they can go
    /// elsewhere.
    fn find_place(&self, found: &[Line], which: usize, answers: &mut [Option<usize>], tried: &mut [bool]) -> bool {
        for place in 0..answers.len() {
            if tried[place] || !self.fits(&self.lines[place], &found[which]) {
                continue;
            }
            tried[place] = true;
            if answers[place].is_none_or(|other| self.find_place(found, other, answers, tried)) {
                answers[place] = Some(which);
                return true;
            }
        }
        false
    }

    fn fits(&self, expected: &Line, found: &Line) -> bool {
        match (expected, found) {
            (Line::Single(expected), Line::Single(found)) => self.may_be(expected, found),
            (Line::Batch(expected), Line::Batch(found)) => {
                expected.len() == found.len()
                    && expected
                        .iter()
                        .zip(found)
                        .all(|(expected, found)| self.may_be(expected, found))
            }
            _ => false,
        }
    }

    fn may_be(&self, expected: &Answer, found: &Answer) -> bool {
        let usual = match (&expected.outcome, &found.outcome) {
            (Outcome::AnyResultOr(_), Outcome::Result(_)) => true,
            (Outcome::AnyResultOr(code), Outcome::Code(found)) => code == found,
            (expected, found) => expected == found,
        };
        expected.id == found.id
            && (usual
                || expected.hurried && found.outcome == Outcome::Code(-32_050)
                || self.cancels && found.outcome == Outcome::Code(-32_027))
    }

    fn is_progress(&mut self, line: &str) -> bool {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Notification<'a> {
            jsonrpc: &'a str,
            method: &'a str,
            #[serde(borrow)]
            params: Progress<'a>,
        }
        #[derive(Deserialize)]
        struct Progress<'a> {
            #[serde(borrow)]
            request_id: &'a RawValue,
        }
        let Ok(notification) = serde_json::from_str::<Notification<'_>>(line) else {
            return false;
        };
        assert_eq!((notification.jsonrpc, notification.method), ("2.0", "rpc.progress"));
        let id = notification.params.request_id.get();
        let place = self.progress.iter().position(|expected| expected == id);
        self.progress
            .swap_remove(place.expect("progress of a call that was made"));
        true
    }
}

fn error(id: &str, code: i32) -> Answer {
    Answer {
        id: id.to_owned(),
        outcome: Outcome::Code(code),
        hurried: false,
    }
}

/// The members of an object in their order, repeated ones included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

fn read_line(line: &str) -> Line {
    if line.starts_with('[') {
        let entries: Vec<&RawValue> = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        return Line::Batch(entries.into_iter().map(|entry| read_answer(entry.get())).collect());
    }
    Line::Single(read_answer(line))
}

fn read_answer(json: &str) -> Answer {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Response<'a> {
        jsonrpc: &'a str,
        #[serde(borrow)]
        id: &'a RawValue,
        #[serde(borrow, default, deserialize_with = "present")]
        result: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        error: Option<&'a RawValue>,
    }
    // `Option` alone takes null for none, which is a result like any other.
    fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
        <&RawValue>::deserialize(deserializer).map(Some)
    }
    let response: Response<'_> = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json:?}"));
    assert_eq!(response.jsonrpc, "2.0");
    let outcome = match (response.result, response.error) {
        (Some(result), None) => Outcome::Result(result.get().to_owned()),
        (None, Some(error)) => {
            let error: WireError = serde_json::from_str(error.get()).expect("an error with its data");
            assert!(
                !error.message.is_empty() && error.data.kind.code() == error.code,
                "{error:?}"
            );
            assert_eq!(error.data.retryable, error.data.kind.retryable(), "{error:?}");
            Outcome::Code(error.code)
        }
        _ => panic!("neither a result nor an error, or both: {json}"),
    };
    Answer {
        id: response.id.get().to_owned(),
        outcome,
        hurried: false,
    }
}

/// A result that is spread over lines.
const PRETTY: &str = "{\n  \"a\": [\r\n 1 ]\n}";

/// Methods whose parameters are decoded as the daemon decodes them, and which do nothing else.
const DECODED: [&str; 6] = [
    api::Store::NAME,
    api::StoreBatch::NAME,
    api::Search::NAME,
    api::List::NAME,
    api::Get::NAME,
    api::Embed::NAME,
];

type Raw = Result<Box<RawValue>, WireError>;

fn echo(params: Option<Box<str>>) -> Raw {
    let json = params.map_or_else(|| "null".to_owned(), String::from);
    Ok(RawValue::from_string(json).expect("parameters are JSON"))
}

fn decoded<M: Method>(table: &mut Methods) {
    table.serve_raw(M::NAME, |params, _| async move {
        params::decode_str::<M>(params.as_deref()).map(drop)
    });
}

fn methods() -> Methods {
    let mut table = Methods::default();
    table.serve_raw("test.echo", |params, _| async move { echo(params) });
    table.serve_raw("test.later", |params, _| async move {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        echo(params)
    });
    table.serve_raw("test.sync", |params, _| std::future::ready(echo(params)));
    table.serve_raw("test.pretty", |_, _| async move {
        Raw::Ok(RawValue::from_string(PRETTY.to_owned()).expect("JSON"))
    });
    table.serve_raw("test.progress", |_, context| async move {
        context.progress(1, None, "half\nway");
        Ok::<_, WireError>(())
    });
    table.serve_raw(
        "test.error",
        |_, _| async move { Err::<(), _>(WireError::not_found("x")) },
    );
    table.serve_raw("test.panic", |_, _| async move {
        if true {
            // Unwinds as a panic does, past the hook with which libFuzzer would take it for a finding.
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        Ok::<_, WireError>(())
    });
    table.serve_raw(
        "test.big",
        |_, _| async move { Ok::<_, WireError>("x".repeat(70 << 10)) },
    );
    decoded::<api::Store>(&mut table);
    decoded::<api::StoreBatch>(&mut table);
    decoded::<api::Search>(&mut table);
    decoded::<api::List>(&mut table);
    decoded::<api::Get>(&mut table);
    decoded::<api::Embed>(&mut table);
    table
}

thread_local! {
    static SERVERS: [LocalServer; 2] = [LocalServer::start(false), LocalServer::start(true)];
}

/// A server that lives as long as its thread, and runs only during an exchange.
struct LocalServer {
    runtime: Runtime,
    path: PathBuf,
    stats: Arc<ServerStats>,
    _directory: tempfile::TempDir,
}

impl LocalServer {
    fn start(tight: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let run = directory.path().join("run");
        let path = run.join("ccod.sock");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let options = BindOptions::default();
        endpoint::prepare_run_dir(&run, &options).expect("a run directory");
        let lock = EndpointLock::acquire(&run.join("ccod.lock")).expect("a lock");
        let socket = endpoint::bind(&path, &lock, &options).expect("a socket");
        let stats = Arc::new(ServerStats::default());
        let service = Service::new(methods())
            .with_limits(limits(tight))
            .with_stats(Arc::clone(&stats));
        runtime.spawn(Server::over(Arc::new(service)).serve(socket));
        Self {
            runtime,
            path,
            stats,
            _directory: directory,
        }
    }

    /// Sends the input in chunks, ends it, and gives back everything that was answered.
    fn exchange(&self, input: &[u8], cuts: Cuts) -> Vec<u8> {
        let exchange = async {
            let stream = UnixStream::connect(&self.path).await.expect("a connection");
            let (mut reader, mut writer) = stream.into_split();
            let sending = async {
                let mut pauses = cuts.clone();
                for chunk in cuts.of(input) {
                    // The server may have closed its end: it does so after HTTP.
                    if writer.write_all(chunk).await.is_err() {
                        break;
                    }
                    for _ in 0..pauses.next() % 3 {
                        tokio::task::yield_now().await;
                    }
                }
                drop(writer);
            };
            let mut output = Vec::new();
            let (_, read) = tokio::join!(sending, reader.read_to_end(&mut output));
            read.expect("the answers");
            drop(reader);
            // Nothing of a connection may outlive it.
            loop {
                let now = self.stats.snapshot();
                if (now.connections_open, now.in_flight) == (0, 0) {
                    assert_eq!(now.bytes_buffered, 0, "bytes of a closed connection are counted");
                    return output;
                }
                tokio::task::yield_now().await;
            }
        };
        self.runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), exchange)
                .await
                .expect("the exchange hangs")
        })
    }
}
