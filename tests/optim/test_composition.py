"""The whole chain, noise and groups included, over a batch of runs and over arrays that are spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small import output_on_two_devices

from sem_jax.config import OptimizerConfig
from sem_jax.optim import make_optimizer

RUNS, STEPS = 3, 5


def test_a_batch_of_runs_is_the_runs_one_by_one(quick_compilation):
    config = OptimizerConfig(
        warmup_steps=2, temperature=1e-2, spike_zscore=1e3, spike_window=2, lr_factors="w=0.5,b=0", decay_factors="w=2"
    )
    optimizer = make_optimizer(config, max_steps=1000, seed=0)
    rng = np.random.default_rng(0)

    def draw(*leading):
        w = rng.normal(size=(*leading, 4, 3)) + 1j * rng.normal(size=(*leading, 4, 3))
        x, b = rng.normal(size=(*leading, 6, 2)), rng.normal(size=(*leading, 3))
        return {"w": w.astype(np.complex64), "x": x.astype(np.float32), "b": b.astype(np.float32)}

    start, grads = draw(RUNS), draw(STEPS, RUNS)
    losses = rng.normal(size=(STEPS, RUNS)).astype(np.float32)
    grads["x"][1, 2, 0, 0] = np.nan  # in the second step the third run is refused, alone
    first_steps = np.array([0, 10, 500])  # every run has a schedule and a noise of its own

    def step(params, state, g, loss, number):
        updates, state = optimizer.update(g, state, params, loss=loss, step=number)
        return optax.apply_updates(params, updates), state

    params, update = start, jax.jit(jax.vmap(step))
    state = jax.vmap(optimizer.init)(params)
    for t in range(STEPS):
        params, state = update(params, state, jax.tree.map(lambda g, t=t: g[t], grads), losses[t], first_steps + t)
    np.testing.assert_array_equal(state.skipped, [0, 0, 1])

    one = jax.jit(step)
    for run in range(RUNS):
        alone = jax.tree.map(lambda p, run=run: jnp.asarray(p[run]), start)
        alone_state = optimizer.init(alone)
        for t in range(STEPS):
            g = jax.tree.map(lambda g, t=t, run=run: g[t, run], grads)
            alone, alone_state = one(alone, alone_state, g, losses[t, run], first_steps[run] + t)
        for ours, theirs in zip(jax.tree.leaves((params, state)), jax.tree.leaves((alone, alone_state)), strict=True):
            # Numbers up to 10, with a few roundings of 6e-8 a step and in the order of the norm's sum. The noise's
            # standard deviation is 1e-3 or more: other random numbers would be seen.
            np.testing.assert_allclose(ours[run], theirs, rtol=2e-6, atol=2e-6)


PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sem_jax.config import OptimizerConfig
from sem_jax.optim import make_optimizer

devices = jax.devices()
assert len(devices) == 2
split, whole = (NamedSharding(Mesh(devices, "x"), PartitionSpec(*axes)) for axes in (["x"], []))
config = OptimizerConfig(
    learning_rate=1e-2, warmup_steps=0, temperature=1e-2, clip_norm=0.1, spike_zscore=8.0, lr_factors="w=0.5,a=0",
    decay_factors="w=2",
)
optimizer = make_optimizer(config, max_steps=1000, seed=0)
rng = np.random.default_rng(0)
params = {
    "w": (rng.normal(size=(4, 3)) + 1j * rng.normal(size=(4, 3))).astype(np.complex64),
    "a": rng.normal(size=(4, 2)).astype(np.float32),
    "b": rng.normal(size=3).astype(np.float32),
}
x = rng.normal(size=(10, 8, 4)).astype(np.float32)

def loss(params, x):
    out = x @ params["w"] * (1 + jnp.sum(x @ params["a"], -1, keepdims=True)) + params["b"]
    return jnp.mean(jnp.abs(out) ** 2)

@jax.jit
def step(params, state, x, number):
    value, grads = jax.value_and_grad(loss)(params, x)
    updates, state = optimizer.update(grads, state, params, loss=value, step=number)
    return optax.apply_updates(params, updates), state

def run(w, b, batch):
    places = {"w": w, "a": w, "b": b}
    now = {name: jax.device_put(leaf, places[name]) for name, leaf in params.items()}
    state = jax.jit(optimizer.init)(now)
    for number in range(10):
        now, state = step(now, state, jax.device_put(x[number], batch), number)
    return now, state

spread, one = run(split, whole, split), run(devices[0], devices[0], devices[0])
assert len({shard.device for shard in spread[0]["w"].addressable_shards}) == 2
assert [shard.data.shape for shard in spread[0]["w"].addressable_shards] == [(2, 3)] * 2
assert one[0]["w"].devices() == {devices[0]}
assert int(one[1].skipped) == 0
np.testing.assert_array_equal(spread[0]["a"], params["a"])
# The order of sums differs: some 1e-6 of each update, of which 10 of at most 0.01 are added to numbers near 1, and each
# addition rounds by 6e-8. A step's noise is 0.005 or more where the cap holds it: other numbers would be seen.
for name in params:
    np.testing.assert_allclose(np.asarray(spread[0][name]), np.asarray(one[0][name]), rtol=1e-6, atol=1e-6)
print("the same numbers")
"""


def test_arrays_on_two_devices_give_the_numbers_of_one():
    assert output_on_two_devices(PROGRAM) == "the same numbers"
