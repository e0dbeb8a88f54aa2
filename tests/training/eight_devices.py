"""A program for a process of eight virtual CPU devices; `test_mesh.py` runs it once and judges what it prints.

One tiny model on several meshes: what its steps compute, what each device holds, what its program sends, what a NaN
does, and what a checkpoint of one mesh is on another.
"""

import dataclasses
import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from small import config, copied, differing_leaves, quick_options

from sem_jax.config import ConfigError, MeshConfig
from sem_jax.core import devices
from sem_jax.core.complex_ops import abs_sq
from sem_jax.data import Batch
from sem_jax.modules.blocks import BLOCKS
from sem_jax.modules.mixer import FixedSSM
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.evaluation import Evaluator
from sem_jax.training.mesh import make_layout
from sem_jax.training.state import abstract_state, init_state
from sem_jax.training.step import make_train_step

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from collectives import collective_bytes

devices.SMALL = 2**7  # so that a tiny model has arrays to spread
MESHES = [(1, 1), (8, 1), (1, 8), (4, 2)]
VOCAB, LENGTH, ROWS, STEPS = 40, 16, 16, 20
CONFIG = config(
    model__vocab_size=VOCAB,
    model__num_layers=2,
    optimizer__temperature=1e-6,
    training__global_batch=ROWS,
    training__micro_batch=ROWS // 2,
    training__ema_decay=0.9,
    training__distill_weight=0.25,
)
rng = np.random.default_rng(0)
BATCHES = [
    Batch(
        rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32),
        rng.random((ROWS, LENGTH + 1)) < 0.1,
        (rng.random((ROWS, LENGTH)) < 0.9).astype(np.float32),
    )
    for _ in range(4)
]


def on(mesh):
    return dataclasses.replace(CONFIG, mesh=MeshConfig(*mesh))


def gathered_bytes(program):
    """Bytes of the result of each all-gather of floats or complex numbers."""
    widths = {"f32": 4, "c64": 8}
    for result in re.findall(r"= (\S+) all-gather(?:-start)?\(", program):
        for dtype, shape in re.findall(r"(f32|c64)\[([\d,]*)\]", result):
            yield widths[dtype] * int(np.prod([int(size) for size in shape.split(",") if size]))


def bytes_of_a_layer(path, leaf):
    layers = leaf.shape[0] if path[0].key in BLOCKS else 1
    return leaf.size * leaf.dtype.itemsize // layers


def on_each_device(tree):
    """The bits of every device's part of every leaf."""
    return [[np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards] for leaf in jax.tree.leaves(tree)]


def measure(mesh):
    layout = make_layout(on(mesh))
    state = init_state(on(mesh))
    found = {"start": hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state))).hexdigest()}
    found["bytes"] = [
        sum(leaf.addressable_shards[i].data.nbytes for leaf in jax.tree.leaves(state)) for i in range(layout.mesh.size)
    ]
    placed = [layout.place_batch(batch, ROWS) for batch in BATCHES]
    step = make_train_step(on(mesh)).lower(state, placed[0]).compile(compiler_options=quick_options())
    found["gathered"] = list(gathered_bytes(step.as_text()))
    found["summed"] = collective_bytes(step.as_text())["all-reduce"] if layout.mesh.size > 1 else 0
    found["gradient"] = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, placed[number % len(placed)])
        losses.append(float(metrics.loss))
    found["losses"] = losses
    found["skips"] = [skips_everywhere(step, state, layout, device) for device in range(0, layout.mesh.size, 3)]
    return found, state


