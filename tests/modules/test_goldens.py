"""Values and gradients recorded from the PyTorch original, recomputed in double precision under reference semantics.

The recording is float32, so its rounding is what separates the two sides. All differences are relative to the largest
entry of the recorded array. Where the tolerances come from, with u = 6e-8 the unit roundoff of float32:

- The encoder exponentiates k = −C/ε, |k| up to 610, whose rounding 610·u = 4e-5 is the relative error of single
  entries of the plan; averaged over the columns and diluted by the bias it leaves 3e-6 of ψ. Everything downstream
  inherits that: VALUE. Logits are logarithms of amplitudes, the small ones of which are relatively less exact: LOGITS.
- A gradient doubles the length of the chain: GRADIENT.
- Parameters behind the plan get their gradient through exp(k) and the soft threshold T − τ, whose gaps are a few per
  cent of T and magnify its error: CODEBOOK. The cost's other parameters receive Σ_m g_m·(p − c_m), where p's share
  cancels, since a shift of a row of C changes no plan. They carry the rounding of a sum as large as the codebook's
  gradient, so they are compared on its scale: CANCELLED.
"""

from __future__ import annotations

import functools
import re

import golden_models as golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sem_jax.config import MixerConfig, OptimizerConfig
from sem_jax.core.complex_ops import abs_sq, rms_norm
from sem_jax.interop import export_state_dict, import_state_dict, names
from sem_jax.modules.block import Context
from sem_jax.modules.mixer import FixedSSM, MixerState
from sem_jax.modules.model import ModelParts, document_positions, split_model
from sem_jax.optim import langevin_adamw
from sem_jax.training.loss import reference_loss

# Self-loops added to every layer, as layers of unequal size need: they must change nothing and get no gradient.
EXTRA_EDGES = 3

VALUE, LOGITS, GRADIENT, CODEBOOK, CANCELLED = 5e-6, 2e-5, 3e-5, 5e-4, 2e-4

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

MODELS = ["model_tiny", pytest.param("model_wide", marks=pytest.mark.slow)]


def error(actual, recorded, scale=None) -> float:
    return float(np.max(np.abs(np.asarray(actual) - recorded)) / (np.max(np.abs(recorded)) if scale is None else scale))


def beyond(errors: dict[str, float], tolerance: float) -> dict[str, float]:
    return {name: e for name, e in errors.items() if not e <= tolerance}


def by_path(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def widened(tree):
    """The same numbers in double precision."""
    wide = {"f": np.float64, "c": np.complex128}
    return jax.tree.map(lambda x: jnp.asarray(x, wide.get(np.asarray(x).dtype.kind)), tree)


def imported(recorded, state) -> ModelParts:
    """The model of a state dict, padded."""
    parts = split_model(import_state_dict(state, **golden.overrides(recorded))[1])

    def pad(tree, group):
        longer = jax.tree.map(lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, EXTRA_EDGES)]), tree[group])
        return tree | {group: longer}

    params = parts.params | {"propagators": pad(parts.params["propagators"], "edge_weights")}
    buffers = parts.buffers | {"propagators": pad(parts.buffers["propagators"], "edges")}
    return ModelParts(parts.graphdef, widened(params), widened(buffers))


class Recorded:
    """One recorded model, ready to be run."""

    def __init__(self, name: str):
        self.arrays = golden.load(name)
        self.state, self.gradient, self.outputs = (golden.group(self.arrays, kind) for kind in ("param", "grad", "out"))
        self.num_layers = golden.settings(self.arrays)["num_layers"]
        self.tokens = jnp.asarray(self.arrays["in/token_ids"])
        freqs = self.arrays.get("in/token_freqs")
        self.token_freqs = None if freqs is None else jnp.asarray(freqs, np.float64)
        self.parts = imported(self.arrays, self.state)


@functools.cache
def recorded_model(name: str) -> Recorded:
    return Recorded(name)


def layer(stacked, index: int):
    graphdef, variables = nnx.split(stacked)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[index], variables))


