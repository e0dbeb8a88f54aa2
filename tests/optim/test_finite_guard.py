import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sem_jax.config import OptimizerConfig
from sem_jax.optim import Reason, finite_guard, is_sound, leaf_names, make_optimizer

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = {
    "mixers": {"w": ((2, 3, 3), np.complex64)},
    "readout": {"weight": ((4, 3), np.float32), "bias": ((4,), np.float32)},
}
LEAVES = [("mixers", "w"), ("readout", "weight"), ("readout", "bias")]
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "overflow": 1e30}  # of the last, the square overflows


def random_tree(seed):
    rng = np.random.default_rng(seed)

    def leaf(shape, dtype):
        imaginary = 1j * rng.normal(size=shape) if dtype == np.complex64 else 0
        return jnp.asarray(rng.normal(size=shape) + imaginary, dtype)

    return {group: {name: leaf(*spec) for name, spec in leaves.items()} for group, leaves in SHAPES.items()}


def plant(tree, leaf, value):
    """The tree with the last entry of a leaf replaced; a complex leaf takes the value in its imaginary part alone."""
    group, name = leaf
    array = tree[group][name]
    if jnp.iscomplexobj(array):
        value = np.complex64(complex(1.0, value))
    planted = array.at[(-1,) * array.ndim].set(value)
    return tree | {group: tree[group] | {name: planted}}


@functools.cache
def make(**changes):
    """The optimizer's init and its compiled update."""
    settings = {"warmup_steps": 2, "decay_steps": 0, "temperature": 1e-3} | changes
    optimizer = make_optimizer(OptimizerConfig(**settings), max_steps=100, seed=0)
    return optimizer.init, jax.jit(optimizer.update)


@pytest.fixture(scope="module", params=[{}, {"clip_norm": 0.0, "temperature": 0.0}], ids=["noisy", "unclipped"])
def warm(request):
    """Parameters, state after two good steps, and the update."""
    init, update = make(**request.param)
    params = random_tree(0)
    state = init(params)
    for step in range(2):
        updates, state = update(random_tree(1 + step), state, params, loss=1.0, step=step)
        params = optax.apply_updates(params, updates)
    return params, state, update


def assert_same_bits(a, b):
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def assert_skipped(update, params, state, grads, loss, reason):
    updates, after = update(grads, state, params, loss=loss, step=2)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    assert_same_bits(after.inner, state.inner)
    assert after.reason == reason
    assert after.lr_scale == 0.5 * state.lr_scale
    assert (after.skipped, after.consecutive, after.clean) == (1, 1, 0)
    return after


def test_a_good_step_is_taken(warm):
    params, state, update = warm
    updates, after = update(random_tree(3), state, params, loss=1.0, step=2)
    assert all((u != 0).all() for u in jax.tree.leaves(updates))
    assert after.inner.direction["adam"].count == 3
    assert (after.lr_scale, after.skipped, after.consecutive, after.clean, after.reason) == (1.0, 0, 0, 3, 0)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_loss_is_skipped(warm, value):
    params, state, update = warm
    assert assert_skipped(update, params, state, random_tree(3), value, Reason.LOSS).leaf == -1


@pytest.mark.parametrize("leaf", LEAVES, ids="/".join)
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_gradient_is_skipped(warm, leaf, value):
    params, state, update = warm
    after = assert_skipped(update, params, state, plant(random_tree(3), leaf, value), 1.0, Reason.GRADIENT)
    assert leaf_names(params, ())[int(after.leaf)] == "/".join(leaf)


def test_a_norm_that_overflows_is_skipped_though_every_square_is_finite(warm):
    params, state, update = warm
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e19), params)
    assert all(jnp.isfinite(jnp.abs(g) ** 2).all() for g in jax.tree.leaves(grads))
    assert_skipped(update, params, state, grads, 1.0, Reason.GRADIENT)


@pytest.mark.parametrize("value", [1e10, 1e18])
def test_a_huge_gradient_is_clipped_or_else_refused_before_it_freezes_a_second_moment(value):
    params = random_tree(0)
    grads = plant(random_tree(1), ("readout", "weight"), value)
    names = leaf_names(params, ())
    for clip_norm in (0.0, 1.0):
        init, update = make(clip_norm=clip_norm, temperature=0.0)
        _, after = update(grads, init(params), params, loss=1.0, step=2)
        if clip_norm:
            assert after.consecutive == 0
            nu = after.inner.direction["adam"].nu
            # v = (1 − b2)·|g|², with |g| clipped to 1 as a whole; 1 − b2 is good to four digits in float32.
            assert sum(float(v.sum()) for v in jax.tree.leaves(nu)) == pytest.approx(1e-3, rel=1e-4)
        else:
            after = assert_skipped(update, params, init(params), grads, 1.0, Reason.GRADIENT)
            assert names[int(after.leaf)] == "readout/weight"


