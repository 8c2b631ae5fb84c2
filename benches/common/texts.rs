//! Texts that look like what agents store: words that follow Zipf's law over many thousand, sentences, log-normal
//! lengths, identifiers. With a few dozen words instead, every query matches every item, and the keyword index has
//! only long lists. `benches/peers/texts.py` does the same in Python, with words that the model knows.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// The most frequent words of English: almost half of any text.
const FUNCTION_WORDS: [&str; 60] = [
    "the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "was", "on", "with", "as", "by", "this", "be",
    "at", "from", "are", "or", "an", "which", "not", "have", "has", "had", "but", "were", "their", "its", "if", "will",
    "when", "can", "so", "all", "one", "more", "other", "than", "then", "only", "also", "into", "some", "any", "no",
    "there", "been", "would", "these", "each", "about", "after", "before", "between", "because", "while", "must",
];
/// Words that carry meaning.
const CONTENT_WORDS: usize = 14_000;
/// Words of an item.
const LENGTHS: std::ops::RangeInclusive<usize> = 20..=400;
/// The frequency of the n-th word is 1 / (n + this), Mandelbrot's form of Zipf's law: as in English, the first words
/// are not twice as frequent as the next ones.
const ZIPF_OFFSET: f64 = 2.7;

/// A source of texts over one vocabulary; what comes out is decided by the caller's generator.
pub(crate) struct Texts {
    words: Vec<String>,
    /// The frequencies of the words, summed up: where a random part of the last sum falls is the word.
    sums: Vec<f64>,
}

impl Texts {
    /// The vocabulary, which is made with `random` too.
    pub(crate) fn new(random: &mut StdRng) -> Self {
        let mut words: Vec<String> = FUNCTION_WORDS.map(str::to_owned).to_vec();
        let mut known: std::collections::HashSet<String> = words.iter().cloned().collect();
        while words.len() < FUNCTION_WORDS.len() + CONTENT_WORDS {
            let word = made_up_word(random);
            if known.insert(word.clone()) {
                words.push(word);
            }
        }
        let mut total = 0.0;
        let sums = (1..=words.len())
            .map(|rank| {
                total += 1.0 / (rank as f64 + ZIPF_OFFSET);
                total
            })
            .collect();
        Self { words, sums }
    }

    /// A word, by frequency.
    fn word(&self, random: &mut StdRng) -> &str {
        let part = random.random_range(0.0..self.sums[self.sums.len() - 1]);
        let place = self.sums.partition_point(|sum| *sum <= part);
        &self.words[place.min(self.words.len() - 1)]
    }

    /// Sentences: 45 words in the median. Every third text has identifiers in it.
    pub(crate) fn text(&self, random: &mut StdRng) -> String {
        let mut left = length(random);
        let technical = random.random_bool(0.35);
        let mut sentences = Vec::new();
        while left > 0 {
            let count = random.random_range(4..=22).min(left);
            left -= count;
            let words: Vec<String> = (0..count)
                .map(|_| match technical && random.random_bool(0.08) {
                    true => self.identifier(random),
                    false => self.word(random).to_owned(),
                })
                .collect();
            sentences.push(format!("{}.", words.join(" ")));
        }
        sentences.join(" ")
    }

    /// 3 to 12 words out of the same frequencies.
    pub(crate) fn query(&self, random: &mut StdRng) -> String {
        let count = random.random_range(3..=12);
        let words: Vec<&str> = (0..count).map(|_| self.word(random)).collect();
        words.join(" ")
    }

    fn identifier(&self, random: &mut StdRng) -> String {
        let number = random.random_range(0..10_000);
        let content = &self.words[FUNCTION_WORDS.len()..];
        let (first, second) = (pick(content, random), pick(content, random));
        match random.random_range(0..5) {
            0 => format!("{first}_{second}"),
            1 => format!("src/{first}/{second}.rs:{number}"),
            2 => format!("{first}::{second}"),
            3 => format!("E{number:04}"),
            _ => format!("{:010x}", random.random_range(0..1_u64 << 40)),
        }
    }
}

/// Log-normal between the bounds; those beyond are drawn again.
fn length(random: &mut StdRng) -> usize {
    loop {
        // A normal variate by Box and Muller's method.
        let (first, second): (f64, f64) = (random.random_range(f64::MIN_POSITIVE..1.0), random.random());
        let normal = (-2.0 * first.ln()).sqrt() * (std::f64::consts::TAU * second).cos();
        let length = (37_f64.ln() + 0.75 * normal).exp().round() as usize;
        if LENGTHS.contains(&length) {
            return length;
        }
    }
}

/// Pronounceable, and in no dictionary.
fn made_up_word(random: &mut StdRng) -> String {
    const STARTS: [&str; 26] = [
        "b", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pr", "r", "s", "sh",
        "st", "t", "tr", "v", "w",
    ];
    const MIDDLES: [&str; 7] = ["a", "e", "i", "o", "u", "ai", "ea"];
    const ENDS: [&str; 10] = ["", "n", "r", "l", "s", "t", "x", "m", "nd", "rk"];
    let mut word = String::new();
    for _ in 0..random.random_range(1..=3) {
        word += pick(&STARTS, random);
        word += pick(&MIDDLES, random);
    }
    word + pick(&ENDS, random)
}

fn pick<'a, T: AsRef<str>>(words: &'a [T], random: &mut StdRng) -> &'a str {
    words.choose(random).map_or("", AsRef::as_ref)
}
