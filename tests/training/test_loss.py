"""The divergence from a teacher: its value, its gradient, what it leaves out and how little memory it takes."""

from __future__ import annotations

import functools
import math

import golden_models as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import array_sizes, config

from sem_jax.interop import import_state_dict
from sem_jax.modules.model import ModelParts, init_model, split_model
from sem_jax.training.loss import batch_loss, mean_divergence, softened_divergence

VOCAB, BATCH, LENGTH = 11, 2, 5
LIKELIHOODS = ["born", "reference"]

x64 = pytest.mark.usefixtures("x64")
pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def fresh_model(likelihood, seed):
    """The parts of a model on the host, in single precision."""
    with jax.enable_x64(False):
        parts = init_model(config(model__vocab_size=VOCAB, model__likelihood=likelihood).model, seed)
    return parts.replace(params=jax.device_get(parts.params), buffers=jax.device_get(parts.buffers))


def random_model(likelihood, seed):
    """A model whose bias is not at its start, and a wave for each position, in the precision of the test."""
    parts = fresh_model(likelihood, seed)
    rng = np.random.default_rng(seed)
    dim = parts.params["final_gamma"].size
    psi = rng.normal(size=(BATCH, LENGTH, dim)) + 1j * rng.normal(size=(BATCH, LENGTH, dim))
    readout = {**parts.params["readout"], "bias": rng.normal(size=VOCAB)}
    trees = {**parts.params, "readout": readout}, parts.buffers, psi
    params, buffers, psi = jax.tree.map(in_default_precision, trees)
    return parts.replace(params=params, buffers=buffers), psi


def in_default_precision(x):
    """Floating point numbers in double precision under x64, and in single precision otherwise."""
    x = np.asarray(x)
    wide = np.result_type(x.dtype, np.float64) if x.dtype.kind in "fc" else x.dtype
    return jnp.asarray(x, jax.dtypes.canonicalize_dtype(wide))


def softened(readout, psi, likelihood, temperature):
    """P^{1/T}, normalised, over the whole vocabulary, in native complex arithmetic."""
    amplitude_sq = jnp.abs(jnp.einsum("bsd,vd->bsv", psi, readout["weight"])) ** 2
    if likelihood == "reference":
        p = (amplitude_sq + 1e-6 * amplitude_sq.mean(-1, keepdims=True) + 1e-30) * jnp.exp(readout["bias"])
    else:
        p = amplitude_sq * jnp.exp(readout["bias"])
        p = p / p.sum(-1, keepdims=True) + 1e-6 / p.shape[-1]
    p = p ** (1 / temperature)
    return p / p.sum(-1, keepdims=True)


def definition(student, teacher, likelihood, temperature):
    """T²·KL(teacher_T ‖ student_T) of (readout, ψ) and (readout, ψ)."""
    p, q = softened(*teacher, likelihood, temperature), softened(*student, likelihood, temperature)
    return temperature**2 * jnp.sum(p * jnp.log(p / q), axis=-1)


def ours(parts, teacher_parts, temperature, chunk=None):
    """`softened_divergence` as a function of (readout, ψ) and (readout, ψ)."""

    def divergence(student, teacher):
        models = (
            p.replace(params={**p.params, "readout": readout}).merge()
            for p, readout in ((parts, student[0]), (teacher_parts, teacher[0]))
        )
        return softened_divergence(next(models), student[1], next(models), teacher[1], temperature, chunk)

    return divergence


def weighted(divergence):
    """Its sum under weights of every size."""
    weights = jnp.linspace(0, 1, BATCH * LENGTH).reshape(BATCH, LENGTH)
    return lambda *args: jnp.sum(weights * divergence(*args))


def problem(likelihood):
    (parts, psi), (teacher_parts, teacher_psi) = (random_model(likelihood, seed) for seed in (0, 1))
    return parts, teacher_parts, (parts.params["readout"], psi), (teacher_parts.params["readout"], teacher_psi)


