"""Texts that look like what agents store, made from a seed: the same seed gives the same items everywhere.

What matters for a comparison, and what random vectors or a few dozen words do not have:

- Words follow Zipf's law over many thousand words, so the lists of the keyword index are of very different lengths.
- The frequent words are English, function words first; a model knows them as one token each. The rare ones are
  made up, like the names in any project, and cost several tokens.
- An item is about a subject, whose words come more often in it, so vectors form clusters.
- Lengths are log-normal: most items are short, a few are ten times as long.
- A part of the items has identifiers, paths and error codes.

Needs nothing but Python. `test_texts.py` checks these properties.
"""

import bisect
import json
import math
import os
import random
import re

HERE = os.path.dirname(os.path.abspath(__file__))
# The tokenizer of the bundled model. Its vocabulary lists whole English words, the most frequent ones first.
TOKENIZER = os.path.join(HERE, "..", "..", "model", "bundled", "tokenizer.json")

# Changes whenever the same seed would give other texts: cached vectors belong to one version.
VERSION = 1

FUNCTION_WORDS = """
the of and to in a is that for it was on with as by this be at from are or an which not have has had but were their
its if will when can so all one more other than then only also into some any no there been would these such each may
about after before between because while where during both most over under should must could out up down off again
very still never always too just here how what why who we they you he she his her them us our your my me do does did
done being same own per via without within until since against through above below although though unless whether
either neither every few many much several another whose whom itself
""".split()
ENGLISH_WORDS = 6_000
MADE_UP_WORDS = 8_000
SUBJECTS = 80
WORDS_OF_SUBJECT = 60

TYPES = "implementation general decision issue architecture configuration pattern system".split()
AGENTS = 20
SESSIONS = 200

SHORTEST, LONGEST = 20, 400  # Words of an item.
# Of the log-normal lengths before those out of bounds are drawn again; the median of what remains is 45.
LENGTH_MU, LENGTH_SIGMA = math.log(37), 0.75


class Zipf:
    """Draws from `values`; the n-th has the frequency 1 / (n + offset) ** exponent."""

    def __init__(self, values, exponent=1.0, offset=2.7):
        self.values = values
        self.sums, total = [], 0.0
        for rank in range(1, len(values) + 1):
            total += (rank + offset) ** -exponent
            self.sums.append(total)

    def draw(self, rng):
        place = bisect.bisect_left(self.sums, rng.random() * self.sums[-1])
        return self.values[min(place, len(self.values) - 1)]


def english_words(count):
    """Whole words of the model's vocabulary, the most frequent first, without function words."""
    with open(TOKENIZER, encoding="utf-8") as file:
        vocabulary = json.load(file)["model"]["vocab"]
    seen = set(FUNCTION_WORDS)
    ordered = sorted(vocabulary, key=vocabulary.get)
    return [word for word in ordered if re.fullmatch("[a-z]{3,}", word) and word not in seen][:count]


def made_up_words(count, taken):
    """Pronounceable words that are in no dictionary."""
    rng = random.Random(1)
    starts = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sl st t th tr v w z".split()
    middles = "a e i o u a e i o u ai ea".split()
    ends = " n r l s t x m nd rk st ng".split(" ")
    words, seen = [], set(taken)
    while len(words) < count:
        syllables = rng.choices([1, 2, 3], [2, 6, 2])[0]
        word = "".join(rng.choice(starts) + rng.choice(middles) for _ in range(syllables)) + rng.choice(ends)
        if word not in seen:
            seen.add(word)
            words.append(word)
    return words


def content_words():
    """The words that carry meaning, by rank: English ones, between which every eighth is made up, then made-up ones."""
    english = english_words(ENGLISH_WORDS)
    made_up = iter(made_up_words(MADE_UP_WORDS, english))
    ranked = []
    for number, word in enumerate(english, 1):
        ranked.append(word)
        if number % 7 == 0:
            ranked.append(next(made_up))
    return ranked + list(made_up)


