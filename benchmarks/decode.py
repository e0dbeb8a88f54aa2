"""What does a generated token cost, and does it depend on how much has been read?

Command:  python benchmarks/decode.py [--contexts=64,1024,4096,65536] [--batches=1,64] [--recomputed=64,256,1024]
          [--context=unbounded --length=64] [--dim=128 --layers=4 --vocab=1024] [--tokens=64] [--seconds=2]
          [--json=FILE]

Reads a context once (`Decoder.prefill`), then draws --tokens tokens in one compiled loop (`Decoder.draw`) from the
state after it; in a batch every text carries that state. With --context=restart it measures what generation does by
default: two readers a text, after a training length of --length. Beside it stands what the PyTorch original does, the
whole prefix encoded again for each token, here by sem_jax's own compiled forward pass, for --recomputed as lengths.
Prints the latency of a token, tokens a second, and the latency after the longest context over that after the shortest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from shapes import Shape, configuration
from timing import Timing, bound, interleaved, machine, milliseconds, table, write_json

from sem_jax.inference.decoding import DRAW_CHUNK, Decoder, SamplingOptions, Text
from sem_jax.modules.model import ModelParts, init_model

_CONTEXTS = flags.DEFINE_list("contexts", ["64", "1024", "4096", "65536"], "Tokens read before.")
_BATCHES = flags.DEFINE_list("batches", ["1", "64"], "Texts at once.")
_RECOMPUTED = flags.DEFINE_list("recomputed", ["64", "256", "1024"], "Lengths of a prefix that is encoded again.")
_DIM = flags.DEFINE_integer("dim", 128, "Channels.")
_LAYERS = flags.DEFINE_integer("layers", 4, "Layers.")
_VOCAB = flags.DEFINE_integer("vocab", 1024, "Tokens of the vocabulary.")
_TOKENS = flags.DEFINE_integer("tokens", DRAW_CHUNK, "Tokens drawn in a call.", lower_bound=1, upper_bound=DRAW_CHUNK)
_CONTEXT = flags.DEFINE_enum("context", "unbounded", ["restart", "unbounded"], "As sampling.context.")
_LENGTH = flags.DEFINE_integer("length", 64, "Training length, after which --context=restart restarts.")
_SECONDS = flags.DEFINE_float("seconds", 2.0, "Time for each measurement.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


def context_length() -> int | None:
    return _LENGTH.value if _CONTEXT.value == "restart" else None


def read(decoder: Decoder, parts: ModelParts, tokens: np.ndarray) -> Text:
    return decoder.prefill(parts, [tokens], jax.random.key(0)[None], context_length())


def repeated(text: Text, count: int) -> Text:
    """A batch of `count` times the same text, from a batch of one."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), text)


def drawing(decoder: Decoder, parts: ModelParts, texts: Text) -> Callable[[], Any]:
    """A contender: the compiled loop that draws tokens after what the texts have read."""
    prepared, options = decoder.prepare(parts), SamplingOptions(temperature=0.8)
    return lambda: decoder.draw(parts, prepared, texts, _TOKENS.value, options, context_length())


def per_token(timing: Timing) -> Timing:
    return Timing(*(seconds / _TOKENS.value for seconds in timing[:3]), timing.calls)


def measure_carried(decoder: Decoder, parts: ModelParts) -> tuple[dict[int, Timing], dict[int, dict[int, Timing]]]:
    """(prefill by context, a token by batch and context)."""
    contexts = [int(context) for context in _CONTEXTS.value]
    rng, prefill, texts = np.random.default_rng(0), {}, {}
    for context in contexts:
        tokens = rng.integers(0, _VOCAB.value, context + 1).astype(np.int32)  # the last one is read by the first draw
        texts[context] = read(decoder, parts, tokens)
        again = functools.partial(read, decoder, parts, tokens)
        prefill[context] = interleaved({"read": again}, _SECONDS.value, calls=(1, 50))["read"]
    drawn = {}
    for batch in map(int, _BATCHES.value):
        loops = {str(context): drawing(decoder, parts, repeated(texts[context], batch)) for context in contexts}
        times = interleaved(loops, _SECONDS.value)
        drawn[batch] = {context: per_token(times[str(context)]) for context in contexts}
    return prefill, drawn


def measure_recomputed(parts: ModelParts) -> dict[int, Timing]:
    """One token of one text by encoding its whole prefix, by length."""

    def encode(parts, tokens):
        model = parts.merge()
        return model.readout.log_probs(model(tokens)[0][:, -1])

    lengths = [int(length) for length in _RECOMPUTED.value]
    rng = np.random.default_rng(0)
    tokens = {n: jnp.asarray(rng.integers(0, _VOCAB.value, (1, n)), jnp.int32) for n in lengths}
    contenders = {str(n): bound(encode, parts, tokens[n]) for n in lengths}
    return {int(n): timing for n, timing in interleaved(contenders, _SECONDS.value).items()} if lengths else {}


def main(argv: list[str]) -> None:
    del argv
    host = machine()
    shape = Shape(_DIM.value, _LAYERS.value, _VOCAB.value, batch=1, length=64)
    parts = init_model(configuration(shape).model, 0)
    prefill, drawn = measure_carried(Decoder(), parts)
    recomputed = measure_recomputed(parts)
    print(f"{host.describe()}\nD {_DIM.value}, L {_LAYERS.value}, V {_VOCAB.value}\n")
    rows = [["read", 1, n, milliseconds(t), f"{n / t.median:,.0f}"] for n, t in prefill.items()]
    for batch, times in drawn.items():
        rows += [["draw", batch, n, milliseconds(t), f"{batch / t.median:,.0f}"] for n, t in times.items()]
    rows += [
        ["draw, prefix encoded again", 1, n, milliseconds(t), f"{1 / t.median:,.0f}"] for n, t in recomputed.items()
    ]
    print(table(["what", "batch", "context", "context or token, ms", "tokens/s"], rows))
    ratios = {}
    for batch, times in drawn.items():
        first, last = min(times), max(times)
        ratios[batch] = {n: times[n].median / times[first].median for n in times}
        print(f"\nbatch {batch}: a token after {last} costs {ratios[batch][last]:.2f} times one after {first}")
    if _JSON.value:
        saved = {"prefill": prefill, "drawn": drawn, "recomputed": recomputed, "ratios": ratios}
        write_json(_JSON.value, {"machine": host, "shape": shape} | saved)


if __name__ == "__main__":
    app.run(main)
