#!/usr/bin/env python3
"""Compares builds of `ccod` with each other: size, start, memory, and what a user waits for.

usage: programs.py [--items N] [--rounds N] NAME=PATH_OF_CCOD...

Each program gets a home of its own with the same N items (default 2,000, of about 45 tokens; the words follow Zipf's
law). Then all of them are asked in turn, N rounds (default 3): one client, 100 requests of a kind in a round, each query
new. Prints medians in ms, and their ratio to the first program. Needs nothing but Python.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time

REQUESTS = 100
WORDS_OF_ITEM = 15  # About 45 tokens of the model: these words are in no vocabulary.
WORDS_OF_QUERY = 3


class Words:
    """Made-up words of English syllables, the n-th with frequency 1/n."""

    def __init__(self, seed, count=5_000):
        self.random = random.Random(seed)
        syllables = "re ta con lo mi ser ver da quo ent index por tal sto que ne ri ba su ter ing al os".split()
        made = random.Random(1)
        words = {"".join(made.choices(syllables, k=made.randint(1, 4))) for _ in range(2 * count)}
        self.words = sorted(words)[:count]
        made.shuffle(self.words)
        self.weights = [1 / (n + 1) for n in range(len(self.words))]

    def text(self, count):
        return " ".join(self.random.choices(self.words, self.weights, k=count))


class Daemon:
    def __init__(self, name, program, home):
        self.name, self.program, self.home = name, program, home
        self.numbers = {}

    def start(self):
        begun = time.perf_counter()
        environment = dict(os.environ, CCO_HOME=self.home)
        self.process = subprocess.Popen([self.program], env=environment, stderr=subprocess.DEVNULL)
        path = os.path.join(self.home, "run", "ccod.sock")
        while True:
            try:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.connect(path)
                break
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"{self.name}: {self.program} ended with {self.process.returncode}")
                time.sleep(0.0005)
        self.lines = self.socket.makefile("rb")
        self.call("admin.health", {})
        return (time.perf_counter() - begun) * 1e3

    def call(self, method, params):
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        answer = {}
        while "id" not in answer:  # Notifications of progress have none.
            answer = json.loads(self.lines.readline())
        if "error" in answer:
            raise SystemExit(f"{self.name}: {method}: {answer['error']}")
        return answer["result"]

    def timed(self, what, method, params):
        begun = time.perf_counter()
        result = self.call(method, params)
        self.numbers.setdefault(what, []).append((time.perf_counter() - begun) * 1e3)
        return result

    def memory_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def stop(self):
        self.lines.close()
        self.socket.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def load(daemon, items):
    words = Words(2)
    ids = []
    begun = time.perf_counter()
    for first in range(0, items, 100):
        batch = [{"text": words.text(WORDS_OF_ITEM)} for _ in range(min(100, items - first))]
        ids += daemon.call("knowledge.store_batch", {"items": batch})["ids"]
    daemon.numbers["items stored in batches, ms each"] = [(time.perf_counter() - begun) * 1e3 / items]
    daemon.call("admin.optimize", {})
    return ids


def ask(daemon, ids, seed):
    words = Words(seed)
    for mode in ["hybrid", "vector", "text"]:
        for _ in range(REQUESTS):
            params = {"query": words.text(WORDS_OF_QUERY), "mode": mode, "limit": 10}
            daemon.timed(f"search, {mode}", "knowledge.search", params)
    for _ in range(REQUESTS):
        daemon.timed("get", "knowledge.get", {"id": words.random.choice(ids)})
        daemon.timed("list of 20", "knowledge.list", {"limit": 20})
    for _ in range(REQUESTS // 4):
        daemon.timed("store, durable", "knowledge.store", {"text": words.text(WORDS_OF_ITEM)})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("programs", nargs="+", metavar="NAME=PATH")
    arguments = parser.parse_args()
    place = tempfile.mkdtemp(prefix="ccod-programs-")
    daemons = []
    try:
        for number, argument in enumerate(arguments.programs):
            name, _, path = argument.partition("=")
            daemons.append(Daemon(name, path, os.path.join(place, str(number))))
        print(f"{os.cpu_count()} cores, {arguments.items} items, {arguments.rounds} rounds of {REQUESTS} requests")
        ids = {}
        for daemon in daemons:
            daemon.numbers["size, MB"] = [os.path.getsize(daemon.program) / 1e6]
            daemon.start()
            ids[daemon.name] = load(daemon, arguments.items)
            daemon.stop()
        for seed in range(10, 10 + arguments.rounds):
            for daemon in daemons:
                daemon.numbers.setdefault("start to first answer", []).append(daemon.start())
                ask(daemon, ids[daemon.name], seed)
                daemon.numbers.setdefault("memory, MiB", []).append(daemon.memory_mib())
                daemon.stop()
        width = max(len(what) for what in daemons[0].numbers)
        print(" " * width, *(f"{daemon.name:>16}" for daemon in daemons))
        for what in daemons[0].numbers:
            first = statistics.median(daemons[0].numbers[what])
            cells = []
            for daemon in daemons:
                median = statistics.median(daemon.numbers[what])
                cells.append(f"{median:9.2f} ({median / first:4.2f})")
            print(f"{what:{width}}", *(f"{cell:>16}" for cell in cells))
    finally:
        for daemon in daemons:
            if getattr(daemon, "process", None) and daemon.process.poll() is None:
                daemon.process.kill()
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