def gathered_behind_time(mesh):
    """Bytes that the gradient of a time-major state space gathers, whose weights are whole everywhere."""
    layout = make_layout(on(mesh))
    graphdef, weights = nnx.split(FixedSSM(16, CONFIG.model.mixer, nnx.Rngs(0)))

    def loss(weights, x):
        position = jnp.broadcast_to(jnp.arange(LENGTH), x.shape[:2])
        return jnp.sum(abs_sq(nnx.merge(graphdef, weights)(x, None, position)[0]))

    def gradient(weights, x):
        with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
            return jax.grad(loss, argnums=(0, 1))(weights, x)

    x = jax.ShapeDtypeStruct((ROWS, LENGTH, 16), jnp.complex64)
    program = jax.jit(gradient, in_shardings=(layout.replicated, layout.rows))
    return list(gathered_bytes(program.lower(weights, x).compile().as_text()))


def refused():
    """What is said of batches that eight devices cannot share, by the field that is to be changed."""
    messages = {}
    for name, micro, whole in (("micro_batch", 12, 24), ("global_batch", 8, 12)):
        training = dataclasses.replace(CONFIG.training, micro_batch=micro, global_batch=whole)
        try:
            make_layout(dataclasses.replace(CONFIG, training=training))
        except ConfigError as error:
            messages[name] = str(error)
    return messages


def evaluated(mesh):
    """The validation loss of a fresh model over more batches than a CPU could have in its threads at once."""
    c = dataclasses.replace(on(mesh), training=dataclasses.replace(CONFIG.training, eval_batches=200))
    split = SimpleNamespace(evaluation_batches=lambda limit: (BATCHES[i % len(BATCHES)] for i in range(limit)))
    evaluate = Evaluator(c, SimpleNamespace(validation=split, bytes_per_token=1.0))
    return evaluate(init_state(c).evaluated).values["nll"]


def skips_everywhere(step, state, layout, device):
    """Whether a NaN in a row of one device leaves all arrays of all devices as they were, but for the guard's."""
    row = device * ROWS // layout.mesh.size
    weights = BATCHES[0].weights.copy()
    weights[row, 3] = np.nan
    before = on_each_device((state.params, state.ema, state.opt_state.inner))
    after, metrics = step(copied(state), layout.place_batch(BATCHES[0]._replace(weights=weights), ROWS))
    counts = [int(np.asarray(shard.data)) for shard in after.opt_state.consecutive.addressable_shards]
    same = before == on_each_device((after.params, after.ema, after.opt_state.inner))
    return same and counts == [1] * layout.mesh.size and not np.isfinite(float(metrics.loss))


def moved(state, source, target):
    """Leaves that are not the same to the bit after a checkpoint of one mesh was restored on another."""
    with tempfile.TemporaryDirectory() as folder:
        with Checkpointer(folder, 1, str(make_layout(on(source)))) as checkpointer:
            checkpointer.save(STEPS, state)
        layout = make_layout(on(target))
        with Checkpointer(folder, 1, str(layout)) as checkpointer:
            _, restored = checkpointer.restore(layout.abstract(abstract_state(CONFIG)))
            saved_on = checkpointer.saved_on
    wanted = layout.of_state(abstract_state(CONFIG))
    spread = [
        leaf.sharding == sharding for leaf, sharding in zip(*map(jax.tree.leaves, (restored, wanted)), strict=True)
    ]
    return {"differing": differing_leaves(state, restored), "spread": all(spread), "saved on": saved_on}


def main():
    assert len(jax.devices()) == 8
    found, states = {}, {}
    for mesh in MESHES:
        found[str(mesh)], states[mesh] = measure(mesh)
    found["evaluated"] = [evaluated(mesh) for mesh in MESHES]
    found["behind time"] = gathered_behind_time((4, 2))
    found["refused"] = refused()
    moves = [((8, 1), (1, 1)), ((1, 1), (1, 8)), ((8, 1), (2, 4)), ((1, 8), (4, 2))]
    found["moves"] = {f"{source} -> {target}": moved(states[source], source, target) for source, target in moves}
    found["largest weight"] = max(
        bytes_of_a_layer(path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state(CONFIG).params)
    )
    json.dump(found, sys.stdout)


main()
