"""Checks of the text generator: `python3 -m unittest discover benches/peers`. Takes a second, needs nothing installed."""

import collections
import hashlib
import os
import statistics
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import texts


class TextsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.items = texts.Texts(7).items(2_000)

    def test_a_seed_gives_the_same_items_on_every_machine(self):
        self.assertEqual(self.items, texts.Texts(7).items(2_000))
        self.assertNotEqual(self.items[:10], texts.Texts(8).items(10))
        # If this fails on purpose, raise texts.VERSION: cached vectors are of the old texts.
        digest = hashlib.sha256("\n".join(item["text"] for item in self.items).encode()).hexdigest()
        self.assertEqual((texts.VERSION, digest[:16]), (1, "905ee49a5090c76b"))

    def test_lengths_are_log_normal(self):
        lengths = [len(item["text"].split()) for item in self.items]
        self.assertTrue(41 <= statistics.median(lengths) <= 49, statistics.median(lengths))
        self.assertGreaterEqual(min(lengths), texts.SHORTEST)
        self.assertLessEqual(max(lengths), texts.LONGEST)
        self.assertGreater(statistics.mean(lengths), statistics.median(lengths))
        self.assertGreater(max(lengths), 250)

    def test_words_follow_zipf(self):
        words = collections.Counter(word.strip(".,").lower() for item in self.items for word in item["text"].split())
        ranked = [count for _, count in words.most_common()]
        self.assertGreater(len(ranked), 8_000)
        # A straight line of slope -1 in logarithms: ten times the rank, about a tenth of the count.
        for rank in [20, 100, 300]:
            self.assertTrue(4 < ranked[rank] / ranked[10 * rank] < 25, (rank, ranked[rank], ranked[10 * rank]))
        function_words = sum(words[word] for word in texts.FUNCTION_WORDS) / sum(ranked)
        self.assertTrue(0.35 < function_words < 0.55, function_words)
        self.assertGreater(sum(1 for count in ranked if count == 1), len(ranked) / 4)

    def test_agents_and_sessions_are_skewed_and_some_session_is_a_percent(self):
        agents = collections.Counter(item["agent"] for item in self.items).most_common()
        sessions = collections.Counter(item["session_id"] for item in self.items)
        self.assertEqual(len(agents), texts.AGENTS)
        self.assertGreater(len(sessions), texts.SESSIONS * 0.8)
        self.assertGreater(agents[0][1], 5 * agents[-1][1])
        for session in texts.sessions_of_a_percent(self.items):
            self.assertTrue(0.006 < sessions[session] / len(self.items) < 0.014)

    def test_some_items_have_identifiers(self):
        technical = sum(1 for item in self.items if any(sign in item["text"] for sign in ["_", "::", "()", "/"]))
        self.assertTrue(0.15 < technical / len(self.items) < 0.5, technical)

    def test_queries_are_different_and_a_third_is_of_items(self):
        queries = texts.Texts(9).queries(600, self.items)
        self.assertEqual(len(set(queries)), len(queries))
        lengths = [len(query.split()) for query in queries]
        self.assertTrue(3 <= min(lengths) and max(lengths) <= 12)
        known = [set(item["text"].lower().replace(".", "").replace(",", "").split()) for item in self.items]
        small = set(texts.FUNCTION_WORDS)
        within = 0
        for query in queries:
            meant = set(query.split()) - small
            if len(meant) >= 3 and any(meant <= words for words in known):
                within += 1
        self.assertTrue(0.15 < within / len(queries) < 0.45, within)


if __name__ == "__main__":
    unittest.main()
