"""The causes of the stability study are what they are called."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
from causes import (
    CAUSES,
    FIXED,
    Program,
    bf16,
    build_model,
    make_optimizer,
    one_step_gradient,
    unfloored_std,
    warm_solve,
)
from flax import nnx

from sem_jax.config import build, with_vocabulary
from sem_jax.core.cayley import SolverOptions, cayley_step
from sem_jax.core.complex_ops import abs_sq, complex_normal
from sem_jax.core.graph import combine_scales, matvec, small_world_edges, to_dense
from sem_jax.data import Batch
from sem_jax.modules.model import split_model

pytestmark = pytest.mark.usefixtures("quick_compilation")
DIM, TOKENS = 64, 16
EDGES = [small_world_edges(DIM, 8 * 2**k, 0.1, seed=k) for k in range(3)]
FRESH = [np.zeros(edges.shape[1]) for edges in EDGES]


def hamiltonian_of(weights):
    return to_dense(combine_scales(EDGES, weights, jnp.zeros(3)), DIM)


def half_step(h_lambda):
    """h for which hλ of fresh weights is h_lambda."""
    return float(h_lambda / np.linalg.eigvalsh(np.asarray(hamiltonian_of(FRESH).matrix))[-1])


def exact(hamiltonian, psi, h):
    return cayley_step(hamiltonian, psi, h, SolverOptions("dense"))[0]


def one_step(hamiltonian, psi, h):
    return one_step_gradient(hamiltonian, psi, exact(hamiltonian, psi, h), h)


@pytest.fixture
def waves():
    keys = jax.random.split(jax.random.key(0), 2)
    return [complex_normal(key, (TOKENS, DIM), 1.0) for key in keys]


def test_one_step_gradient_is_that_of_one_residual_step_with_the_answer_held_fixed(x64, waves):
    hamiltonian, h, (psi, x_bar) = hamiltonian_of(FRESH), half_step(1.6), waves
    x0 = exact(hamiltonian, psi, h)
    x, pull_back = jax.vjp(lambda ham, wave: one_step(ham, wave, h), hamiltonian, psi)
    hamiltonian_bar, psi_bar = pull_back(x_bar)
    np.testing.assert_allclose(x, x0, atol=1e-12)
    np.testing.assert_allclose(psi_bar, x_bar - 1j * h * matvec(hamiltonian, x_bar), atol=1e-12)
    wanted = jnp.einsum("ti,tj->ij", psi + x0, -1j * h * x_bar).real
    np.testing.assert_allclose(hamiltonian_bar.matrix, wanted, atol=1e-12)


@pytest.mark.parametrize(("h_lambda", "low", "high"), [(0.02, 0.99, 1.0), (1.6, -0.3, 0.3)])
def test_one_step_gradient_of_the_edge_weights_points_elsewhere_once_h_lambda_is_not_small(waves, h_lambda, low, high):
    h, (psi, target) = half_step(h_lambda), waves

    def gradient(step):
        def distance(weights):
            return jnp.sum(abs_sq(step(hamiltonian_of(weights), psi, h) - target))

        return np.concatenate(jax.jit(jax.grad(distance))([jnp.asarray(w, jnp.float32) for w in FRESH]))

    first, second = gradient(exact), gradient(one_step)
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    assert low < cosine < high


def test_a_warm_start_is_forgotten_by_a_solver_that_converges(x64, waves):
    hamiltonian, h, (psi, guess) = hamiltonian_of(FRESH), half_step(0.75), waves
    x = warm_solve(hamiltonian, psi, 1e3 * guess, h, SolverOptions("cg", max_iter=20, tol=1e-10))
    # The tolerance is relative to the residual of the guess, some 1e3·‖guess‖.
    np.testing.assert_allclose(x, exact(hamiltonian, psi, h), atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 3, 8])
def test_the_wrong_cg_from_a_guess_is_the_wrong_cg_for_the_residual_of_the_guess(x64, waves, iterations):
    hamiltonian, h, (psi, guess) = hamiltonian_of(FRESH), half_step(0.75), waves
    options = SolverOptions("cg_on_cayley", max_iter=iterations)
    x = warm_solve(hamiltonian, psi, guess, h, options)
    # (I + ihH)d = r has the form that a cold step solves: r = (I − ihH)φ.
    matrix = np.asarray(hamiltonian.matrix)
    residual = psi - guess - 1j * h * (psi + guess) @ matrix
    phi = np.linalg.solve(np.eye(DIM) - 1j * h * matrix, np.asarray(residual).T).T
    np.testing.assert_allclose(x, guess + cayley_step(hamiltonian, jnp.asarray(phi), h, options)[0], atol=1e-9)


def test_the_error_of_the_wrong_cg_grows_from_batch_to_batch_and_faster_with_more_iterations():
    hamiltonian, h = hamiltonian_of(FRESH), half_step(0.75)

    def growth(options):
        def batch(previous, key):
            x = warm_solve(hamiltonian, complex_normal(key, (TOKENS, DIM), 1.0), previous, h, options)
            return x, jnp.max(jnp.linalg.norm(x, axis=-1))

        start = jnp.zeros((TOKENS, DIM), jnp.complex64)
        return jax.jit(lambda keys: jax.lax.scan(batch, start, keys)[1])(jax.random.split(jax.random.key(1), 60))

    right, wrong3, wrong8, wrong20 = (
        growth(SolverOptions(*options))
        for options in (("cg", 8), ("cg_on_cayley", 3), ("cg_on_cayley", 8), ("cg_on_cayley", 20))
    )
    assert right.max() < 2 * right[0]
    assert wrong3[-1] > 10 * wrong3[0]
    assert wrong8[20] > 1e5 * wrong8[0]
    assert not jnp.isfinite(wrong20[-1])


@pytest.mark.parametrize(
    ("temperature", "learning_rate", "std"), [(1e-4, 6e-4, 3.46), (1e-4, 1.2e-3, 4.90), (1e-5, 1.2e-3, 1.55)]
)
def test_unfloored_noise_moves_a_weight_that_has_seen_no_gradient_by_more_than_1(temperature, learning_rate, std):
    assert unfloored_std(jnp.zeros(()), learning_rate, temperature) == pytest.approx(std, rel=2e-3)
    config = build({"optimizer": {"weight_decay": 0.0}})
    schedule = optax.constant_schedule(learning_rate)
    optimizer = make_optimizer(Program(noise="unfloored"), config, schedule, 0, temperature)
    params = {"unseen": jnp.zeros(40_000), "wave": jnp.zeros(20_000, jnp.complex64)}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params, step=jnp.int32(3))
    for part in (updates["unseen"], updates["wave"].real, updates["wave"].imag):
        assert float(jnp.std(part)) == pytest.approx(std, rel=0.02)


def test_unfloored_noise_shrinks_with_the_root_of_the_gradient():
    assert unfloored_std(jnp.float32(1e-4), 1.2e-3, 1e-5) == pytest.approx(
        math.sqrt(2 * 1e-5 * 1.2e-3 / 1e-2), rel=1e-3
    )


def test_bf16_keeps_eight_bits_of_value_and_cotangent():
    value = 1 + 2.0**-9 + 1j * (3 + 2.0**-9)
    rounded, pull_back = jax.vjp(bf16, jnp.complex64(value))
    assert complex(rounded) == 1 + 3j
    assert complex(pull_back(jnp.complex64(value))[0]) == 1 + 3j


def test_every_cause_has_the_parameters_of_the_fixed_recipe():
    def shapes(cause):
        config = runs.configure(cause.program, 10, 16, 1)
        return jax.eval_shape(
            lambda: split_model(build_model(cause.program, config, nnx.Rngs(params=jax.random.key(0)))).params
        )

    fixed = shapes(FIXED)
    for cause in CAUSES:
        assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, shapes(cause), fixed)), cause.name


@pytest.mark.slow
def test_every_cause_has_a_loss_and_a_gradient():
    config = with_vocabulary(runs.configure(FIXED.program, 50, 16, 1), 32)
    params, buffers = runs.initial_models(config, 1)
    params = jax.tree.map(lambda leaf: leaf[0], params)
    answers = runs.no_answers(config, 1)[0]
    tokens = np.zeros((4, 33), np.int32)
    batch = Batch(tokens, tokens > 0, np.ones((4, 32), np.float32))
    kinds = {(p.bf16, p.gradient, p.warm_start, p.solver): p for p in (cause.program for cause in CAUSES)}
    for program in kinds.values():
        loss = runs.make_loss(program, config, buffers)
        grads, (nll, _) = jax.eval_shape(jax.grad(loss, has_aux=True), params, answers, batch)
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
        assert nll.shape == ()


def run(nll, finite=None):
    return runs.Run(nll=nll, finite=finite or [True] * len(nll))


def test_a_run_is_judged_by_its_first_bad_step_its_divergence_and_its_end():
    uniform = math.log(256)
    good = run([uniform + 2] * 20 + [2.0] * 180)
    assert runs.first_bad_step(good) is None
    assert runs.divergence_step(good, 256) is None
    assert runs.final_nll(good) == 2.0
    lost = run([2.0] * 30 + [uniform + 2] * 170)
    assert runs.divergence_step(lost, 256) == 31
    broken = run([2.0] * 7 + [math.nan] * 193, [True] * 6 + [False] * 194)
    assert runs.first_bad_step(broken) == 7
    assert runs.final_nll(broken) == math.inf
