"""Every fault in every place, in the step of a real model with all that a step can have switched on."""

import jax
import numpy as np
import pytest
from small import config, copied, differing_leaves

from sem_jax.data import Batch
from sem_jax.optim import Reason, leaf_names
from sem_jax.testing import Fault, Place, make_faulty_step, planting, resolve, skip_step
from sem_jax.training.state import init_state

VOCAB, LENGTH = 23, 8
CONFIG = config(
    model__vocab_size=VOCAB,
    optimizer__temperature=1e-6,
    training__global_batch=4,
    training__micro_batch=2,
    training__ema_decay=0.75,
    training__distill_weight=0.25,
)
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "overflow": 1e30}  # of the last, the square overflows
NEVER = Fault(int(Place.LOSS), 0, 0.0, 0)


def batch(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (4, LENGTH + 1)).astype(np.int32)
    return Batch(tokens, rng.random(tokens.shape) < 0.1, rng.random((4, LENGTH)).astype(np.float32))


@pytest.fixture(scope="module")
def model(quick_compilation):
    return init_state(CONFIG)


@pytest.fixture(scope="module")
def step(model):
    """The step with one fault as an argument; one compilation for all of them."""
    faulty, shardings = make_faulty_step(CONFIG), jax.tree.map(lambda x: x.sharding, model)
    return lambda state, batch, fault: faulty(jax.device_put(copied(state), shardings), batch, [fault])


@pytest.fixture(scope="module")
def warm(model, step):
    """The state after two good steps."""
    state = model
    for seed in range(2):
        state, _ = step(state, batch(seed), NEVER)
    return jax.device_get(state)


@pytest.fixture(scope="module")
def names(warm):
    return leaf_names(warm.params, warm.opt_state.inner)


def strike(step, warm, place, value, leaf=0):
    """State and metrics after the third step, in which the fault strikes."""
    return jax.device_get(step(warm, batch(2), Fault(int(place), 3, value, leaf)))


def assert_skipped(state, metrics, warm, reason, leaf=-1):
    assert (metrics.consecutive, metrics.reason, metrics.leaf) == (1, reason, leaf)
    assert differing_leaves(state, skip_step(CONFIG, warm, reason, leaf)) == []


@pytest.mark.slow
def test_a_fault_of_another_step_changes_nothing(step, warm):
    good, _ = step(warm, batch(2), NEVER)
    for place in Place:
        state, metrics = step(warm, batch(2), Fault(int(place), 4, np.nan, 0))
        assert metrics.consecutive == 0
        assert differing_leaves(state, good) == []


@pytest.mark.parametrize("place", [Place.BATCH, Place.LOSS], ids=lambda place: place.name.lower())
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_batch_or_loss_is_skipped_and_no_leaf_is_blamed(step, warm, place, value):
    if place == Place.BATCH and value == BAD["overflow"]:
        value = 3e38  # a mean is divided by the weights, so that only their product with a loss can overflow
    assert_skipped(*strike(step, warm, place, value), warm, Reason.LOSS)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_gradient_is_skipped_and_its_leaf_is_named(step, warm, names, value):
    for leaf in range(len(jax.tree.leaves(warm.params))):
        assert_skipped(*strike(step, warm, Place.GRADIENT, value, leaf), warm, Reason.GRADIENT, leaf)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_update_is_skipped_and_its_leaf_is_named(step, warm, value):
    for leaf in range(len(jax.tree.leaves(warm.params))):
        assert_skipped(*strike(step, warm, Place.UPDATE, value, leaf), warm, Reason.UPDATE, leaf)


def stored_name(params, moment, leaf):
    return leaf_names(params, ())[leaf] if moment is None else f"adam/{moment}/{leaf_names(params, ())[leaf]}"


@pytest.mark.parametrize(
    ("place", "moment"), [(Place.NEW_FIRST_MOMENT, "mu"), (Place.NEW_SECOND_MOMENT, "nu")], ids=["first", "second"]
)
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_a_bad_new_moment_is_skipped_and_its_leaf_is_named(step, warm, names, place, moment, value):
    for leaf in range(len(jax.tree.leaves(warm.params))):
        blamed = names.index("direction/" + stored_name(warm.params, moment, leaf))
        assert_skipped(*strike(step, warm, place, value, leaf), warm, Reason.MOMENTS, blamed)


@pytest.mark.parametrize(
    ("place", "moment"),
    [(Place.PARAMETER, None), (Place.FIRST_MOMENT, "mu"), (Place.SECOND_MOMENT, "nu")],
    ids=["parameter", "first_moment", "second_moment"],
)
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_damage_of_the_state_is_told_apart_from_a_bad_step(step, warm, names, place, moment, value):
    for leaf in range(len(jax.tree.leaves(warm.params))):
        state, metrics = strike(step, warm, place, value, leaf)
        prefix = "direction/" if moment else ""
        assert metrics.reason == Reason.STATE
        assert names[int(metrics.leaf)] == prefix + stored_name(warm.params, moment, leaf)
        # Nothing spreads: one leaf holds what was planted, and all others are as they were.
        before, after = ((tree.params, tree.opt_state.inner, tree.ema, tree.buffers) for tree in (warm, state))
        assert len(differing_leaves(before, after)) == 1


def test_the_trajectory_after_two_faults_is_the_one_that_skipped_both(step, warm):
    faults = {4: Fault(int(Place.GRADIENT), 4, np.nan, 3), 6: Fault(int(Place.BATCH), 6, np.inf, 0)}
    state = expected = warm
    for number in range(3, 9):
        before, (state, metrics) = state, step(state, batch(number), faults.get(number, NEVER))
        if number in faults:
            expected = skip_step(CONFIG, expected, Reason(int(metrics.reason)), int(metrics.leaf))
        else:
            expected, _ = step(expected, batch(number), NEVER)
            assert differing_leaves(before.params, state.params)
    assert int(state.opt_state.skipped) == len(faults)
    assert differing_leaves(state, expected) == []


def test_a_leaf_is_found_by_name_and_an_unknown_one_is_refused(warm):
    fault = resolve(Fault(Place.GRADIENT, 1, np.nan, "readout/weight"), warm.params)
    assert leaf_names(warm.params, ())[fault.leaf] == "readout/weight"
    with pytest.raises(ValueError, match=r"no parameter 'readout/wait', only encoder/.*readout/weight"):
        resolve(Fault(Place.GRADIENT, 1, np.nan, "readout/wait"), warm.params)
    for leaf in (-1, len(jax.tree.leaves(warm.params))):
        with pytest.raises(ValueError, match=f"no parameter {leaf}, only encoder/"):
            resolve(Fault(Place.GRADIENT, 1, np.nan, leaf), warm.params)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([], "leave out make_step"),
        ([Fault(42, 1, np.nan)], "place = 42 is none of BATCH, LOSS"),
        ([Fault("gradient", 1, np.nan)], "place = 'gradient' is none of BATCH"),
        ([Fault(Place.LOSS, 0, np.nan)], "step = 0 is no step"),
        ([Fault(Place.LOSS, 1.5, np.nan)], "step = 1.5 is no step"),
        ([Fault(Place.LOSS, 3, np.nan), Fault(Place.GRADIENT, 3, np.nan)], "step 3 has 2 faults"),
    ],
)
def test_a_fault_that_cannot_strike_is_refused(faults, message):
    with pytest.raises(ValueError, match=message):
        planting(*faults)
