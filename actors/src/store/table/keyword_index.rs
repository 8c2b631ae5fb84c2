//! The keyword index: how text becomes words.

use std::sync::OnceLock;

use ccod_index::Tokens;
use lance_index::scalar::inverted::InvertedIndexParams;
use lance_index::scalar::inverted::tokenizer::document_tokenizer::LanceTokenizer;

use crate::error::{KnowledgeError, KnowledgeResult};

/// Memory that one build of the keyword index may take, in MiB; the default of 2 GiB is for servers.
const BUILD_MEMORY_MB: u64 = 256;

/// The analyser of passages and queries: words in lower case, folded to ASCII, stemmed, without English stop
/// words. Identifiers such as `fooBar` and `E0277` stay whole words. Queries may be long and odd, so words are
/// cut at 40 bytes as the index does by default.
pub(crate) fn index_params() -> InvertedIndexParams {
    InvertedIndexParams::default()
        .memory_limit_mb(BUILD_MEMORY_MB)
        .num_workers(1)
}

/// Makes words of texts, as LanceDB's keyword index does.
#[derive(Clone)]
pub(crate) struct Analyser(Box<dyn LanceTokenizer>);

impl Analyser {
    /// An analyser with the parameters of the index.
    ///
    /// # Errors
    /// Where LanceDB has none for them: a defect.
    pub(crate) fn new() -> KnowledgeResult<Self> {
        // To make one takes longer than to analyse a query: it has lists of words.
        static FIRST: OnceLock<Analyser> = OnceLock::new();
        if let Some(first) = FIRST.get() {
            return Ok(first.clone());
        }
        let made = Self(index_params().build().map_err(KnowledgeError::internal)?);
        Ok(FIRST.get_or_init(|| made).clone())
    }

    /// The words of a text, in its order.
    pub(crate) fn words(&mut self, text: &str) -> Tokens {
        let mut words = Tokens::default();
        let mut stream = self.0.token_stream_for_doc(text);
        while stream.advance() {
            words.push(&stream.token().text);
        }
        words
    }
}

/// The words of a query that are left to search for after analysis: a query of stop words matches nothing.
pub(crate) fn query_words(query: &str) -> KnowledgeResult<Tokens> {
    Ok(Analyser::new()?.words(query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_keyword_index() {
        let long = "x".repeat(50);
        for text in [
            "The sockets' owners weren't READING naïve fooBar, E0277 and foo_bar.rs:12!",
            "Ünïcödé — 漢字かな交じり文 cafe\u{301} ﬁne",
            "",
            "the of and",
            &long,
        ] {
            let expected = lancedb::table::tokenize(text, &index_params()).unwrap();
            let expected: Vec<&str> = expected.iter().map(|token| token.text.as_str()).collect();
            assert_eq!(query_words(text).unwrap().iter().collect::<Vec<_>>(), expected);
        }
        let words = query_words("Readers are reading").unwrap();
        assert_eq!(words.iter().collect::<Vec<_>>(), ["reader", "read"]);
    }
}