@pytest.mark.parametrize(
    ("likelihood", "chunk"), [("born", None), ("born", 1), ("born", 3), ("born", 64), ("reference", None)]
)
@x64
def test_value_and_gradient_are_those_over_the_whole_vocabulary_whatever_the_chunk(likelihood, chunk):
    parts, teacher_parts, student, teacher = problem(likelihood)
    divergence = ours(parts, teacher_parts, 1.5, chunk)
    expected = definition(student, teacher, likelihood, 1.5)
    assert expected.min() > 0.1
    # Logarithms of numbers down to 1e-4, each exact to 1e-15 and weighed by a probability.
    np.testing.assert_allclose(jax.jit(divergence)(student, teacher), expected, rtol=1e-13)
    gradient = jax.jit(jax.grad(weighted(divergence)))(student, teacher)
    exact = jax.jit(jax.grad(weighted(lambda s, t: definition(s, t, likelihood, 1.5))))(student, teacher)
    for a, e in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        # 1/share, at most 1e4 here, magnifies the rounding of a share.
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 * np.abs(e).max())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_single_precision_agrees_with_double_precision(likelihood):
    parts, teacher_parts, student, teacher = problem(likelihood)
    gradient = jax.jit(jax.value_and_grad(weighted(ours(parts, teacher_parts, 1.5))))
    actual = jax.device_get(gradient(student, teacher))
    with jax.enable_x64(True):
        exact = jax.jit(jax.value_and_grad(weighted(lambda s, t: definition(s, t, likelihood, 1.5))))
        expected = jax.device_get(exact(*jax.tree.map(in_default_precision, (student, teacher))))
    # Amplitudes are sums of D = 16 products, rounded to sqrt(16)·6e-8 of their size.
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * np.abs(e).max())


@x64
def test_a_high_temperature_compares_centred_logits():
    # Hinton et al. (2015), equation 4: T²·KL → Σ_v (Δlogit_v − mean)²/2V, here up to terms of order max|logit|/T.
    parts, teacher_parts, student, teacher = problem("born")
    value = jax.jit(ours(parts, teacher_parts, 1e4))(student, teacher)
    logits = [np.log(softened(*side, "born", 1.0)) for side in (student, teacher)]
    difference = logits[0] - logits[1]
    np.testing.assert_allclose(value, difference.var(-1) / 2, rtol=3e-3)


def test_the_same_model_diverges_by_nothing_and_pulls_nowhere():
    parts, psi = random_model("born", 0)
    side = (parts.params["readout"], psi)
    divergence = ours(parts, parts, 1.5)
    # T²·Σp·(log p − log p), |log p| < 20.
    np.testing.assert_allclose(jax.jit(divergence)(side, side), 0, atol=5e-6)
    gradient = jax.jit(jax.grad(weighted(divergence)))(side, side)
    away = jax.jit(jax.grad(weighted(divergence)))(side, (side[0], psi[::-1]))
    for still, pulled in zip(jax.tree.leaves(gradient), jax.tree.leaves(away), strict=True):
        assert np.abs(still).max() < 1e-5 * np.abs(pulled).max()