class Texts:
    """A source of items and queries. Each `seed` is another sequence over the same words."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        content = content_words()
        self.words = Zipf(FUNCTION_WORDS + content)
        self.function_words = set(FUNCTION_WORDS)
        # Subjects are the same for every seed: queries of one seed are about items of another.
        fixed = random.Random(3)
        pool = content[200:6_000]
        self.subjects = Zipf([Zipf(fixed.sample(pool, WORDS_OF_SUBJECT)) for _ in range(SUBJECTS)])
        self.identifier_words = content[:3_000]
        self.types = Zipf(TYPES, offset=0)
        self.agents = Zipf([f"agent-{number:02}" for number in range(AGENTS)], offset=0)
        self.sessions = Zipf([f"session-{number:03}" for number in range(SESSIONS)], offset=0)
        self.asked = set()

    def word(self, subject):
        word = self.words.draw(self.rng)
        # Two of five words that carry meaning are the subject's.
        if word not in self.function_words and self.rng.random() < 0.4:
            word = subject.draw(self.rng)
        return word

    def identifier(self):
        rng = self.rng
        first, second = rng.choice(self.identifier_words), rng.choice(self.identifier_words)
        number = rng.randrange(10_000)
        return rng.choice(
            [
                f"{first}_{second}",
                f"{first}{second.capitalize()}()",
                f"src/{first}/{second}.rs:{number % 900 + 1}",
                f"/etc/{first}/{second}.toml",
                f"{first[:4].upper()}-{number}",
                f"{first}.{second}={number}",
                f"{first}::{second}",
                f"E{number:04}",
                f"{rng.getrandbits(40):010x}",
            ]
        )

    def length(self):
        while True:
            length = round(self.rng.lognormvariate(LENGTH_MU, LENGTH_SIGMA))
            if SHORTEST <= length <= LONGEST:
                return length

    def text(self, length=None):
        """Sentences of 4 to 28 words, about 12 on average."""
        length = length or self.length()
        subject = self.subjects.draw(self.rng)
        technical = self.rng.random() < 0.35
        sentences = []
        while length > 0:
            count = min(length, round(self.rng.triangular(4, 28, 6)))
            length -= count
            words = [self.word(subject) for _ in range(count)]
            if technical:
                words = [self.identifier() if self.rng.random() < 0.08 else word for word in words]
            if count > 14:
                words[count // 2] += ","
            sentence = " ".join(words)
            sentences.append(sentence[0].upper() + sentence[1:] + ".")
        return " ".join(sentences)

    def item(self, number):
        return {
            "id": f"item-{number:07}",
            "text": self.text(),
            "type": self.types.draw(self.rng),
            "agent": self.agents.draw(self.rng),
            "session_id": self.sessions.draw(self.rng),
        }

    def items(self, count, first=0):
        return [self.item(number) for number in range(first, first + count)]

    def query(self, items):
        """3 to 12 words, never the same twice. Every third query takes its words from one of `items`."""
        while True:
            count = round(self.rng.triangular(3, 12, 4))
            if self.rng.randrange(3) == 0:
                words = re.findall(r"\w+", self.rng.choice(items)["text"].lower())
                meant = [word for word in words if word not in self.function_words] or words
                kept = self.rng.sample(meant, min(count, len(meant)))
                # As a person would put it: other small words, another order.
                kept += [self.rng.choice(FUNCTION_WORDS) for _ in range(count - len(kept))]
                query = " ".join(kept)
            else:
                subject = self.subjects.draw(self.rng)
                query = " ".join(self.word(subject) for _ in range(count))
            if query not in self.asked:
                self.asked.add(query)
                return query

    def queries(self, count, items):
        return [self.query(items) for _ in range(count)]


def sessions_of_a_percent(items, wanted=5):
    """The sessions whose share of the items is nearest to 1 %: the values of the narrow filter."""
    counts = {}
    for item in items:
        counts[item["session_id"]] = counts.get(item["session_id"], 0) + 1
    return sorted(counts, key=lambda session: (abs(counts[session] / len(items) - 0.01), session))[:wanted]
