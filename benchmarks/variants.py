"""Which form of a component learns best? Validation loss of variants of one small model at equal budget.

Command:  python benchmarks/variants.py --path=FILE [--groups=model,parts --steps=1000 --dim=64 --layers=2 --seeds=3]
          [--config=configs/shakespeare_char.py] [--only=NAME,NAME] [--equal=steps] [--json=FILE]

Trains each variant on the characters of FILE (first 90 % train, last 10 % validate, random windows of 64, batches of
12) and prints nats a character at the end, their difference from the group's first line for the same seeds, and what
the variant costs. Everything but what is named is equal. `--equal=parameters` gives each variant the width that comes
closest to the parameters of the group's first line, `--equal=time` as many steps as that one's time allows. Time is the
processor's, so that what else the machine does matters little; on one thread, by
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false, it is also the time that passes. What is varied is a small model, or with
`--config` a recipe, whose schedule scales with `--steps`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import ablations
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from sem_jax.cli import enable_compilation_cache
from sem_jax.config import Config, build, default, with_vocabulary
from sem_jax.data import open_dataset
from sem_jax.modules import model
from sem_jax.modules.blocks import BLOCKS
from sem_jax.modules.model import abstract_model, count_parameters
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.host import keep_freed_memory, single_threaded_lapack
from sem_jax.training.state import init_state
from sem_jax.training.step import make_train_step

_PATH = flags.DEFINE_string("path", None, "Text file.", required=True)
_CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe in the place of the small model.")
_STEPS = flags.DEFINE_integer("steps", None, "Training steps; without it, those of the model that is varied.")
_DIM = flags.DEFINE_integer("dim", None, "Channels, likewise.")
_LAYERS = flags.DEFINE_integer("layers", None, "Layers, likewise.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each variant.")
_GROUPS = flags.DEFINE_list("groups", ["model"], "Which comparisons: model, parts, ends, optimizer, encoder, ssm.")
_ONLY = flags.DEFINE_list("only", None, "Names of variants to compare with the group's first; without it, all.")
_EQUAL = flags.DEFINE_enum("equal", "steps", ["steps", "parameters", "time"], "What all variants of a group share.")
_JSON = flags.DEFINE_string("json", "", "File for the same numbers.")


@dataclass(frozen=True)
class Variant:
    """What differs from the default."""

    fields: Mapping[str, Any] = field(default_factory=dict)  # of the configuration
    blocks: Mapping[str, Any] = field(default_factory=dict)  # kinds of layers by name
    model: Mapping[str, Any] = field(default_factory=dict)  # what `sem_jax.modules.model` is made of, by name


def _with(blocks: Any = None, model: Any = None, **fields: Any) -> Variant:
    return Variant({name.replace("__", "."): value for name, value in fields.items()}, blocks or {}, model or {})


def _mixer(block: Any) -> Variant:
    return _with({"mixers": block})


def _model(**parts: Any) -> Variant:
    return _with(model=parts)


FIXED = {
    "model__mixer__kind": "fixed",
    "model__likelihood": "born",
    "model__layout": "mixers_first",
    "model__encoder__transport": "row_softmax",
    "model__encoder__position_phase": True,
    "model__propagator__kerr_saturation": 0.0,
    "optimizer__matrices": "adam",
    "optimizer__learning_rate": 3e-3,
}
VARIANTS = {
    "model": {
        "the default": _with(),
        "fixed B and C, Born": _with(model__mixer__kind="fixed", model__likelihood="born"),
        "fixed B and C, coherent": _with(model__mixer__kind="fixed"),
        "selective, Born": _with(model__likelihood="born"),
        "mixers first": _with(model__layout="mixers_first"),
    },
    "parts": {
        "the default": _with(),
        "a spinor gate for the input projection": _with(model__mixer__input_map="spinor_gate"),
        "no input projection": _mixer(ablations.NoInputProjection),
        "no convolution": _mixer(ablations.NoConvolution),
        "an amplitude gate": _mixer(ablations.AmplitudeGate),
        "no output gate": _mixer(ablations.NoOutputGate),
        "output gate of rank D/8": _mixer(ablations.LowRankOutputGate),
        "no bias of q and k": _mixer(ablations.NoBias),
        "Mamba-3's start": _with(model__mixer__selective_init="mamba3"),
        "no skip d": _mixer(ablations.NoSkip),
        "phases 0 at the start": _mixer(ablations.NoPhase),
        "trapezoidal input": _mixer(ablations.Trapezoid),
        "y not normalised": _with(model__mixer__output_norm=False),
        "rotations without bound": _with(model__mixer__rotation="affine"),
        "half the states": _with(model__mixer__state_dim=8),
        "twice the states": _with(model__mixer__state_dim=32),
        "half the heads": _with(model__mixer__num_heads=4),
        "gated channel mixer of width D/2": _with(
            {"channels": ablations.ChannelMixer}, model__blocks="mixers,channels,propagators"
        ),
        "a transport plan": _with(model__encoder__transport="row_softmax"),
        "a Kerr phase without bound": _with(model__propagator__kerr_saturation=0.0),
        "no Kerr phase": _with(model__propagator__nonlinear_alpha=0.0, optimizer__lr_factors="propagators/alpha=0"),
        "no propagator": _with(model__blocks="mixers"),
        "values of the first layer": _with({"mixers": ablations.FirstValues}, {"scan_layers": ablations.unrolled}),
    },
    "ends": {
        "the default": _with(),
        "complex embedding": _model(Encoder=ablations.ComplexEmbedding),
        "tied embedding": _model(SEM=ablations.Tied),
        "a position phase": _with(model__encoder__position_phase=True),
        "pairs of characters": _model(Encoder=ablations.Pairs),
        "no norm before the readout": _model(rms_norm=ablations.no_norm),
        "readout of full scale at the start": _model(Readout=ablations.FullScale),
        "logits capped at 15": _model(Readout=ablations.Capped),
        "no log²Z": _with(optimizer__unitary_lambda=0.0),
        "log²Z ten times as heavy": _with(optimizer__unitary_lambda=1e-2),
    },
    "optimizer": {
        f"{matrices}, {rate:g}": _with(optimizer__matrices=matrices, optimizer__learning_rate=rate)
        for rate in (3e-3, 6e-3, 12e-3)
        for matrices in ("muon", "adam")
    },
    "encoder": {
        "row softmax + skip": _with(**FIXED),
        "row softmax": _with(**FIXED, model__encoder__embedding_skip=False),
        "embedding alone": _with(**(FIXED | {"model__encoder__transport": "none"})),
        "causal Sinkhorn + skip": _with(
            **(FIXED | {"model__encoder__transport": "causal_sinkhorn"}), model__encoder__sinkhorn_max_iter=3
        ),
    },
    "ssm": {
        "fast, δ": _with(**FIXED),
        "ring, δ": _with(**FIXED, model__mixer__ssm_init="ring"),
        "ring, unit variance": _with(**FIXED, model__mixer__ssm_init="ring", model__mixer__input_scale="unit_variance"),
    },
}


@dataclass
class Result:
    """Of one variant: losses by seed, and what it costs."""

    nats: list[float]  # validation, a character
    dim: int
    steps: int
    parameters: int
    step_ms: float  # of processor time, the median, without compilation


def small() -> ConfigDict:
    """The model that is varied where no recipe is given."""
    config = default()
    config.model.update(hidden_dim=64, num_layers=2, remat="none", layout="interleaved")
    config.model.mixer.update(num_groups=8, num_heads=8, state_dim=16)
    config.data.update(source="text", split="tail", validation_fraction=0.1)
    config.data.update(tokenizer="char", packing="windows", seq_length=64)
    config.optimizer.update(learning_rate=6e-3, matrices="muon", b2=0.99, lr_min_ratio=0.03)
    config.optimizer.update(warmup_steps=100, decay_steps=750)
    config.training.update(max_steps=1000, global_batch=12, micro_batch=12, eval_batches=200)
    return config


def configure(variant: Variant, dim: int | None, steps: int | None, seed: int) -> Config:
    """The model that is varied, as the variant has it; None leaves a size as it is."""
    config = _CONFIG.value.copy_and_resolve_references() if _CONFIG.value else small()
    config.data.path, config.model.vocab_size, config.training.seed = _PATH.value, 65, seed
    config.model.hidden_dim = dim or config.model.hidden_dim
    config.model.num_layers = _LAYERS.value or config.model.num_layers
    length, schedule = config.training.max_steps, config.optimizer
    config.training.max_steps = steps or length
    for name in ("warmup_steps", "decay_steps"):
        schedule[name] = round(schedule[name] * config.training.max_steps / length)
    config.update_from_flattened_dict(dict(variant.fields))
    return build(config)


@contextmanager
def installed(variant: Variant) -> Iterator[None]:
    """The variant's parts in the place of the package's."""
    with mock.patch.dict(BLOCKS, variant.blocks), mock.patch.dict(vars(model), variant.model):
        yield


def parameters_of(variant: Variant, dim: int) -> int:
    return count_parameters(abstract_model(configure(variant, dim, None, 0).model).params)


def train(variant: Variant, dim: int, steps: int, seed: int) -> tuple[float, float]:
    """(validation nats a character, seconds of processor time a step without compilation)."""
    config = configure(variant, dim, steps, seed)
    dataset = open_dataset(config.data, seed, config.training.global_batch)
    config = with_vocabulary(config, dataset.tokenizer.vocab_size)
    state, step, times = init_state(config), make_train_step(config), []
    for number in range(steps):
        start = time.process_time()
        state, metrics = step(state, dataset.train.batch(number))
        metrics.loss.block_until_ready()
        times.append(time.process_time() - start)
    return Evaluator(config, dataset)(state.model).values["nll"], float(np.median(times))


def measure(variant: Variant, first: Result | None) -> Result:
    """Of all seeds, at the budget of the group's first variant."""
    start = configure(variant, _DIM.value, _STEPS.value, 0)
    dim, steps = start.model.hidden_dim, start.training.max_steps
    if first and _EQUAL.value == "parameters":
        # A multiple of the heads and of the spinor blocks.
        dim = min(range(dim // 2, 2 * dim, 8), key=lambda dim: abs(parameters_of(variant, dim) - first.parameters))
    if first and _EQUAL.value == "time":
        seconds = train(variant, dim, 130, 0)[1]
        steps = round(steps * first.step_ms / 1e3 / seconds)
    runs = [train(variant, dim, steps, seed) for seed in range(_SEEDS.value)]
    nats, seconds = zip(*runs, strict=True)
    return Result(list(nats), dim, steps, parameters_of(variant, dim), 1e3 * float(np.median(seconds)))


def line(name: str, result: Result, first: Result) -> str:
    spread = f" ± {np.std(result.nats, ddof=1):.4f}" if len(result.nats) > 1 else ""
    differences = np.subtract(result.nats, first.nats)
    return (
        f"{name:34s}  {np.mean(result.nats):.4f}{spread}  {np.mean(differences):+.4f}  {result.dim:4d}  "
        f"{result.parameters:10,}  {result.steps:5d}  {result.step_ms:7.0f}"
    )


def main(argv: list[str]) -> None:
    del argv
    keep_freed_memory()
    enable_compilation_cache()  # one program serves all seeds
    found: dict[str, dict[str, Any]] = {}
    for group in _GROUPS.value:
        print(f"{group:34s}  nats/char  difference  dim  parameters  steps  ms/step", flush=True)
        first = None
        for name, variant in VARIANTS[group].items():
            if first and _ONLY.value and name not in _ONLY.value:
                continue
            with single_threaded_lapack(), installed(variant):
                result = measure(variant, first)
            first = first or result
            print(line(name, result, first), flush=True)
            found.setdefault(group, {})[name] = asdict(result)
            if _JSON.value:
                with open(_JSON.value, "w") as file:
                    json.dump(found, file, indent=1)


if __name__ == "__main__":
    app.run(main)
