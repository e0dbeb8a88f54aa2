"""One decision for all devices and hosts, whichever of them holds the bad value."""

import os
import socket
import subprocess
import sys

from small import output_on_two_devices, quick_environment

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


HOST = """
import sys
import jax
rank = int(sys.argv[2])
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", num_processes=2, process_id=rank)

import jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sem_jax.config import OptimizerConfig
from sem_jax.optim import Reason, make_optimizer

assert len(jax.devices()) == 2 and len(jax.local_devices()) == 1
mesh = Mesh(jax.devices(), "x")
split, whole = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, temperature=1e-6), max_steps=1000, seed=0)
start = {"w": np.ones((4, 3), np.complex64), "b": np.zeros(3, np.float32)}
params = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(whole, leaf), start)
half = np.random.default_rng(rank).normal(size=(4, 4)).astype(np.float32)  # of the batch, on each host

def loss(params, x):
    return jnp.mean(jnp.abs(x @ params["w"] + params["b"]) ** 2)

@jax.jit
def step(params, state, x):
    value, grads = jax.value_and_grad(loss)(params, x)
    updates, state = optimizer.update(grads, state, params, loss=value, step=0)
    return optax.apply_updates(params, updates), state

def here(array):
    return np.asarray(array.addressable_data(0))

for bad in (None, 0, 1):
    mine = np.where(np.arange(4)[:, None] == 2, np.float32(np.nan), half) if rank == bad else half
    x = jax.make_array_from_process_local_data(split, mine)
    moved, state = step(params, jax.jit(optimizer.init)(params), x)
    skipped = bad is not None
    assert [int(here(state.consecutive)), float(here(state.lr_scale))] == [skipped, 0.5 if skipped else 1.0], bad
    assert int(here(state.reason)) == (Reason.LOSS if skipped else 0)
    assert all((here(moved[name]) == start[name]).all() == skipped for name in start), bad
print("decided alike")
"""


def test_a_bad_value_on_one_host_is_refused_by_both():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | quick_environment() | {"JAX_PLATFORMS": "cpu"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(port), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        done = [host.communicate(timeout=300) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    for host, (said, errors) in zip(hosts, done, strict=True):
        assert host.returncode == 0, errors[-2000:]
        assert said.strip().endswith("decided alike")
