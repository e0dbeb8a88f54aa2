"""A state dict of the original to a configuration and a model, and back, exact to the bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sem_jax.config import Config, ConfigError, build, lookup, override
from sem_jax.interop import names
from sem_jax.interop.buffers import both_directions, frequency_of, phase_of
from sem_jax.interop.errors import InteropError
from sem_jax.interop.files import describe, read_state_dict
from sem_jax.interop.schema import Arrays, Schema, read_schema
from sem_jax.modules.model import SEM, ModelParts, abstract_model, split_model
from sem_jax.modules.propagator import NUM_SCALES

# What no shape tells: the original's defaults, and where the value stands in our configuration.
DEFAULTS: dict[str, Any] = {
    "sdr_sparsity": 32,
    "cayley_dt": 0.1,
    "sinkhorn_epsilon": 0.05,
    "sinkhorn_max_iter": 50,
    "sinkhorn_tol": 1e-3,
    "unitary_lambda": 0.1,
    "max_seq_length": None,  # rows of `encoder.positional_phase`
}
_FIELDS = {
    "sdr_sparsity": "model.encoder.sdr_sparsity",
    "cayley_dt": "model.propagator.cayley_dt",
    "sinkhorn_epsilon": "model.encoder.sinkhorn_epsilon",
    "sinkhorn_max_iter": "model.encoder.sinkhorn_max_iter",
    "sinkhorn_tol": "model.encoder.sinkhorn_tol",
    "unitary_lambda": "optimizer.unitary_lambda",
    "max_seq_length": "model.max_seq_length",
}
# The original's arithmetic (docs/mathematics.md, section 3).
_SEMANTICS = {
    "model.blocks": "mixers,propagators",
    "model.layout": "mixers_first",
    "model.likelihood": "reference",
    "model.encoder.transport": "sequence_sinkhorn",
    "model.encoder.position_phase": True,
    "model.encoder.embedding_skip": False,
    "model.mixer.kind": "fixed",
    "model.mixer.input_scale": "dt",
    "model.mixer.clamp_interval": 256,
    "model.propagator.kerr_saturation": 0.0,
}
# Its optimizer, and text as a converted model reads it. The rate starts on its plateau: how far the schedule has come,
# the weights do not tell.
_RUN = {
    "name": "imported",
    "model.propagator.solver": "dense",
    "optimizer.weight_decay": 0.1,
    "optimizer.decay_all": True,
    "optimizer.warmup_steps": 0,
    "optimizer.decay_steps": 0,
    "data.tokenizer": "ids",
    "data.split": "tail",
    "data.reset_at_boundary": False,
}


def import_state_dict(source: Mapping[str, Any] | str | PathLike[str], **overrides: Any) -> tuple[Config, SEM]:
    """The configuration and the model of a state dict of the original, in reference semantics with an exact solve.

    Sizes come from the shapes, graphs and rotation frequencies from the buffers. Floating point numbers become
    float32, exactly where they are float32 or narrower.

    Args:
      source: names to arrays (numpy, jax or torch), or a .pt, .safetensors or .npz file of them; as in
        `read_state_dict`. `_sparse_idx_sym`, which follows from `edge_indices`, may be absent.
      **overrides: values that no shape tells, instead of `DEFAULTS`, by its names.

    Returns:
      A configuration that trains and evaluates the model, and the module.

    Raises:
      InteropError: the source cannot be read; an override has no such name; or entries are missing, unexpected,
        misshaped or impossible, and all of them are listed.
      ConfigError: a value is impossible.
    """
    unknown = overrides.keys() - DEFAULTS.keys()
    if unknown:
        raise InteropError(f"{', '.join(sorted(unknown))} cannot be overridden, only {', '.join(DEFAULTS)}")
    arrays = read_state_dict(source)
    schema = read_schema(arrays, describe(source))
    config = _config(schema, overrides)
    params, buffers = _trees(arrays, schema.entries, config.model.propagator.num_edges)
    return config, nnx.merge(abstract_model(config.model).graphdef, params, buffers)


def export_state_dict(tree: SEM | ModelParts | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a model or of a tree shaped like its parameters, by the original's names and in its layout.

    The inverse of `import_state_dict`. It is linear: real parts go to the names on `_real`, imaginary parts to those on
    `_imag`, and nothing else happens to the numbers. `jax.grad` returns ∂/∂Re − i·∂/∂Im for a complex parameter, so a
    gradient is conjugated first to become PyTorch's pair of derivatives:

        export_state_dict(jax.tree.map(jnp.conj, jax.grad(loss)(parts.params)))

    Weights of the default semantics have the same names, although the original would compute something else with
    them. What a model lacks (a transport plan) is left out.

    Args:
      tree: a model, whole or taken apart, or a mapping like `ModelParts.params` alone, which may be incomplete. A
        mapping has no buffers, so only the names of trained parameters come out, and the weights of edges that pad a
        layer to the size of a larger one stay in.

    Returns:
      Names to arrays that share no memory with `tree`; dtypes are those of the tree, int64 for `edge_indices`.

    Raises:
      InteropError: the tree is of another kind or has a leaf that no model has.
    """
    flat, length = _flat_leaves(tree)
    layers = {len(leaf) for path, leaf in flat.items() if path[0] in ("mixers", "propagators") and leaf.ndim}
    if len(layers) > 1:
        raise InteropError(f"the leaves of the tree have {sorted(layers)} layers; give leaves of one model")
    entries = names.model_entries(max(layers, default=0))
    known = {entry.path for entry in entries} | {names.FREQUENCY}
    if unknown := flat.keys() - known:
        listed = ", ".join(sorted("/".join(map(str, path)) for path in unknown))
        raise InteropError(
            f"the original has nothing like {listed}; give a model with config.model.mixer.kind = fixed, "
            "its ModelParts or a tree like its ModelParts.params"
        )
    arrays: dict[str, np.ndarray] = {}
    if names.FREQUENCY in flat:
        arrays[names.POSITIONAL_PHASE] = phase_of(flat[names.FREQUENCY], length)
    for entry in entries:
        if entry.path in flat:
            arrays |= _exported(entry, flat)
    return {name: np.array(array, order="C") for name, array in arrays.items()}