def intermediate_values(parts: ModelParts, tokens, token_freqs, num_layers: int) -> dict[str, jax.Array]:
    """Everything that was recorded on the way, one module after the other."""
    model = parts.merge()
    state = model.initial_state(tokens.shape[0])
    context = Context(document_positions(state.position, tokens.shape[1], None))
    x, _ = model.encoder(tokens, state.encoder, context, token_freqs)
    values = {"encoder": x}
    first = layer(model.mixers, 0)
    values["mamba0.norm"] = first.norm(x)
    values["mamba0.spinor_gate"] = first.spinor_gate(values["mamba0.norm"])
    for i in range(num_layers):
        past = MixerState(*(memory[i] for memory in state.blocks["mixers"]))
        x, _, _ = layer(model.mixers, i)(x, past, context)
        values[f"mamba{i}"] = x
    for i in range(num_layers):
        propagator = layer(model.propagators, i)
        values[f"hamiltonian{i}.dense"] = propagator.hamiltonian().matrix
        x, _, _ = propagator(x, (), context)
        values[f"propagator{i}"] = x
    values["final_norm"] = rms_norm(x, model.final_gamma[...])
    values["logits"], values["amp_sq"] = model.readout.reference_logits(values["final_norm"])
    return values


@functools.cache
def loss_and_gradient(name: str):
    """The compiled function from parameters to ((loss, ψ), gradient), by the entry that everybody uses."""
    recorded = recorded_model(name)
    unitary_lambda = golden.settings(recorded.arrays)["unitary_lambda"]

    def mean_loss(params):
        model = recorded.parts.replace(params=params).merge()
        psi, _, _ = model(recorded.tokens, token_freqs=recorded.token_freqs)
        loss, _ = reference_loss(model, psi[:, :-1], recorded.tokens[:, 1:], unitary_lambda)
        return jnp.mean(loss), psi  # every position that has a successor

    return jax.jit(jax.value_and_grad(mean_loss, has_aux=True))


@functools.cache
def whole_model(name: str):
    """((loss, ψ), gradient) of the recorded model."""
    return loss_and_gradient(name)(recorded_model(name).parts.params)


@pytest.mark.parametrize("name", MODELS)
def test_every_intermediate_value_is_the_recorded_one(name):
    recorded = recorded_model(name)
    run = jax.jit(intermediate_values, static_argnums=3)
    values = run(recorded.parts, recorded.tokens, recorded.token_freqs, recorded.num_layers)
    errors = {key: error(value, recorded.outputs[key]) for key, value in values.items()}
    assert not beyond({key: e for key, e in errors.items() if key != "logits"}, VALUE)
    assert errors["logits"] < LOGITS


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_model_has_the_recorded_loss(name):
    (loss, psi), _ = whole_model(name)
    assert error(psi, recorded_model(name).outputs["final_norm"]) < VALUE
    assert error(loss, recorded_model(name).outputs["loss"]) < 1e-6


def in_every_layer(key: str) -> str:
    return re.sub(r"\.\d+\.", ".", key, count=1)


@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_is_the_recorded_one(name):
    recorded, (_, gradient) = recorded_model(name), whole_model(name)
    # jax.grad is ∂/∂Re − i ∂/∂Im; the recorded pair is put together with +i.
    actual = export_state_dict(recorded.parts.replace(params=jax.tree.map(jnp.conj, gradient)))
    # A scalar's gradient is a sum that may cancel in one layer, so the layers share one scale.
    largest: dict[str, float] = {}
    for key, g in recorded.gradient.items():
        largest[in_every_layer(key)] = max(largest.get(in_every_layer(key), 0), np.max(np.abs(g)))
    errors = {key: error(actual[key], g, largest[in_every_layer(key)]) for key, g in recorded.gradient.items()}
    cost = {"encoder.embedding.weight", "encoder.cost.input_proj.weight", "encoder.cost.input_proj.bias"}
    behind_the_plan = {key for key in errors if key.startswith("encoder") and "bias" not in key} - cost
    scale = np.max(np.abs(recorded.gradient["encoder.cost.codebook"]))
    assert not beyond({key: e for key, e in errors.items() if key not in behind_the_plan | cost}, GRADIENT)
    assert not beyond({key: errors[key] for key in behind_the_plan}, CODEBOOK)
    assert not beyond({key: error(actual[key], recorded.gradient[key], scale) for key in cost}, CANCELLED)
    # The loss sees amplitudes only: a bias on the logits had no gradient in the original.
    assert export_state_dict(gradient).keys() - recorded.gradient.keys() == {"sampler.output_bias"}
    assert not np.any(actual["sampler.output_bias"])
    for edge_weights in jax.tree.leaves(gradient["propagators"]["edge_weights"]):
        assert not np.any(edge_weights[:, -EXTRA_EDGES:])


