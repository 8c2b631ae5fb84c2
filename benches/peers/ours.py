"""Our daemon as a contestant: a process with a home of its own, asked through its socket."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time

LIMIT = 10
BATCH = 100


class Refused(Exception):
    """The daemon answered with an error."""


class Ours:
    def __init__(self, program, home, durability="full"):
        self.program, self.home = program, home
        self.path = os.path.join(home, "run", "ccod.sock")
        # Nothing of the caller's own configuration may change what is measured.
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("CCO_")}
        self.environment.update(CCO_HOME=home, CCO_DURABILITY=durability)
        self.process = None

    # The process.

    def start(self):
        os.makedirs(self.home, exist_ok=True)
        with open(os.path.join(self.home, "stderr.log"), "a") as log:
            self.process = subprocess.Popen([self.program], env=self.environment, stderr=log)
        while True:
            try:
                self.socket = self.connect()
                break
            except OSError:
                if self.process.poll() is not None:
                    raise Refused(f"{self.program} ended with {self.process.returncode}") from None
                time.sleep(0.0005)
        self.lines = self.socket.makefile("rb")

    def connect(self):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection

    def stop(self):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.lines.close()
            self.socket.close()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def pid(self):
        return self.process.pid

    # Calls.

    def send(self, line):
        self.socket.sendall(line)
        while True:
            answer = self.lines.readline()
            if not answer:
                raise Refused("the daemon closed the connection")
            # Notifications of progress have no id.
            if b'"id"' in answer[:64]:
                return answer

    def call(self, method, params):
        answer = json.loads(self.send(request(method, params)))
        if "error" in answer:
            raise Refused(f"{method}: {answer['error']['message']}")
        return answer["result"]

    # What all contestants do.

    def fill(self, items):
        for first in range(0, len(items), BATCH):
            stored = self.call("knowledge.store_batch", {"items": items[first : first + BATCH]})
            if stored["failed"]:
                raise Refused(f"store_batch: {stored}")
            done = min(first + BATCH, len(items))
            print(f"\rfilling ours: {done} of {len(items)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        self.call("admin.optimize", {})

    def block(self, op, calls):
        """Makes the calls one after another. `took_ms` is what the daemon says of its searches."""
        self.prepare(op, calls)
        engine, hits = self.engine_ms(), self.cache_hits()
        times, took = [], []
        for call in calls:
            line = request(*translated(op, call))
            begun = time.perf_counter()
            answer = self.send(line)
            times.append((time.perf_counter() - begun) * 1e3)
            answer = json.loads(answer)
            if "error" in answer:
                raise Refused(f"{op}: {answer['error']['message']}")
            if isinstance(answer["result"], dict) and "took_ms" in answer["result"]:
                took.append(answer["result"]["took_ms"])
        result = {"ms": times, "engine_ms": (self.engine_ms() - engine) / len(calls)}
        if took:
            result["took_ms"] = took
            result["vectors_cached"] = self.cache_hits() - hits
        return result

    def prepare(self, op, calls):
        """Where the vector is to be known, lets the daemon embed the query before: it keeps vectors of queries by
        their text, so that the same text with another limit, mode or filter is not embedded again."""
        if op in ("vector", "hybrid"):
            for call in calls:
                self.call("knowledge.search", {"query": call["text"], "mode": "vector", "limit": 1})

    def together(self, op, calls, callers, seconds):
        """Calls a second over that many connections, each with one request at a time. One thread serves all of them
        and reads no more of an answer than where it ends, so that the client takes little of the processor."""
        self.prepare(op, calls)
        lines = [request(*translated(op, call)) for call in calls]
        selector = selectors.DefaultSelector()
        connections = [self.connect() for _ in range(callers)]
        for number, connection in enumerate(connections):
            selector.register(connection, selectors.EVENT_READ, [number])
            connection.sendall(lines[number % len(lines)])
        done, begun = 0, time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            for key, _ in selector.select(begun + seconds - now):
                part = key.fileobj.recv(1 << 20)
                if part.endswith(b"\n"):
                    if b'"error"' in part[:64]:
                        raise Refused(part.decode())
                    done += 1
                    key.data[0] += 7  # Not the same order for all.
                    key.fileobj.sendall(lines[key.data[0] % len(lines)])
        for connection in connections:
            connection.close()
        return done / seconds

    def engine_ms(self):
        """Time that the model has computed so far."""
        return self.call("admin.status", {})["actors"]["embedder"]["counters"]["engine_ms"]

    def cache_hits(self):
        return self.call("admin.status", {})["caches"]["query_vectors"]["hits"]

    def upkeep(self):
        """It begins by itself once nobody has written for a second."""
        time.sleep(2)


def request(method, params):
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n"


def translated(op, call):
    """The method and the parameters of an operation."""
    if op in ("get", "list", "stats"):
        params = {"get": {"id": call.get("id")}, "list": {"limit": 20}, "stats": {}}[op]
        return f"knowledge.{op}", params
    if op == "embed":
        return "embedding.embed", {"texts": [call["text"]]}
    if op == "add_new":
        return "knowledge.store", call["item"]
    params = {"query": call["text"], "mode": op.removesuffix("_new"), "limit": LIMIT}
    if "session" in call:
        params["session_id"] = call["session"]
    return "knowledge.search", params
