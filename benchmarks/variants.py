"""Which form of a component learns best? Validation loss of variants of one small model at equal budget.

Command:  python benchmarks/variants.py --path=FILE [--steps=1000 --dim=64 --layers=2 --seeds=1 --groups=encoder,ssm]

Trains each variant on the characters of FILE (first 90 % train, last 10 % validate, random windows of 64, batches of
12) and prints nats a character at the end. Everything but the named fields is equal.
"""

import time

import numpy as np
from absl import app, flags

from sem_jax.config import build, default, with_vocabulary
from sem_jax.data import open_dataset
from sem_jax.modules.model import count_parameters
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.host import single_threaded_lapack
from sem_jax.training.state import init_state
from sem_jax.training.step import make_train_step

_PATH = flags.DEFINE_string("path", None, "Text file.", required=True)
_STEPS = flags.DEFINE_integer("steps", 1000, "Training steps.")
_DIM = flags.DEFINE_integer("dim", 64, "Channels.")
_LAYERS = flags.DEFINE_integer("layers", 2, "Layers.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each variant.")
_GROUPS = flags.DEFINE_list("groups", ["model"], "Which comparisons: model, encoder, ssm.")

FIXED = {"mixer.kind": "fixed", "likelihood": "born", "layout": "mixers_first"}
VARIANTS = {
    "model": {
        "fixed B and C, Born": {"mixer.kind": "fixed", "likelihood": "born"},
        "fixed B and C, coherent": {"mixer.kind": "fixed", "likelihood": "coherent"},
        "selective, Born": {"mixer.kind": "selective", "likelihood": "born"},
        "selective, coherent": {},
        "interleaved": {"layout": "interleaved"},
        "mixers first": {"layout": "mixers_first"},
        "no propagators": {"blocks": "mixers"},
    },
    "encoder": {
        "embedding alone": FIXED | {"encoder.transport": "none"},
        "row softmax": FIXED | {"encoder.transport": "row_softmax", "encoder.embedding_skip": False},
        "row softmax + skip": FIXED | {"encoder.transport": "row_softmax"},
        "causal Sinkhorn + skip": FIXED | {"encoder.transport": "causal_sinkhorn", "encoder.sinkhorn_max_iter": 3},
    },
    "ssm": {
        "fast, δ": FIXED | {"mixer.ssm_init": "fast", "mixer.input_scale": "dt"},
        "ring, δ": FIXED | {"mixer.ssm_init": "ring", "mixer.input_scale": "dt"},
        "ring, unit variance": FIXED | {"mixer.ssm_init": "ring", "mixer.input_scale": "unit_variance"},
    },
}


def configure(fields: dict, seed: int):
    config = default()
    config.model.update(hidden_dim=_DIM.value, num_layers=_LAYERS.value, remat="elementwise")
    config.model.mixer.update(num_groups=_DIM.value // 16, num_heads=8)
    config.data.update(source="text", path=_PATH.value, split="tail", validation_fraction=0.1)
    config.data.update(tokenizer="char", packing="windows", seq_length=64)
    config.optimizer.update(learning_rate=3e-3, warmup_steps=100, decay_steps=_STEPS.value // 2)
    config.training.update(seed=seed, max_steps=_STEPS.value, global_batch=12, micro_batch=12, eval_batches=100)
    config.update_from_flattened_dict({f"model.{name}": value for name, value in fields.items()})
    return build(config)


def run(fields: dict, seed: int) -> tuple[float, int, float]:
    """(validation nats a character, parameters, seconds a step without compilation)."""
    config = configure(fields, seed)
    dataset = open_dataset(config.data, seed, config.training.global_batch)
    config = with_vocabulary(config, dataset.tokenizer.vocab_size)
    state = init_state(config)
    step = make_train_step(config)
    times = []
    for number in range(config.training.max_steps):
        start = time.perf_counter()
        state, metrics = step(state, dataset.train.batch(number))
        metrics.loss.block_until_ready()
        times.append(time.perf_counter() - start)
    evaluation = Evaluator(config, dataset)(state.model)
    return evaluation.values["nll"], count_parameters(state.params), float(np.median(times))


def main(argv: list[str]) -> None:
    del argv
    for group in _GROUPS.value:
        print(f"{group:24s}  nats/char  parameters  ms/step", flush=True)
        for name, fields in VARIANTS[group].items():
            with single_threaded_lapack():
                results = [run(fields, seed) for seed in range(_SEEDS.value)]
            losses = [loss for loss, _, _ in results]
            spread = f" ± {np.std(losses):.4f}" if len(losses) > 1 else ""
            print(
                f"{name:24s}  {np.mean(losses):.4f}{spread}  {results[0][1]:10,}  {1e3 * results[0][2]:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
