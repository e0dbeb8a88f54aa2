"""Every field of the configuration times every kind of wrong value: one clear error, or a configuration that works."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Literal

import numpy as np
import pytest
from small import config, fields

from sem_jax.config import Config, ConfigError, build, override, with_vocabulary
from sem_jax.config.fields import walk
from sem_jax.config.sizes import count_weights
from sem_jax.modules.model import abstract_model, count_parameters
from sem_jax.training.state import abstract_state

SETTINGS = {f"{path}{each.name}": each for path, _, found in walk(Config) for each in found}
NUMBERS = {
    "negative": -3,
    "zero": 0,
    "a fraction": 0.3,
    "NaN": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "1e30": 1e30,
    "2**31": 2**31,
    "2**63": 2**63,
    "10**400": 10**400,
    "10**5000": 10**5000,
    "subnormal": 1e-40,
    "rounded to 1": 1 - 1e-9,
    "text": "3",
    "bool": True,
    "None": None,
    "list": [1],
    "group": {"a": 1},
    "bytes": b"3",
    "numpy": np.arange(3),
}
WORDS = {
    "wrong": "wrong",
    "empty": "",
    "number": 3,
    "list": ["a"],
    "None": None,
    "group": {},
    "long": "x" * 10**6,
    "NUL": "a\0",
    "surrogate": "\ud800",
}


def nested(path, value):
    return override(fields(), {path: value})


def cases():
    for path, each in SETTINGS.items():
        numeric = each.hint in (int, float) or typing.get_origin(each.hint) is tuple
        for name, value in (NUMBERS if numeric else WORDS).items():
            yield pytest.param(path, value, id=f"{path}-{name}")


@pytest.mark.parametrize(("path", "value"), list(cases()))
def test_a_value_is_accepted_or_refused_in_one_line_that_names_the_field(path, value):
    try:
        accepted = build(nested(path, value))
    except ConfigError as error:
        message = str(error)
        assert path.rpartition(".")[2] in message
        assert "\n" not in message
        assert len(message) < 600
        return
    assert with_vocabulary(dataclasses.replace(accepted), 300).model.vocab_size == 300
    if isinstance(value, float):
        assert math.isfinite(value)


@pytest.mark.parametrize("path", [path for path, each in SETTINGS.items() if typing.get_origin(each.hint) is Literal])
def test_a_wrong_word_is_answered_with_the_right_ones(path):
    with pytest.raises(ConfigError) as error:
        build(nested(path, "wrong"))
    choices = typing.get_args(SETTINGS[path].hint)
    assert [choice for choice in choices if choice not in str(error.value)] == []


def largest(setting):
    """The largest value in the range of a field."""
    if setting.range.at_most is not None:
        return setting.hint(setting.range.at_most)
    return setting.range.below * (1 - 1e-6)


BOUNDED = {path: each for path, each in SETTINGS.items() if each.hint in (int, float) and path != "data.min_score"}


@pytest.mark.parametrize("path", BOUNDED)
def test_the_largest_value_of_a_field_costs_no_memory_before_it_is_known_to_fit(path):
    try:
        accepted = build(nested(path, largest(BOUNDED[path])))
    except ConfigError:  # a rule between fields
        return
    if path.startswith("model.") and path != "model.num_layers":  # the depth alone takes seconds to trace
        abstract_state(accepted)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model.hidden_dim": 2**40}, ["hidden_dim = 1099511627776"]),
        ({"model.propagator.num_edges": (10**12, 0, 0)}, ["num_edges", "1000000000000"]),
        ({"model.propagator.num_edges": (2**22, 0, 0)}, ["num_edges = 4194304", "hidden_dim = 16"]),
        ({"model.hidden_dim": 16_384, "model.num_layers": 1024}, ["hidden_dim = 16384", "num_layers = 1024"]),
        ({"model.hidden_dim": 16_384, "model.vocab_size": 2**20}, ["hidden_dim = 16384", "vocab_size = 1048576"]),
        (
            {
                "model.encoder.transport": "causal_sinkhorn",
                "model.encoder.sdr_candidates": 16_384,
                "model.encoder.sinkhorn_max_iter": 10_000,
                "model.num_layers": 600,
                "model.hidden_dim": 1024,
                "model.mixer.state_dim": 512,
            },
            ["state_dim = 512", "sdr_candidates = 16384", "sinkhorn_max_iter = 10000"],
        ),
        (
            {"data.seq_length": 2**22, "model.max_seq_length": 2**22, "training.global_batch": 64},
            ["global_batch = 64", "seq_length = 4194304"],
        ),
        (
            {
                "data.seq_length": 2**20,
                "model.max_seq_length": 2**20,
                "model.hidden_dim": 1024,
                "training.global_batch": 32,
                "training.micro_batch": 32,
            },
            ["micro_batch = 32", "hidden_dim = 1024"],
        ),
        ({"sampling.context_length": 2 * 10**9}, ["context_length = 2000000000"]),
        ({"sampling.temperature": 1e-30}, ["sampling.temperature = 1e-30", "or 0"]),
        ({"training.ema_decay": 1 - 1e-9}, ["ema_decay = 0.999999999", "1.0 in float32"]),
        ({"training.ema_decay": 1.0}, ["ema_decay = 1.0"]),
        ({"model.born_floor": 1.0}, ["born_floor = 1.0"]),
        ({"model.propagator.cayley_dt": 0.0}, ["cayley_dt = 0.0"]),
    ],
)
def test_a_configuration_that_asks_for_too_much_or_for_nothing_is_refused(changes, parts):
    with pytest.raises(ConfigError) as error:
        build(override(fields(), changes))
    assert [part for part in parts if part not in str(error.value)] == []


def test_a_tokenizer_too_large_for_the_model_is_refused():
    wide = build(nested("model.hidden_dim", 8192))
    with pytest.raises(ConfigError, match=r"hidden_dim = 8192.*vocab_size = 1048576"):
        with_vocabulary(wide, 2**20)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__mixer__kind": "fixed"},
        {"model__mixer__state_dim": 64},
        {"model__vocab_size": 5000},
        {"model__mixer__conv_width": 64},
        {"model__encoder__sdr_candidates": 4096},
        {"model__propagator__num_edges": (200, 150, 9)},
    ],
    ids=lambda changes: next(iter(changes), "small"),
)
def test_the_count_of_weights_is_within_a_factor_of_two_of_the_models_own(changes):
    model = config(**{"model__vocab_size": 300} | changes).model
    ratio = count_weights(model) / count_parameters(abstract_model(model).params)
    assert 0.5 < ratio < 2
