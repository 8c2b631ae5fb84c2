"""A contestant that is a Python library, in a process of its own: `worker.py chroma|lancedb|onnx DIRECTORY`.

Reads one request a line, `{"do": NAME, ...}`, and answers with a line. `calls` makes calls and times each of them;
the clock runs here, so what the pipe costs is not counted. old_tool.mjs speaks the same.
"""

import concurrent.futures
import json
import os
import sys
import threading
import time

LIMIT = 10


class Onnx:
    """The model alone."""

    def __init__(self, directory):
        from embedding import Embedder

        self.sleeping, self.spinning = Embedder(spinning=False), Embedder(spinning=True)

    def fill(self, items, vectors):
        pass

    def open(self):
        pass

    def embed(self, call):
        return self.sleeping.embed([call["text"]])[0]

    def embed_spinning(self, call):
        return self.spinning.embed([call["text"]])[0]


class Chroma:
    """PersistentClient in the process; an HNSW index, so its results are approximate."""

    def __init__(self, directory):
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        self.client = chromadb.PersistentClient(os.path.join(directory, "chroma"), settings=settings)
        self.embedder = None

    def fill(self, items, vectors):
        configuration = {"hnsw": {"space": "cosine"}}
        collection = self.client.create_collection("items", embedding_function=None, configuration=configuration)
        for first in range(0, len(items), 1000):
            self.insert(collection, items[first : first + 1000], vectors[first : first + 1000])

    def open(self):
        self.collection = self.client.get_collection("items", embedding_function=None)

    @staticmethod
    def insert(collection, items, vectors):
        names = ["type", "agent", "session_id"]
        collection.add(
            ids=[item["id"] for item in items],
            embeddings=vectors,
            documents=[item["text"] for item in items],
            metadatas=[{name: item[name] for name in names} for item in items],
        )

    def vector(self, call):
        where = {"session_id": call["session"]} if "session" in call else None
        return self.collection.query(query_embeddings=[call["vector"]], n_results=LIMIT, where=where)["ids"][0]

    def vector_new(self, call):
        return self.vector({**call, "vector": embedded(self, call["text"])})

    def add(self, call):
        self.insert(self.collection, [call["item"]], [call["vector"]])

    def add_new(self, call):
        self.add({**call, "vector": embedded(self, call["item"]["text"])})

    def get(self, call):
        return self.collection.get(ids=[call["id"]])["ids"]


class Lance:
    """LanceDB's Python library in the process: flat vector search, its keyword index, scalar indexes."""

    COLUMNS = ["id", "text", "type", "agent", "session_id"]

    def __init__(self, directory):
        # A warning for every search would cost it time.
        os.environ["LANCEDB_LOG"] = os.environ["LANCE_LOG"] = os.environ["RUST_LOG"] = "error"
        import lancedb
        from lancedb.rerankers import RRFReranker

        self.database = lancedb.connect(os.path.join(directory, "lancedb"))
        self.reranker = RRFReranker()
        self.embedder = None

    def fill(self, items, vectors):
        from lancedb.index import FTS, Bitmap, BTree

        rows = [{**item, "vector": vector} for item, vector in zip(items, vectors)]
        table = self.database.create_table("items", rows)
        table.create_index("text", config=FTS())
        table.create_index("id", config=BTree())
        table.create_index("session_id", config=Bitmap())
        table.optimize()

    def open(self):
        self.table = self.database.open_table("items")

    def found(self, search, call, *scores):
        if "session" in call:
            search = search.where(f"session_id = '{call['session']}'", prefilter=True)
        # Without `select` each hit would bring its vector, as a Python list.
        return search.select([*self.COLUMNS, *scores]).limit(LIMIT).to_list()

    def vector(self, call):
        search = self.table.search(call["vector"]).distance_type("cosine")
        return self.found(search, call, "_distance")

    def vector_new(self, call):
        return self.vector({**call, "vector": embedded(self, call["text"])})

    def text(self, call):
        return self.found(self.table.search(call["text"], query_type="fts"), call, "_score")

    def hybrid(self, call):
        search = self.table.search(query_type="hybrid").vector(call["vector"]).text(call["text"])
        return self.found(search.distance_type("cosine").rerank(self.reranker), call)

    def hybrid_new(self, call):
        return self.hybrid({**call, "vector": embedded(self, call["text"])})

    def add(self, call):
        self.table.add([{**call["item"], "vector": call["vector"]}])

    def add_new(self, call):
        self.add({**call, "vector": embedded(self, call["item"]["text"])})

    def get(self, call):
        return self.table.search().where(f"id = '{call['id']}'").select(self.COLUMNS).limit(1).to_list()

    def upkeep(self):
        """What our daemon does by itself when it has time: merging fragments, indexing new rows. Not timed."""
        self.table.optimize()


CONTESTANTS = {"onnx": Onnx, "chroma": Chroma, "lancedb": Lance}


def embedded(contestant, text):
    """The vector of a text by ONNX; the model is loaded when it is first needed."""
    if contestant.embedder is None:
        from embedding import Embedder

        contestant.embedder = Embedder()
    return contestant.embedder.embed([text])[0]


def read_items(request):
    import numpy

    with open(request["items"], encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    vectors = numpy.fromfile(request["vectors"], dtype=numpy.float32).reshape(len(items), -1)
    return items, vectors


def prepared(call):
    """Given vectors as arrays before the clock runs: that is what the embedding would give."""
    if "vector" in call:
        import numpy

        call["vector"] = numpy.array(call["vector"], dtype=numpy.float32)
    return call


def timed(work, call):
    begun = time.perf_counter()
    work(call)
    return (time.perf_counter() - begun) * 1e3


def together(work, calls, callers, seconds):
    """Calls a second of that many threads. Calls that end after the time are not counted."""
    done, lock, end = [0], threading.Lock(), time.perf_counter() + seconds

    def caller(number):
        while time.perf_counter() < end:
            work(calls[number % len(calls)])
            number += 7  # Not the same order for all.
            if time.perf_counter() < end:
                with lock:
                    done[0] += 1

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        list(pool.map(caller, range(callers)))
    return done[0] / seconds


def answer(contestant, request):
    what = request["do"]
    if what == "fill":
        contestant.fill(*read_items(request))
        return {}
    if what == "open":
        contestant.open()
        return {}
    if what == "upkeep":
        getattr(contestant, "upkeep", lambda: None)()
        return {}
    work = getattr(contestant, request["op"])
    calls = [prepared(call) for call in request["calls"]]
    if what == "together":
        return {"per_second": together(work, calls, request["callers"], request["seconds"])}
    return {"ms": [timed(work, call) for call in calls]}


def main():
    # Libraries may print; the pipe is for answers alone.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestant = CONTESTANTS[sys.argv[1]](sys.argv[2])
    for line in sys.stdin:
        try:
            result = answer(contestant, json.loads(line))
        except Exception as error:  # The reason goes into the report.
            result = {"error": f"{type(error).__name__}: {error}"}
        pipe.write(json.dumps(result) + "\n")
        pipe.flush()


if __name__ == "__main__":
    main()