def batch():
    """Inputs, targets, resets and weights, the end of the second sequence being padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (BATCH, LENGTH + 1)).astype(np.int32)
    weights = np.array([[1, 0.25, 1, 0.5, 1], [1, 1, 0, 0, 0]], np.float32)
    return tokens[:, :-1], tokens[:, 1:], np.zeros((BATCH, LENGTH), bool), weights


def divergence_of(parts, teacher_parts):
    def total(params, teacher_params, *arrays):
        model, teacher = parts.replace(params=params).merge(), teacher_parts.replace(params=teacher_params).merge()
        return batch_loss(model, *arrays, 0.1, teacher, 2.0)[0].divergence

    return total


def test_a_batch_counts_by_weight_and_not_at_all_where_it_is_padding():
    parts, teacher_parts = random_model("born", 0)[0], random_model("born", 1)[0]
    inputs, targets, resets, weights = batch()
    run = jax.jit(divergence_of(parts, teacher_parts))
    actual = run(parts.params, teacher_parts.params, inputs, targets, resets, weights)
    student, teacher = (
        (p.params["readout"], jax.jit(lambda p: p.merge()(inputs)[0])(p)) for p in (parts, teacher_parts)
    )
    expected = np.sum(weights * definition(student, teacher, "born", 2.0))
    # Amplitudes are exact to 3e-7, and so is each divergence, which is of order 1.
    np.testing.assert_allclose(actual, expected, rtol=5e-6)
    inputs[1, 2:] = (inputs[1, 2:] + 1) % VOCAB
    assert run(parts.params, teacher_parts.params, inputs, targets, resets, weights) == actual
    inputs[1, 1] = (inputs[1, 1] + 1) % VOCAB
    assert run(parts.params, teacher_parts.params, inputs, targets, resets, weights) != actual


def test_the_teacher_gets_no_gradient():
    parts, teacher_parts = random_model("born", 0)[0], random_model("born", 1)[0]
    total = jax.jit(jax.grad(divergence_of(parts, teacher_parts), argnums=(0, 1)))
    student, teacher = total(parts.params, teacher_parts.params, *batch())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(teacher))
    assert all(np.any(student["readout"][name]) for name in ("weight", "bias"))
    assert np.any(student["encoder"]["embedding"])


def both_directions(chunk, vocab, shape):
    """The program of value and gradient for ψ of shape [B, S, D], and its abstract arguments."""
    parts = fresh_model("born", 0)
    dim = parts.params["final_gamma"].size
    readout = {
        "weight": jax.ShapeDtypeStruct((vocab, dim), jnp.complex64),
        "bias": jax.ShapeDtypeStruct((vocab,), jnp.float32),
    }
    side = (readout, jax.ShapeDtypeStruct((*shape, dim), jnp.complex64))
    return jax.value_and_grad(lambda s, t: jnp.sum(ours(parts, parts, 1.5, chunk)(s, t))), (side, side)


def test_no_array_over_positions_and_vocabulary_exists_in_either_direction():
    vocab, shape = 64, (4, 24)  # more positions than D, so that the readout's own arrays are smaller
    for chunk, exists in [(None, False), (16, False), (96, True)]:
        function, arguments = both_directions(chunk, vocab, shape)
        largest = max(array_sizes(jax.make_jaxpr(function)(*arguments)))
        assert (largest >= math.prod(shape) * vocab) is exists


def test_the_compiled_program_needs_less_memory_than_one_such_array():
    vocab, shape = 4096, (8, 256)
    function, arguments = both_directions(16, vocab, shape)
    needed = jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    assert needed < math.prod(shape) * vocab * 4 / 2


def recorded(name, group):
    """A recorded model in double precision: its parts, and the file's arrays."""
    arrays = golden.load(name)
    state = golden.group(arrays, "param") | golden.group(arrays, group)
    parts = split_model(import_state_dict(state, **golden.overrides(arrays))[1])
    return ModelParts(parts.graphdef, *jax.tree.map(in_default_precision, (parts.params, parts.buffers))), arrays


@pytest.mark.parametrize("name", ["model_tiny", "model_wide"])
@x64
def test_the_divergence_after_five_steps_is_the_recorded_one(name):
    (teacher_parts, arrays), (parts, _) = recorded(name, "param"), recorded(name, "adam5")
    tokens, freqs = arrays["in/token_ids"], arrays.get("in/token_freqs")

    def soft_loss(parts, teacher_parts):
        model, teacher = parts.merge(), teacher_parts.merge()
        psi, teacher_psi = (m(tokens, token_freqs=freqs)[0][:, :-1] for m in (model, teacher))
        divergence = softened_divergence(model, psi, teacher, teacher_psi, temperature=2.0)
        return mean_divergence(jnp.sum(divergence), divergence.size, len(tokens), model.config.likelihood)

    # The recorded waves are exact to 5e-6, and so are the amplitudes that carry probability; T·Σ(q − p)·δ has either
    # sign at each of the 23 or 32 positions.
    expected = arrays["out/distill_soft_loss"]
    np.testing.assert_allclose(jax.jit(soft_loss)(parts, teacher_parts), expected, rtol=2e-6)
