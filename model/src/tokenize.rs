//! From text to token ids, and from a long text to passages that fit the model.
//!
//! Tokenising happens before a text is queued, so every budget counts real tokens. The `tokenizer.json` of a
//! model carries truncation and padding of its own (all-MiniLM-L6-v2's: 128 tokens, always padded to 128); both
//! are switched off here, and the limit is the one that the model was trained for.
//!
//! Text is fed to the tokenizer in pieces of some kilobytes, cut where no word is cut. So the work is linear in
//! the length of the text, and a query of a megabyte costs no more than its first few hundred tokens.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::error::EngineError;

/// Bytes per piece that the tokenizer sees. Larger pieces gain nothing; smaller ones would cut words of more
/// than half this length, which the tokenizer calls unknown anyway (its limit is 100 characters per word).
const PIECE_BYTES: usize = 8 * 1024;

/// Tokens that the end of a passage may move back to reach the end of a line, sentence or word.
const LOOK_BACK_TOKENS: usize = 64;

/// Tokens that a passage shares with the one before it, so that what stands at a cut is whole in one of them.
const OVERLAP_TOKENS: usize = 32;

/// Special tokens around every text: `[CLS]` and `[SEP]`.
const SPECIAL_TOKENS: usize = 2;

/// A text as the model reads it: token ids with the special ones. Only a [`TextTokenizer`] makes one, so an
/// engine never meets more tokens than its model takes.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenizedText {
    ids: Arc<[u32]>,
    truncated: bool,
}

impl TokenizedText {
    /// Token ids, `[CLS]` first and `[SEP]` last; never empty.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Number of tokens, special ones included.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the text had more tokens than the model takes and lost the rest.
    pub fn truncated(&self) -> bool {
        self.truncated
    }
}

impl AsRef<[u32]> for TokenizedText {
    fn as_ref(&self) -> &[u32] {
        &self.ids
    }
}

/// Shows counts, never ids: ids are the text, and texts do not belong in logs.
impl fmt::Debug for TokenizedText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("TokenizedText")
            .field("tokens", &self.ids.len())
            .field("truncated", &self.truncated)
            .finish()
    }
}

/// A part of a text that fits the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Its number within the text, from 0.
    pub index: usize,
    /// Where it starts, in Unicode scalar values (Rust's `char`, Python's string index; not UTF-16 units, not
    /// graphemes) from the start of the text.
    pub start: usize,
    /// Where it ends, exclusive, in the same unit.
    pub end: usize,
    /// The same range in bytes of UTF-8, always on character boundaries.
    pub bytes: Range<usize>,
    /// Its tokens, never truncated.
    pub tokens: TokenizedText,
}

/// One token of a text and the bytes that it stands for.
struct Token {
    id: u32,
    start: usize,
    end: usize,
}