def test_without_clipping_an_ordinary_outlier_is_still_taken():
    params, (init, update) = random_tree(0), make(clip_norm=0.0, temperature=0.0)
    _, after = update(plant(random_tree(1), LEAVES[0], 1e8), init(params), params, loss=1.0, step=2)
    assert after.consecutive == 0


def test_a_sum_that_overflows_is_blamed_on_the_leaf_that_adds_most():
    params = {"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)}
    guard = finite_guard(optax.identity())
    grads = {"a": jnp.full(2, 1.0e19), "b": jnp.full(2, 1.2e19), "c": jnp.full(2, 1.1e19)}
    _, after = guard.update(grads, guard.init(params), params, loss=1.0)
    assert (after.reason, after.leaf) == (Reason.GRADIENT, 1)


@pytest.mark.parametrize("leaf", LEAVES, ids="/".join)
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_parameter_is_skipped(warm, leaf, value):
    params, state, update = warm
    after = assert_skipped(update, plant(params, leaf, value), state, random_tree(3), 1.0, Reason.STATE)
    assert leaf_names(params, ())[int(after.leaf)] == "/".join(leaf)


@pytest.mark.parametrize("leaf", LEAVES, ids="/".join)
@pytest.mark.parametrize("moment", ["mu", "nu"])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_moment_is_skipped(warm, leaf, moment, value):
    params, state, update = warm
    adam = state.inner.direction["adam"]
    adam = adam._replace(**{moment: plant(getattr(adam, moment), leaf, value)})
    direction = type(state.inner.direction)(state.inner.direction | {"adam": adam})
    state = state._replace(inner=state.inner._replace(direction=direction))
    after = assert_skipped(update, params, state, random_tree(3), 1.0, Reason.STATE)
    assert leaf_names(params, state.inner)[int(after.leaf)] == f"direction/adam/{moment}/{'/'.join(leaf)}"


def proposing(update, state):
    """A transformation that always proposes the same update and state."""
    return optax.GradientTransformation(lambda params: jnp.zeros([]), lambda *args: (update, jnp.asarray(state)))


@pytest.mark.parametrize(
    ("proposal", "state", "reason"),
    [
        (np.inf, 0.0, Reason.UPDATE),
        (2e19, 0.0, Reason.UPDATE),  # its square overflows
        (1e19, 0.0, Reason.PARAMETERS),  # the square of the sum does
        (1.0, np.inf, Reason.MOMENTS),
        (1.0, 2e19, Reason.MOMENTS),
    ],
)
def test_the_reason_names_what_overflowed(proposal, state, reason):
    params = jnp.array([1.0, 1e19])
    guard = finite_guard(proposing(jnp.full(2, proposal), state))
    updates, after = guard.update(jnp.ones(2), guard.init(params), params, loss=1.0)
    assert after.reason == reason
    assert after.leaf == (1 if reason == Reason.MOMENTS else 0)
    np.testing.assert_array_equal(updates, 0)


def test_the_scale_backs_off_to_its_floor_and_regrows_to_one():
    guard = finite_guard(optax.scale(-1.0), backoff=0.25, min_scale=0.05, regrow_steps=2)
    update = jax.jit(guard.update)
    params = jnp.ones(2)
    state = guard.init(params)
    seen = []
    for loss in [np.nan, np.inf, np.nan, 1.0, 1.0, 1.0, np.nan, *[1.0] * 11]:
        _, state = update(jnp.ones(2), state, params, loss=loss)
        seen.append((float(state.lr_scale), int(state.skipped), int(state.consecutive), int(state.clean)))
    floor = float(np.float32(0.05))
    bad = [(0.25, 1, 1, 0), (0.0625, 2, 2, 0), (floor, 3, 3, 0)]
    regrown = [(floor, 3, 0, 1), (2 * floor, 3, 0, 2), (2 * floor, 3, 0, 3), (floor, 4, 1, 0)]
    scales = [floor, 2, 2, 4, 4, 8, 8, 16, 16, 1.0, 1.0]
    recovered = [(s if s in (floor, 1.0) else s * floor, 4, 0, i) for i, s in enumerate(scales, start=1)]
    assert seen == bad + regrown + recovered
    assert state.reason == Reason.LOSS


def test_the_scale_multiplies_the_next_update():
    init, update = make(clip_norm=0.0, temperature=0.0)
    params = random_tree(0)
    state = init(params)
    full, _ = update(random_tree(1), state, params, loss=1.0, step=1)
    _, after = update(random_tree(1), state, params, loss=np.nan, step=0)
    half, _ = update(random_tree(1), after, params, loss=1.0, step=1)
    chex.assert_trees_all_equal(half, jax.tree.map(lambda u: u / 2, full))


def test_the_trajectory_is_the_one_that_skipped_the_bad_steps():
    init, update = make()
    bad = {2: "loss", 3: "gradient", 6: "gradient"}
    start = random_tree(0)

    def run(skip):
        params, state = start, init(start)
        for step in range(10):
            grads, loss = random_tree(step), 1.0
            if step in bad and skip:
                state = state._replace(lr_scale=state.lr_scale / 2, clean=jnp.zeros_like(state.clean))
                continue
            if bad.get(step) == "loss":
                loss = np.nan
            if bad.get(step) == "gradient":
                grads = plant(grads, LEAVES[step % 3], np.inf)
            updates, state = update(grads, state, params, loss=loss, step=step)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = run(skip=False)
    expected_params, expected_state = run(skip=True)
    assert_same_bits(params, expected_params)
    assert_same_bits(state.inner, expected_state.inner)
    assert state.skipped == len(bad)
    assert expected_state.skipped == 0


def test_it_compiles_once():
    optimizer = make_optimizer(OptimizerConfig(), max_steps=1000, seed=0)
    traces = []

    @jax.jit
    def update(*args, **extra):
        traces.append(1)
        return optimizer.update(*args, **extra)

    params = {"z": jnp.ones((2, 2), jnp.complex64)}
    state = optimizer.init(params)
    for step, loss in enumerate([1.0, np.nan, np.inf, 1.0, 1.0]):
        updates, state = update(params, state, params, loss=jnp.float32(loss), step=jnp.int32(step))
        params = optax.apply_updates(params, updates)
    assert len(traces) == 1


def test_under_vmap_each_replica_decides_for_itself():
    optimizer = make_optimizer(OptimizerConfig(), max_steps=1000, seed=0)
    params = {"z": jnp.ones((2, 2), jnp.complex64), "x": jnp.ones(3)}
    state = optimizer.init(params)

    def update(grads, loss):
        return optimizer.update(grads, state, params, loss=loss, step=2)

    two = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    updates, after = jax.jit(jax.vmap(update))(two, jnp.array([1.0, np.nan]))
    np.testing.assert_array_equal(after.consecutive, [0, 1])
    np.testing.assert_array_equal(after.inner.direction["adam"].count, [1, 0])
    expected, _ = jax.jit(update)(params, 1.0)
    chex.assert_trees_all_close(jax.tree.map(lambda u: u[0], updates), expected, rtol=1e-5)
    chex.assert_trees_all_equal(jax.tree.map(lambda u: u[1], updates), jax.tree.map(jnp.zeros_like, params))


def test_leaves_without_entries_are_sound():
    params = {"w": jnp.ones(2), "none": jnp.zeros((0, 2))}
    init, update = make(clip_norm=1.0, temperature=1e-3)
    updates, after = update(params, init(params), params, loss=1.0, step=2)
    assert after.consecutive == 0
    assert updates["none"].shape == (0, 2)


def test_impossible_use_raises():
    for settings in ({"backoff": 1.0}, {"min_scale": 0.0}, {"regrow_steps": 0}, {"max_norm": 0.0}):
        with pytest.raises(ValueError, match="need 0 < backoff"):
            finite_guard(optax.identity(), **settings)
    guard = finite_guard(optax.identity())
    with pytest.raises(ValueError, match="with params"):
        guard.update(jnp.ones(2), guard.init(jnp.ones(2)), loss=1.0)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("where", [np.asarray, jnp.asarray], ids=["host", "device"])
def test_soundness_is_that_of_the_square(dtype, where):
    # A float64 becomes a float32 on its way to the device, whose square is what counts.
    values = np.array([0, -3, 1e4, np.nan, np.inf, -np.inf, 1e30], np.float32)
    half = np.dtype(dtype) == np.float16  # ends at 65504, so that 1e30 is infinite there
    found = is_sound(where(values[: 6 if half else 7].astype(dtype)))
    assert isinstance(found, np.ndarray) == (where is np.asarray)
    assert list(np.asarray(found)) == [True, True, True, False, False, False, False][: len(found)]
    if np.dtype(dtype).kind == "c":
        sound = is_sound(where(np.array([1 + 2j, complex(1, np.inf), complex(1e30, 1)], dtype)))
        assert list(np.asarray(sound)) == [True, False, False]
