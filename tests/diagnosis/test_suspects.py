"""Faults planted into a small model: the diagnosis puts the right component and field first."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import copied, text_config

from sem_jax.config import PropagatorConfig
from sem_jax.data import open_dataset
from sem_jax.diagnosis.run import diagnose, diagnose_run
from sem_jax.diagnosis.suspects import find_suspects
from sem_jax.diagnosis.table import format_diagnosis
from sem_jax.modules.block import Block
from sem_jax.modules.blocks import BLOCKS
from sem_jax.modules.probe import unobserved
from sem_jax.training.health import Finding, propagator_findings
from sem_jax.training.state import init_state
from sem_jax.training.workdir import create_workdir

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """(configuration, state, batch, dataset) of a fresh model."""
    return fresh(tmp_path_factory)


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """The same with spinor gates."""
    return fresh(tmp_path_factory, model__mixer__input_map="spinor_gate")


def fresh(tmp_path_factory, **changes):
    config = text_config(tmp_path_factory.mktemp("text"), model__num_layers=2, model__vocab_size=0, **changes)
    dataset = open_dataset(config.data, 0, config.training.global_batch)
    model = dataclasses.replace(config.model, vocab_size=dataset.tokenizer.vocab_size)
    config = dataclasses.replace(config, model=model)
    return config, init_state(config), dataset.train.batch(0), dataset


def suspects(healthy, change=lambda params: None, **optimizer):
    """The suspects of a model whose parameters `change` has spoiled."""
    config, state, batch, _ = healthy
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **optimizer))
    params = copied(state.params)
    change(params)
    return diagnose(config, state.replace(params=params), batch).suspects


def setting(*keys, value):
    """Replaces the leaf at `keys` by value(leaf)."""

    def change(params):
        group = functools.reduce(lambda tree, key: tree[key], keys[:-1], params)
        group[keys[-1]] = value(group[keys[-1]])

    return change


def test_a_healthy_model_has_no_suspects(healthy):
    assert suspects(healthy) == []


@pytest.mark.parametrize(
    ("keys", "index", "component"),
    [
        (("mixers", "conv", "kernel"), (1, 0, 3, 0, 0), "mixers.1.conv"),
        (("mixers", "ssm", "decay"), (0, 1), "mixers.0.ssm"),
        (("propagators", "alpha"), (1, 4), "propagators.1.kerr"),
        (("encoder", "sdr_to_hidden", "bias"), (2,), "encoder.wave"),
        (("readout", "bias"), (0,), "head.readout"),
    ],
)
def test_one_nan_is_traced_to_its_component(healthy, keys, index, component):
    first, *others = suspects(healthy, setting(*keys, value=lambda leaf: leaf.at[index].set(jnp.nan)))
    assert (first.component, first.field) == (component, "optimizer.learning_rate")
    assert "1 of its parameters are not finite, nor is its output from [" in first.message
    assert [f for f in others if f.severity == math.inf] == []  # what inherits it is not blamed


def test_edge_weights_that_have_outgrown_the_time_step(healthy):
    def change(params):
        weights = params["propagators"]["edge_weights"]
        for scale in weights:
            weights[scale] = weights[scale].at[1].set(200.0)

    found = suspects(healthy, change)
    assert found[0].component == "propagators.1.cayley"
    assert {f.field for f in found} == {"model.propagator.cayley_dt"}
    assert {f.component for f in found} == {"propagators.1.cayley"}
    (h_lambda,) = [f.value for f in found if f.quantity == "hλ"]
    # Between the largest weighted degree and its double; the mean degree of the three graphs is (3 + 6 + 12)/3.
    assert 0.05 * 200 * 7 < h_lambda < 0.05 * 200 * 2 * 15


@pytest.mark.parametrize(
    ("change", "component", "field"),
    [
        (
            setting("mixers", "out_proj", value=lambda w: w.at[1].multiply(1e4)),
            "mixers.1.out_proj",
            "optimizer.weight_decay",
        ),
        (
            setting("mixers", "in_proj", "weight", value=lambda w: w.at[0].multiply(1e-7)),
            "mixers.0.in_proj",
            "optimizer.weight_decay",
        ),
        (
            setting("propagators", "alpha", value=lambda alpha: alpha.at[0].set(100.0)),
            "propagators.0.kerr",
            "model.propagator.nonlinear_alpha",
        ),
        (
            setting("encoder", "codebook", value=lambda c: 1e3 * c),  # the shortest vector of all is always the nearest
            "encoder.plan",
            "model.encoder.transport",
        ),
        (
            setting("encoder", "input_proj", "weight", value=lambda w: 1e3 * w),
            "encoder.plan",
            "model.encoder.sinkhorn_epsilon",
        ),
        (
            setting("encoder", "codebook", value=jnp.zeros_like),
            "encoder.sdr",
            "model.encoder.sinkhorn_epsilon",
        ),
    ],
    ids=["scale", "input", "kerr", "columns", "rows", "flat"],
)
def test_a_planted_fault_comes_first(healthy, change, component, field):
    first = suspects(healthy, change)[0]
    assert (first.component, first.field) == (component, field)
    assert f"config.{field}" in first.message


def test_a_gate_that_is_stuck_comes_first(gated):
    assert suspects(gated) == []
    stuck = setting("mixers", "spinor_gate", "gate_proj", "bias", value=lambda b: b.at[0].set(50.0))
    first = suspects(gated, stuck)[0]
    assert (first.component, first.quantity) == ("mixers.0.spinor_gate", "saturation")
    assert first.field == "optimizer.weight_decay"
    assert f"config.{first.field}" in first.message


def test_a_residual_inherits_growth_and_nothing_else(healthy):
    def change(params):
        setting("mixers", "out_proj", value=lambda w: w.at[1].multiply(1e4))(params)
        setting("mixers", "residual_scale", value=lambda s: s.at[1].set(jnp.nan))(params)

    found = suspects(healthy, change)
    assert found[0].component == "mixers.1.residual"
    assert found[0].severity == math.inf
    assert "mixers.1.out_proj" in {f.component for f in found}


@pytest.mark.parametrize("size", [1e8, 1e20, 1e30])
def test_edge_weights_that_have_exploded_are_a_finding_and_no_crash(healthy, size):
    def change(params):
        weights = params["propagators"]["edge_weights"]
        for scale in weights:
            weights[scale] = weights[scale].at[0].set(size)

    first = suspects(healthy, change)[0]
    assert first.component == "propagators.0.cayley"


@pytest.mark.parametrize(
    ("change", "component", "quantity"),
    [
        (setting("readout", "bias", value=lambda b: b.at[:-1].set(1e4)), "head.readout", "loss"),
        (setting("final_gamma", value=lambda g: 1e4 * g), "head.final_norm", "size"),
        (setting("encoder", "sdr_to_hidden", "bias", value=lambda b: b + 1e6), "encoder.wave", "size"),
        (setting("mixers", "ssm", "decay", value=lambda a: a.at[1].set(1e4)), "mixers.1.ssm", "memory"),
    ],
    ids=["loss", "final norm", "encoder", "memory"],
)
def test_a_model_that_is_finite_and_broken_has_suspects(healthy, change, component, quantity):
    assert (component, quantity) in [(finding.component, finding.quantity) for finding in suspects(healthy, change)]


def test_an_overflow_is_blamed_on_the_part_that_grew_and_not_on_the_one_that_squared(healthy):
    first = suspects(healthy, setting("encoder", "sdr_to_hidden", "bias", value=lambda b: b + 1e20))[0]
    assert (first.component, first.severity) == ("encoder.wave", math.inf)
    assert "its output reaches 1.0e+20, which overflows later on; " in first.message


@pytest.mark.parametrize("where", ["buffers", "ema", "opt_state"])
def test_what_is_not_finite_outside_the_parameters_is_named(healthy, where):
    config, state, batch, _ = healthy
    state = state.replace(ema=copied(state.params))
    leaves, structure = jax.tree.flatten(getattr(state, where))
    index = next(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size > 1)
    leaves[index] = leaves[index].at[(0,) * leaves[index].ndim].set(jnp.nan)
    state = state.replace(**{where: jax.tree.unflatten(structure, leaves)})
    first = diagnose(config, state, batch).suspects[0]
    assert first.component.startswith(where)
    assert first.severity == math.inf
    assert "go back to an earlier checkpoint" in first.message


@pytest.mark.slow
def test_a_state_beyond_the_clamp_is_found_though_its_output_is_not(healthy):
    config, _, batch, _ = healthy
    model = dataclasses.replace(config.model, mixer=dataclasses.replace(config.model.mixer, kind="fixed"))
    config = dataclasses.replace(config, model=model)
    state = init_state(config)
    ssm = state.params["mixers"]["ssm"]
    ssm["in_proj"] = ssm["in_proj"].at[1].multiply(1e4)
    ssm["out_proj"] = ssm["out_proj"].at[1].multiply(1e-4)
    first = diagnose(config, state, batch).suspects[0]
    assert (first.component, first.field) == ("mixers.1.ssm", "model.mixer.clamp_interval")


@pytest.mark.parametrize("normed", [False, True])
def test_a_selective_state_beyond_the_limit_is_found_where_its_output_is_not_divided_by_its_size(healthy, normed):
    def change(params):
        ssm = params["mixers"]["ssm"]
        ssm["qk_bias"] = ssm["qk_bias"].at[1].set(1e4)

    config, state, *data = healthy
    mixer = dataclasses.replace(config.model.mixer, output_norm=normed)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, mixer=mixer))
    found = suspects((config, state, *data), change)
    states = [finding for finding in found if finding.quantity == "state"]
    expected = [] if normed else [("mixers.1.ssm", "optimizer.weight_decay")]
    assert [(finding.component, finding.field) for finding in states] == expected
    assert any(finding.component == "mixers.1.ssm" for finding in found if finding.quantity == "gain") != normed


def test_noise_above_the_update(healthy):
    (only,) = suspects(healthy, temperature=10.0, noise_cap=50.0)
    assert only.field == "optimizer.temperature"
    # Adam's first step is η in every entry; the noise is capped at 50η in every real component.
    assert 50 * 0.9 < only.value < 50 * math.sqrt(2) * 1.1


def test_every_component_reads_what_came_before(healthy):
    config, state, batch, _ = healthy
    components = {c.name: c for c in diagnose(config, state, batch).components}
    sources = {name: c.source for name, c in components.items()}
    assert list(components)[:5] == ["encoder.embedding", "encoder.plan", "encoder.sdr", "encoder.wave", "mixers.0.norm"]
    assert sources["mixers.0.residual"] == "encoder.wave"
    assert sources["mixers.1.norm"] == sources["mixers.1.residual"] == "mixers.0.residual"
    assert sources["propagators.0.kerr"] == "mixers.1.residual"
    assert sources["head.final_norm"] == "propagators.1.cayley"
    for name in ("propagators.0.kerr", "propagators.1.cayley"):  # unitary: neither moves power between tokens
        assert components[name].gain == pytest.approx(1, rel=1e-5)
    assert components["propagators.0.kerr"].entropy_transfer == pytest.approx(0, abs=1e-5)  # phases only
    assert components["mixers.0.norm"].output["rms"] == pytest.approx(1, rel=1e-5)
    assert [name for name, c in components.items() if c.parameter_gradient_norm == 0] == ["encoder.sdr"]


def diagnosis_of(healthy, **changes):
    """(configuration, diagnosis) of a fresh model of another form, small to compile, on the same batch."""
    config, _, batch, _ = healthy
    changes["encoder"] = dataclasses.replace(config.model.encoder, transport="none")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    return config, diagnose(config, init_state(config), batch)


def test_a_kerr_phase_without_bound_is_told_to_saturate(healthy):
    propagator = dataclasses.replace(healthy[0].model.propagator, kerr_saturation=0.0, nonlinear_alpha=1000.0)
    _, found = diagnosis_of(healthy, propagator=propagator)
    causes = [(finding.component, finding.field) for finding in found.suspects]
    assert ("propagators.0.kerr", "model.propagator.kerr_saturation") in causes


@pytest.mark.slow
def test_interleaved_layers_are_told_in_the_order_of_the_pass(healthy):
    _, found = diagnosis_of(healthy, layout="interleaved")
    components = {c.name: c for c in found.components}
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in components))
    assert modules == ["encoder", "mixers.0", "propagators.0", "mixers.1", "propagators.1", "head"]
    sources = {name: c.source for name, c in components.items()}
    assert sources["propagators.0.kerr"] == "mixers.0.residual"
    assert sources["mixers.1.norm"] == sources["mixers.1.residual"] == "propagators.0.cayley"
    assert sources["head.final_norm"] == "propagators.1.cayley"
    for name in ("propagators.0.kerr", "propagators.1.cayley"):  # a wrong source would have another power
        assert components[name].gain == pytest.approx(1, rel=1e-5)
    assert (len(found.mixers), len(found.propagators)) == (2, 2)
    assert found.suspects == []


@pytest.mark.slow
def test_a_model_without_propagators_is_diagnosed(healthy):
    config, found = diagnosis_of(healthy, blocks="mixers")
    components = {c.name: c for c in found.components}
    assert components["head.final_norm"].source == "mixers.1.residual"
    assert (len(found.mixers), found.propagators, found.suspects) == (2, [], [])
    assert "residual  iterations" not in format_diagnosis(found)
    state = init_state(config)
    params = copied(state.params)
    setting("mixers", "ssm", "decay", value=lambda leaf: leaf.at[1, 1].set(jnp.nan))(params)
    assert diagnose(config, state.replace(params=params), healthy[2]).suspects[0].component == "mixers.1.ssm"


class Plain(Block):
    """Names no part of itself, for it does not have to."""

    def __init__(self, config, rngs, layer):
        del rngs, layer
        self.gain = nnx.Param(jnp.ones(config.hidden_dim), decay=False)

    def __call__(self, x, state, context, probe=unobserved, prepared=None):
        return self.gain[...] * x, state, ()


def test_a_block_that_shows_nothing_takes_part_without_being_told(healthy, monkeypatch):
    monkeypatch.setitem(BLOCKS, "plain", Plain)
    _, found = diagnosis_of(healthy, blocks="plain")
    assert {c.name.split(".")[0] for c in found.components} == {"encoder", "head"}
    assert (found.mixers, found.propagators, found.suspects) == ([], [], [])


def test_a_gradient_that_breaks_on_the_way_back_is_blamed_where_it_breaks(healthy):
    config, state, batch, _ = healthy
    found = diagnose(config, state, batch)
    names = [c.name for c in found.components]
    broken = names.index("mixers.1.conv")
    components = [dataclasses.replace(c, gradient_bad=int(i < broken)) for i, c in enumerate(found.components)]
    (only,) = find_suspects(config, dataclasses.replace(found, components=components))
    assert (only.component, only.quantity) == ("mixers.1.conv", "gradient")


def test_severity_counts_decades_on_either_side():
    def severity(value, limit):
        return Finding("", "", value, limit, "", "").severity

    assert severity(1e3, 10.0) == pytest.approx(2)
    assert severity(1e-5, 1e-3) == pytest.approx(2)
    assert severity(math.nan, 1.0) == math.inf


def test_a_starved_solver_is_given_iterations_and_a_hopeless_one_a_shorter_step():
    solver = PropagatorConfig(solver="cg")
    (starved,) = propagator_findings(3, 1e-3, 8, 1e-6, 2.0, solver)
    assert (starved.component, starved.field) == ("propagators.3.cayley", "model.propagator.cg_max_iter")
    hopeless = propagator_findings(3, 1e-1, 8, 1e-2, 40.0, solver)
    assert [f.quantity for f in hopeless] == ["residual", "norm drift", "hλ"]
    assert {f.field for f in hopeless} == {"model.propagator.cayley_dt"}


def test_a_workdir_is_diagnosed_on_the_batch_that_comes_next(healthy, tmp_path):
    config, state, batch, dataset = healthy
    create_workdir(tmp_path / "run", config, dataset.tokenizer, state)
    found = diagnose_run(tmp_path / "run")
    expected = diagnose(config, state, batch)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (found.step, found.tokens) == (0, batch.weights.size)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["components"][0]["input"]["rms"] is None  # token ids have none
    assert record["components"][3]["output"]["rms"] == pytest.approx(found.components[3].output["rms"])
    text = format_diagnosis(found)
    assert text.endswith("no suspects")
    assert [c.name for c in found.components if f"\n{c.name} " not in text] == []


def test_a_wave_is_described_as_it_is(healthy):
    """The wave of the first token of each document is the real vector that the encoder made of it."""
    config, state, batch, _ = healthy
    found = {c.name: c for c in diagnose(config, state, batch).components}
    rows = np.asarray(state.params["encoder"]["embedding"])[batch.tokens[:, :-1]]
    output = found["encoder.embedding"].output
    assert output["rms"] == pytest.approx(np.sqrt(np.mean(rows**2)), rel=1e-5)
    assert output["largest"] == pytest.approx(np.abs(rows).max(), rel=1e-6)
    power = rows**2 / np.sum(rows**2, axis=-1, keepdims=True)
    assert output["entropy"] == pytest.approx(np.mean(-np.sum(power * np.log2(power), axis=-1)), rel=1e-4)
    assert jax.tree.all(jax.tree.map(np.isfinite, found["head.final_norm"].output))