/// Tokenizer of one model. Cloning shares it; it is safe to use from many threads at once.
#[derive(Clone)]
pub struct TextTokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    tokenizer: Tokenizer,
    first: u32,
    last: u32,
    unknown: u32,
    max_tokens: usize,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`; texts are limited to `max_tokens`, special tokens included.
    pub fn from_json(json: &[u8], max_tokens: usize) -> Result<Self, EngineError> {
        let bad = |reason: String| EngineError::Load(format!("tokenizer.json: {reason}"));
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| bad(error.to_string()))?;
        tokenizer
            .with_truncation(None)
            .map_err(|error| bad(error.to_string()))?
            .with_padding(None);
        let empty = tokenizer.encode("", true).map_err(|error| bad(error.to_string()))?;
        let [first, last] = *empty.get_ids() else {
            return Err(bad(format!(
                "an empty text has {} special tokens, not {SPECIAL_TOKENS}",
                empty.get_ids().len()
            )));
        };
        let unknown = tokenizer
            .token_to_id("[UNK]")
            .ok_or_else(|| bad("it has no [UNK] token".to_owned()))?;
        if max_tokens <= SPECIAL_TOKENS + LOOK_BACK_TOKENS + OVERLAP_TOKENS {
            return Err(bad(format!("a limit of {max_tokens} tokens is too small")));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                tokenizer,
                first,
                last,
                unknown,
                max_tokens,
            }),
        })
    }

    /// The limit per text, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.shared.max_tokens
    }

    /// Tokens of a text that is embedded as one, whatever its length; what is over the limit is cut off and
    /// [`TokenizedText::truncated`] says so.
    pub fn encode_query(&self, text: &str) -> TokenizedText {
        let limit = self.content_limit();
        let mut tokens = Vec::new();
        for piece in pieces(text) {
            self.append_tokens(text, piece, &mut tokens);
            if tokens.len() > limit {
                break;
            }
        }
        let truncated = tokens.len() > limit;
        tokens.truncate(limit);
        self.finish(&tokens, truncated)
    }

    /// Splits a text into passages of at most the model's limit, in order; together they cover every token.
    ///
    /// A text within the limit is one passage over the whole of it, an empty one too. A longer text is cut near
    /// the limit at the best place there: a blank line, the end of a line, of a sentence, of a word; in the
    /// middle of a word only when nothing else is near. Passages overlap by up to 32 tokens. The first starts
    /// where the text does and the last ends where it does.
    pub fn passages(&self, text: &str) -> Vec<Passage> {
        let mut tokens = Vec::new();
        for piece in pieces(text) {
            self.append_tokens(text, piece, &mut tokens);
        }
        let limit = self.content_limit();
        let mut passages = Vec::new();
        let mut starts = CharCounter::new(text);
        let mut ends = CharCounter::new(text);
        let mut first = 0;
        loop {
            let end = passage_end(text, &tokens, first, limit);
            let from = if first == 0 { 0 } else { tokens[first].start };
            let to = if end == tokens.len() {
                text.len()
            } else {
                tokens[end - 1].end
            };
            passages.push(Passage {
                index: passages.len(),
                start: starts.chars_before(from),
                end: ends.chars_before(to),
                bytes: from..to,
                tokens: self.finish(&tokens[first..end], false),
            });
            if end == tokens.len() {
                return passages;
            }
            first = next_start(text, &tokens, end);
        }
    }

    fn content_limit(&self) -> usize {
        self.shared.max_tokens - SPECIAL_TOKENS
    }

    fn finish(&self, tokens: &[Token], truncated: bool) -> TokenizedText {
        let ids = std::iter::once(self.shared.first)
            .chain(tokens.iter().map(|token| token.id))
            .chain(std::iter::once(self.shared.last))
            .collect();
        TokenizedText { ids, truncated }
    }

    fn append_tokens(&self, text: &str, piece: Range<usize>, tokens: &mut Vec<Token>) {
        let offset = piece.start;
        match self.shared.tokenizer.encode(&text[piece.clone()], false) {
            Ok(encoding) => tokens.extend(encoding.get_ids().iter().zip(encoding.get_offsets()).map(
                |(id, (start, end))| Token {
                    id: *id,
                    start: offset + start,
                    end: offset + end,
                },
            )),
            // A WordPiece model with an unknown token, which `from_json` has checked, refuses nothing. Should
            // another model do so, the piece counts as one unknown word rather than as no text.
            Err(error) => {
                tracing::warn!(%error, bytes = piece.len(), "a piece of text could not be tokenised");
                tokens.push(Token {
                    id: self.shared.unknown,
                    start: piece.start,
                    end: piece.end,
                });
            }
        }
    }
}

/// Cuts `text` into consecutive ranges of at most [`PIECE_BYTES`], after white space where there is some, after
/// a character that is not part of a word otherwise, and anywhere between two characters as a last resort.
fn pieces(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == text.len() {
            return None;
        }
        let end = if text.len() - start <= PIECE_BYTES {
            text.len()
        } else {
            let end = text.floor_char_boundary(start + PIECE_BYTES);
            let half = text.floor_char_boundary(start + PIECE_BYTES / 2);
            let after_last = |matches: fn(char) -> bool| {
                text[half..end]
                    .char_indices()
                    .rev()
                    .find(|(_, character)| matches(*character))
                    .map(|(index, character)| half + index + character.len_utf8())
            };
            after_last(char::is_whitespace)
                .or_else(|| after_last(|character| !character.is_alphanumeric()))
                .unwrap_or(end)
        };
        let piece = start..end;
        start = end;
        Some(piece)
    })
}

/// How good a place the boundary before token `index` is to cut at; more is better.
fn cut_quality(text: &str, tokens: &[Token], index: usize) -> u8 {
    let before = tokens[index - 1].end;
    let after = tokens[index].start;
    let Some(gap) = text.get(before..after) else {
        // Both tokens come from one character.
        return 0;
    };
    let line_ends = gap.matches('\n').take(2).count();
    let previous = text[..before].chars().next_back();
    let next = text[after..].chars().next();
    let ends_sentence = match previous {
        Some('.' | '!' | '?' | ';') => !gap.is_empty(),
        Some('。' | '！' | '？' | '；') => true,
        _ => false,
    };
    let in_word = |character: Option<char>| character.is_some_and(char::is_alphanumeric);
    if line_ends == 2 {
        6
    } else if line_ends == 1 {
        5
    } else if ends_sentence {
        4
    } else if !gap.is_empty() {
        3
    } else if !in_word(previous) || !in_word(next) {
        2
    } else {
        1
    }
}

/// The token before which the passage that starts with token `first` ends.
fn passage_end(text: &str, tokens: &[Token], first: usize, limit: usize) -> usize {
    if tokens.len() - first <= limit {
        return tokens.len();
    }
    let furthest = first + limit;
    // `max_by_key` keeps the last of equals: the longest passage.
    (furthest - LOOK_BACK_TOKENS..=furthest)
        .max_by_key(|index| cut_quality(text, tokens, *index))
        .unwrap_or(furthest)
}

/// The token with which the passage after one that ends before token `end` starts.
fn next_start(text: &str, tokens: &[Token], end: usize) -> usize {
    // Reversed, so that the first of equals wins: the largest overlap.
    (end - OVERLAP_TOKENS..=end - OVERLAP_TOKENS / 2)
        .rev()
        .max_by_key(|index| cut_quality(text, tokens, *index))
        .unwrap_or(end)
}

/// Counts characters before growing byte positions, touching each byte of the text once.
struct CharCounter<'text> {
    text: &'text str,
    bytes: usize,
    chars: usize,
}

impl<'text> CharCounter<'text> {
    fn new(text: &'text str) -> Self {
        Self {
            text,
            bytes: 0,
            chars: 0,
        }
    }

    /// Characters before byte `position`, which must not be smaller than the last one asked for.
    fn chars_before(&mut self, position: usize) -> usize {
        self.chars += self.text[self.bytes..position].chars().count();
        self.bytes = position;
        self.chars
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bundled;

    fn tokenizer() -> TextTokenizer {
        use std::sync::OnceLock;
        static SHARED: OnceLock<TextTokenizer> = OnceLock::new();
        SHARED
            .get_or_init(|| TextTokenizer::from_json(bundled::TOKENIZER, 256).expect("the bundled tokenizer loads"))
            .clone()
    }

    fn assert_covers(text: &str, passages: &[Passage]) {
        assert_eq!(passages[0].bytes.start, 0);
        assert_eq!(passages[passages.len() - 1].bytes.end, text.len());
        for (index, passage) in passages.iter().enumerate() {
            assert_eq!(passage.index, index);
            assert!(passage.tokens.len() <= tokenizer().max_tokens());
            assert!(!passage.tokens.truncated());
            assert_eq!(text[..passage.bytes.start].chars().count(), passage.start);
            assert_eq!(text[..passage.bytes.end].chars().count(), passage.end);
        }
        for pair in passages.windows(2) {
            assert!(pair[1].bytes.start > pair[0].bytes.start, "passages advance");
            assert!(pair[1].bytes.start <= pair[0].bytes.end, "passages leave no text out");
        }
    }

    #[test]
    fn an_empty_text_has_one_passage() {
        let passages = tokenizer().passages("");
        assert_eq!(passages.len(), 1);
        assert_eq!(passages[0].tokens.ids(), [101, 102]);
        assert_eq!((passages[0].start, passages[0].end), (0, 0));
        assert_eq!(tokenizer().encode_query("").ids(), [101, 102]);
        assert_covers("  \n ", &tokenizer().passages("  \n "));
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_off() {
        let long = "word ".repeat(300);
        let tokens = tokenizer().encode_query(&long);
        assert_eq!(tokens.len(), 256);
        assert!(tokens.truncated());
        let exact = tokenizer().encode_query(&"word ".repeat(254));
        assert_eq!(exact.len(), 256);
        assert!(!exact.truncated());
        assert_eq!(tokenizer().encode_query("word").len(), 3);
    }

    #[test]
    fn a_long_text_is_cut_at_sentences_and_overlaps() {
        let text: String = (0..120)
            .map(|number| format!("Decision {number} was to keep the parser simple. "))
            .collect();
        let passages = tokenizer().passages(&text);
        assert!(passages.len() > 3);
        assert_covers(&text, &passages);
        for pair in passages.windows(2) {
            assert!(text[pair[0].bytes.clone()].ends_with('.'));
            assert!(text[pair[1].bytes.clone()].starts_with("Decision"));
            assert!(pair[1].bytes.start < pair[0].bytes.end, "they overlap");
        }
    }

    #[test]
    fn a_passage_has_the_tokens_of_its_own_text() {
        let text = "The queue is bounded. Overload is answered at once.\n".repeat(60);
        for passage in tokenizer().passages(&text) {
            let alone = tokenizer().encode_query(&text[passage.bytes.clone()]);
            assert_eq!(alone, passage.tokens);
        }
    }

    #[test]
    fn offsets_count_characters_not_bytes() {
        let text = "状态页面也要支持中文。".repeat(60);
        let passages = tokenizer().passages(&text);
        assert!(passages.len() > 2);
        assert_covers(&text, &passages);
        let characters: Vec<char> = text.chars().collect();
        for passage in &passages {
            let by_chars: String = characters[passage.start..passage.end].iter().collect();
            assert_eq!(by_chars, text[passage.bytes.clone()]);
        }
    }

    #[test]
    fn texts_without_spaces_and_very_long_texts_are_bounded_by_tokens() {
        for text in [
            "x".repeat(1_000_000),
            "ab1_".repeat(50_000),
            "中".repeat(100_000),
            "é".repeat(300_000),
            "🚀".repeat(50_000),
            " ".repeat(1_000_000),
            "some words and more ".repeat(50_000),
        ] {
            assert_covers(&text, &tokenizer().passages(&text));
            assert!(tokenizer().encode_query(&text).len() <= 256);
        }
    }

    #[test]
    fn pieces_do_not_cut_words() {
        let text = "alpha beta gamma ".repeat(5_000);
        let cut: Vec<&str> = pieces(&text).map(|piece| &text[piece]).collect();
        assert!(cut.len() > 5);
        assert!(cut.iter().all(|piece| piece.ends_with(' ')));
        assert_eq!(cut.concat(), text);
    }

    #[test]
    fn debug_output_does_not_show_the_text() {
        let shown = format!("{:?}", tokenizer().encode_query("secret"));
        assert_eq!(shown, "TokenizedText { tokens: 3, truncated: false }");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn passages_cover_any_text(text in "(\\PC|[ \n.a-z]){0,3000}") {
            assert_covers(&text, &tokenizer().passages(&text));
        }

        #[test]
        fn feeding_pieces_gives_the_tokens_of_the_whole(words in proptest::collection::vec("[a-zA-Z0-9.,é中]{1,12}", 0..3000)) {
            let text = words.join(" ");
            let tokenizer = tokenizer();
            let mut by_pieces = Vec::new();
            for piece in pieces(&text) {
                tokenizer.append_tokens(&text, piece, &mut by_pieces);
            }
            let whole = tokenizer.shared.tokenizer.encode(text.as_str(), false).unwrap();
            let ids: Vec<u32> = by_pieces.iter().map(|token| token.id).collect();
            prop_assert_eq!(ids, whole.get_ids());
            let offsets: Vec<(usize, usize)> = by_pieces.iter().map(|token| (token.start, token.end)).collect();
            prop_assert_eq!(offsets, whole.get_offsets());
        }
    }
}
