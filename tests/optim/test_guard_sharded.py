"""One decision for all devices, whichever of them holds the bad value."""

from small import output_on_two_devices

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sem_jax.config import OptimizerConfig
from sem_jax.optim import Reason, make_optimizer

devices = jax.devices()
assert len(devices) == 2
mesh = Mesh(devices, "x")
split, whole = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, temperature=1e-6), max_steps=1000, seed=0)
params = {
    "w": jax.device_put(jnp.ones((4, 3), jnp.complex64), split),  # half of it on each device
    "b": jax.device_put(jnp.zeros(3), whole),
}
x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)

def loss(params, x):
    return jnp.mean(jnp.abs(x @ params["w"] + params["b"]) ** 2)

@jax.jit
def step(params, state, x, number, planted):
    value, grads = jax.value_and_grad(loss)(params, x)
    grads["w"] = grads["w"] + planted
    updates, state = optimizer.update(grads, state, params, loss=value, step=number)
    return optax.apply_updates(params, updates), state

def on_each(array):
    return [np.asarray(shard.data) for shard in array.addressable_shards]

def run(batch, planted=np.zeros((4, 3), np.float32)):
    batch, planted = (jax.device_put(array, split) for array in (batch, planted))
    return step(params, jax.jit(optimizer.init)(params), batch, 0, planted)

moved, state = run(x)
assert not any((a == b).all() for a, b in zip(on_each(moved["w"]), on_each(params["w"]))), "a good step is taken"
assert [int(c) for c in on_each(state.consecutive)] == [0, 0]

for shard in range(2):
    batch, planted = x.copy(), np.zeros((4, 3), np.float32)
    batch[4 * shard + 1] = np.nan
    planted[2 * shard + 1] = np.inf
    for found, reason, leaf in ((run(batch), Reason.LOSS, -1), (run(x, planted), Reason.GRADIENT, 1)):
        kept, state = found
        for name in params:
            for a, b in zip(on_each(kept[name]), on_each(params[name])):
                assert a.tobytes() == b.tobytes(), (shard, name)
        for value, wanted in ((state.consecutive, 1), (state.lr_scale, 0.5), (state.leaf, leaf)):
            assert [v.item() for v in on_each(value)] == [wanted] * 2, (shard, reason)
        assert [int(v) for v in on_each(state.reason)] == [reason] * 2
print("decided alike")
"""


def test_a_bad_value_on_one_device_is_refused_by_all():
    assert output_on_two_devices(PROGRAM) == "decided alike"
