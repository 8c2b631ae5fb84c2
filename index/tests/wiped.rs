//! What went is not in the process's memory any more.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use ccod_index::{Builder, Change, Index, Precision, PreparedQuery, PreparedWords, Row, Tokens, WipedText};
use ccod_words::{Filter, KnowledgeType};

const DIMENSIONS: usize = 128;

/// Texts that are never in memory in the form in which they are looked for, but in the index.
const HIDDEN: u8 = 0x15;

fn hidden(word: &str, number: usize) -> Vec<u8> {
    let digits = (0..6_u32)
        .rev()
        .map(|place| b'0' + (number / 10_usize.pow(place) % 10) as u8);
    word.bytes().chain(digits).map(|byte| byte ^ HIDDEN).collect()
}

/// A text that overwrites itself.
struct Shown(Vec<u8>);

impl Shown {
    fn of(hidden: &[u8]) -> Self {
        Self(hidden.iter().map(|byte| byte ^ HIDDEN).collect())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}

/// A bit for each component: 64 bits from a number, mixed.
fn bit(number: usize, at: usize, salt: u64) -> bool {
    let mixed = ((number * DIMENSIONS + at) as u64 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed >> 63 == 1
}

/// Few values: their codes are 1 and 255, with residuals of 0 or a fifth of a step towards 0, and no array of floats
/// has such bytes in a row.
fn vector(number: usize) -> Vec<f32> {
    let largest = 1.0 / (DIMENSIONS as f32).sqrt();
    let component = |at| {
        let size = if at > 0 && bit(number, at, 7) {
            126.8 / 127.0
        } else {
            1.0
        };
        let sign = if bit(number, at, 1) { -1.0 } else { 1.0 };
        size * sign * largest
    };
    (0..DIMENSIONS).map(component).collect()
}

/// The codes of [`vector`], hidden.
fn hidden_codes(number: usize) -> Vec<u8> {
    let codes = vector(number);
    codes
        .iter()
        .map(|x| if *x > 0.0 { 255 ^ HIDDEN } else { 1 ^ HIDDEN })
        .collect()
}

/// The residuals of [`vector`], hidden: 51 of 254 steps are a fifth.
fn hidden_residuals(number: usize) -> Vec<u8> {
    let residual = |at| match (at > 0 && bit(number, at, 7), bit(number, at, 1)) {
        (false, _) => 128 ^ HIDDEN,
        (true, false) => (128 - 51) ^ HIDDEN,
        (true, true) => (128 + 51) ^ HIDDEN,
    };
    (0..DIMENSIONS).map(residual).collect()
}

/// The codes of [`vector`] as a query has them, with a sign, hidden.
fn hidden_query(number: usize) -> Vec<u8> {
    let codes = vector(number);
    codes
        .iter()
        .map(|x| if *x > 0.0 { 127 ^ HIDDEN } else { 129 ^ HIDDEN })
        .collect()
}

fn words(number: usize) -> Tokens {
    let word = Shown::of(&hidden("qvxj-word-", number));
    ["often", word.text(), "often"].into_iter().collect()
}

fn with_row<T>(number: usize, use_row: impl FnOnce(&Row<'_>) -> T) -> T {
    let shown = |word| Shown::of(&hidden(word, number));
    let (id, agent, session) = (shown("qvxj-id-"), shown("qvxj-agent-"), shown("qvxj-session-"));
    let term = shown("qvxj-term-");
    let words = words(number);
    let mut terms = [term.text().to_owned()];
    let row = Row {
        address: number as u64,
        id: id.text(),
        passage: 0,
        passages: 1,
        revision: 1,
        kind: KnowledgeType::General,
        agent: Some(agent.text()),
        session: Some(session.text()),
        timestamp_ms: number as i64,
        updated_ms: 0,
        valid_from: 1,
        metadata_terms: &terms,
        vector: &vector(number),
        words: Some(&words),
    };
    let result = use_row(&row);
    // A text of ASCII can be overwritten in its place.
    let mut bytes = std::mem::take(&mut terms[0]).into_bytes();
    bytes.fill(0);
    std::hint::black_box(&bytes);
    result
}

/// Which of the hidden texts are in the memory of this process as they were.
fn found(hidden: &[Vec<u8>]) -> Vec<usize> {
    let mut is_start = vec![false; 1 << 16];
    for text in hidden {
        is_start[usize::from(u16::from_le_bytes([text[0], text[1]]))] = true;
    }
    let mut found = Vec::new();
    let mut memory = File::open("/proc/self/mem").unwrap();
    let maps = BufReader::new(File::open("/proc/self/maps").unwrap());
    for line in maps.lines().map(Result::unwrap) {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") || line.ends_with("[vvar]") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = (number(start), number(end));
        let mut bytes = vec![0; (end - start) as usize];
        memory.seek(SeekFrom::Start(start)).unwrap();
        let read = memory.read(&mut bytes).unwrap_or(0);
        assert!(read == bytes.len() || !line.ends_with("[heap]"), "{line}: {read} bytes");
        // So that the copy is not found in turn.
        bytes.iter_mut().for_each(|byte| *byte ^= HIDDEN);
        for (start, pair) in bytes.array_windows().enumerate() {
            if is_start[usize::from(u16::from_le_bytes(*pair))] {
                let starting = hidden.iter().enumerate();
                let starting = starting.filter(|(_, text)| bytes[start..].starts_with(text));
                found.extend(starting.map(|(place, _)| place));
            }
        }
        // The hidden texts were in what was read.
        bytes.fill(0);
        std::hint::black_box(&bytes);
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// What one test has read of the memory, another would find.
static ALONE: Mutex<()> = Mutex::new(());

fn removed(index: &Index, numbers: &[u64]) -> Index {
    let change = Change {
        removed: numbers,
        ..Change::default()
    };
    index.apply(&change).unwrap()
}

#[test]
fn nothing_of_a_row_is_in_memory_once_no_snapshot_has_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut builder = Builder::new(DIMENSIONS, Precision::Exact);
    for number in 0..300 {
        with_row(number, |row| builder.add(row)).unwrap();
    }
    let mut index = builder.finish();
    for number in 300..400 {
        index = with_row(number, |row| {
            let change = Change {
                added: &[*row],
                ..Change::default()
            };
            index.apply(&change).unwrap()
        });
    }
    let of = |number| {
        let kinds = ["id", "agent", "session", "term", "word"];
        let texts = kinds.map(|kind| hidden(&format!("qvxj-{kind}-"), number));
        texts
            .into_iter()
            .chain([hidden_codes(number), hidden_residuals(number)])
    };
    // The first, some in the middle that others replace, and the last: 393 is that when its turn comes.
    let gone = [0, 50, 51, 200, 398, 399, 393];
    let searched: Vec<Vec<u8>> = gone.into_iter().flat_map(of).collect();
    let nothing: Vec<usize> = Vec::new();
    let all: Vec<usize> = (0..searched.len()).collect();
    assert_eq!(found(&searched), all, "the search finds what is there");

    let before = index.clone();
    for number in gone {
        index = removed(&index, &[number as u64]);
    }
    assert_eq!(found(&searched), all, "a snapshot from before has them");
    drop(before);
    assert_eq!(found(&searched), nothing, "no snapshot has them");

    let kept: Vec<Vec<u8>> = of(100).chain(of(397)).collect();
    assert_eq!(found(&kept).len(), kept.len());
    drop(index.matching(&Filter::default()));
    drop(index);
    assert_eq!(found(&kept), nothing, "there is no snapshot");
}

#[test]
fn texts_and_queries_overwrite_themselves() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let searched = [
        hidden("qvxj-text-", 1),
        hidden("qvxj-text-", 2),
        hidden_query(3),
        hidden("qvxj-word-", 4),
    ];
    let mut texts = [0, 1].map(|place| {
        let mut text = String::with_capacity(64);
        searched[place]
            .iter()
            .for_each(|byte| text.push(char::from(byte ^ HIDDEN)));
        text
    });
    // What stands behind the end of a string goes with it.
    texts[1].truncate(1);
    let texts = texts.map(WipedText::from);
    let query = PreparedQuery::new(&vector(3));
    let prepared = PreparedWords::new(&words(4));
    assert_eq!(found(&searched), [0, 1, 2, 3]);
    drop((texts, query, prepared));
    assert_eq!(found(&searched), Vec::<usize>::new());
}