def differences(config: Config) -> list[str]:
    """What a model computes otherwise than the original, as fields with their values; empty after an import."""
    values = {path: lookup(config, path) for path in _SEMANTICS}
    return [f"config.{path} = {value}" for path, value in values.items() if value != _SEMANTICS[path]]


def _config(schema: Schema, overrides: Mapping[str, Any]) -> Config:
    sizes, num_layers = schema.sizes, schema.num_layers
    # An edge list without any edge is stacked as one that does nothing.
    edges = [max(1, *(sizes[f"E{layer}.{scale}"] for layer in range(num_layers))) for scale in range(NUM_SCALES)]
    told = {
        "model.vocab_size": sizes["V"],
        "model.hidden_dim": sizes["D"],
        "model.num_layers": num_layers,
        "model.encoder.sdr_candidates": sizes["M"],
        "model.encoder.cost_dim": sizes["P"],
        "model.mixer.block_size": sizes["b"],
        "model.mixer.conv_width": sizes["K"],
        "model.mixer.num_groups": sizes["G"],
        "model.mixer.state_dim": sizes["N"],
        # Its mean number of neighbours tells how the finest graph was asked for.
        "model.propagator.laplacian_sparsity": max(1, round(2 * edges[0] / sizes["D"])),
        "model.propagator.num_edges": tuple(edges),
    }
    chosen = DEFAULTS | {"max_seq_length": sizes["S"]} | dict(overrides)
    fields = _SEMANTICS | _RUN | told | {_FIELDS[name]: value for name, value in chosen.items()}
    if isinstance(fields["model.max_seq_length"], int):
        fields["data.seq_length"] = min(Config().data.seq_length, fields["model.max_seq_length"])
    try:
        return build(override(dataclasses.asdict(Config()), fields))
    except ConfigError as error:
        raise ConfigError(f"{error}. What no shape tells can be given: {', '.join(DEFAULTS)}") from None


def _trees(
    arrays: Arrays, entries: list[names.Entry], num_edges: tuple[int, int, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and buffers of the model, every leaf a jax array."""
    single: dict[names.Path, np.ndarray | None] = {names.FREQUENCY: frequency_of(arrays[names.POSITIONAL_PHASE])}
    layers: dict[names.Path, list[np.ndarray]] = {}
    for entry in entries:
        parts = [arrays[name] for name in entry.names]
        if entry.layout is not names.INDICES:
            parts = [part.astype(np.float32) for part in parts]
        leaf = entry.layout.join(*parts)
        if names.is_of_edges(entry.path):
            missing = num_edges[int(entry.path[-1])] - leaf.shape[-1]
            leaf = np.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, missing)])  # edges from node 0 to itself
        if entry.layer is None:
            single[entry.path] = leaf
        else:
            layers.setdefault(entry.path, []).append(leaf)
    params: dict[Any, Any] = {}
    buffers: dict[Any, Any] = {}
    for path, array in (single | {path: np.stack(leaves) for path, leaves in layers.items()}).items():
        tree = buffers if names.is_buffer(path) else params
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = jnp.asarray(array)
    return params, buffers


def _flat_leaves(tree: Any) -> tuple[dict[names.Path, np.ndarray], int]:
    """The leaves by their paths, and the number of positions of the model, 0 for a mapping."""
    length = 0
    if isinstance(tree, SEM):
        tree = split_model(tree)
    if isinstance(tree, ModelParts):
        length = tree.merge().config.max_seq_length
        leaves = [*_walk(tree.params), *_walk(tree.buffers)]
    elif isinstance(tree, Mapping):
        leaves = list(_walk(tree))
    else:
        raise InteropError(f"a {type(tree).__name__} is not exported; give a model, ModelParts or ModelParts.params")
    return dict(leaves), length


def _walk(tree: Any, path: names.Path = ()) -> Iterator[tuple[names.Path, np.ndarray]]:
    if isinstance(tree, Mapping):
        for key, branch in tree.items():
            yield from _walk(branch, (*path, key))
    else:
        yield path, np.asarray(tree)


def _exported(entry: names.Entry, flat: Mapping[names.Path, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one entry, without the edges that are padding where the tree tells which."""
    leaf = flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer]
    edges = flat.get((*entry.path[:-2], "edges", entry.path[-1])) if names.is_of_edges(entry.path) else None
    if edges is not None:
        start, end = edges[entry.layer]
        leaf = leaf[..., start != end]
    arrays = dict(zip(entry.names, entry.layout.split(leaf), strict=True))
    if entry.layout is names.INDICES:
        arrays |= {names.symmetric_name(name): both_directions(array) for name, array in arrays.items()}
    return arrays