# The original left the two matrices of its readout uncoupled, each with a second moment of its own.
UNCOUPLED = {"sampler.proj_real.weight", "sampler.proj_imag.weight"}


@pytest.mark.parametrize("name", MODELS)
def test_five_optimizer_steps_lead_to_the_recorded_parameters(name):
    recorded = recorded_model(name)
    start = recorded.parts.params
    # The import is linear, so the gradient takes the way of the weights; that of the bias is missing, and it stays put.
    gradient = imported(recorded.arrays, recorded.state | recorded.gradient).params
    moving, gradient = ({**tree, "readout": {"weight": tree["readout"]["weight"]}} for tree in (start, gradient))
    config = OptimizerConfig(weight_decay=0.1, decay_all=True, clip_norm=0.0)
    optimizer = langevin_adamw(config, optax.constant_schedule(1.2e-3), seed=0)
    update, state = jax.jit(optimizer.update), optimizer.init(moving)
    for step in range(5):
        factor = (1 + step / 2) * (-1 if step == 3 else 1)
        updates, state = update(jax.tree.map(lambda g, f=factor: f * jnp.conj(g), gradient), state, moving, step=step)
        moving = optax.apply_updates(moving, updates)
    params = {**moving, "readout": {**start["readout"], **moving["readout"]}}
    found, expected = export_state_dict(recorded.parts.replace(params=params)), golden.group(recorded.arrays, "adam5")
    assert expected.keys() == export_state_dict(params).keys()
    # A few float32 roundings of a parameter, and of five updates whose sum is at most 6e-3.
    for key in expected.keys() - UNCOUPLED:
        np.testing.assert_allclose(found[key], expected[key], rtol=5e-7, atol=5e-8, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_the_recorded_parameters_after_five_steps_have_the_recorded_loss(name):
    recorded = recorded_model(name)
    moved = imported(recorded.arrays, recorded.state | golden.group(recorded.arrays, "adam5"))
    (loss, _), _ = loss_and_gradient(name)(moved.params)
    assert error(loss, recorded.outputs["adam5_loss"]) < 1e-6


def ssm_tree(state: dict[str, np.ndarray]) -> dict:
    """The parameters of one state space."""
    tree: dict = {}
    for entry in names.SSM:
        group = functools.reduce(lambda branch, key: branch.setdefault(key, {}), entry.path[:-1], tree)
        group[entry.path[-1]] = entry.layout.join(*(state[key] for key in entry.names))
    return widened(tree)


@functools.cache
def clamped_state_space():
    """(y, gradients of Σ|y|² in the parameters and x) of the recorded state space."""
    recorded = golden.load("ssm_clamp")
    groups, states = recorded["param/log_A_mag"].shape
    batch, length, _, width = recorded["in/x"].shape
    config = MixerConfig(num_groups=groups, state_dim=states, clamp_interval=256)
    graphdef = nnx.split(FixedSSM(groups * width, config, nnx.Rngs(0)))[0]
    params = ssm_tree(golden.group(recorded, "param"))
    x = widened(recorded["in/x"])

    def loss(params, x):
        h0 = jnp.zeros((batch, groups, states), x.dtype)
        position = jnp.arange(length)[None]
        y, _ = nnx.merge(graphdef, params)(x.reshape(batch, length, -1), h0, position)
        y = y.reshape(x.shape)
        return jnp.sum(abs_sq(y)), y

    gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)
    return y, gradients, recorded


# Sums of 520 terms in float32, errors of random sign: sqrt(520)·u = 1.4e-6, times two for the gradient's second pass.
def test_the_clamped_state_space_has_the_recorded_values():
    y, _, recorded = clamped_state_space()
    assert error(y, recorded["out/y"]) < 5e-6


def test_the_clamped_state_space_has_the_recorded_gradients():
    _, (params_gradient, x_gradient), recorded = clamped_state_space()
    expected = by_path(ssm_tree(golden.group(recorded, "grad")))
    actual = by_path(params_gradient)
    assert actual.keys() == expected.keys()
    assert not beyond({key: error(actual[key].conj(), g) for key, g in expected.items()}, 1e-5)
    assert error(x_gradient.conj(), recorded["grad/x"]) < 1e-5
