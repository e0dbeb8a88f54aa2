"""The original's state-dict names and what they are called here: one table, read both ways.

docs/mathematics.md, section 6, lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from sem_jax.modules.propagator import NUM_SCALES

Path = tuple[str | int, ...]
Dims = tuple[str, ...]  # such as ("2D", "D/b"): a number times a size, or a size divided by another


class Layout(NamedTuple):
    """How one array here and the arrays of the original hold the same numbers; both directions are linear."""

    split: Callable[[np.ndarray], tuple[np.ndarray, ...]]  # ours to the original's
    join: Callable[..., np.ndarray]  # the original's to ours


class Entry(NamedTuple):
    """One leaf of our tree, or one layer of a stacked leaf."""

    path: Path
    names: tuple[str, ...]
    dims: Dims  # of each of the original's arrays
    layout: Layout
    layer: int | None = None  # index on the leading axis; None: the leaf is not stacked


def _join_complex(real: np.ndarray, imag: np.ndarray) -> np.ndarray:
    # real + 1j·imag would lose the sign of a zero and turn an infinity into NaN.
    joined = np.empty(real.shape, np.result_type(real, np.complex64))
    joined.real, joined.imag = real, imag
    return joined


def _split_kernel(kernel: np.ndarray) -> tuple[np.ndarray, ...]:
    width, dim = kernel.shape[:2]
    return (kernel.transpose(1, 2, 3, 0).reshape(2 * dim, 2, width),)


def _join_kernel(weight: np.ndarray) -> np.ndarray:
    double_dim, _, width = weight.shape  # rows re0, im0, re1, ...
    return weight.reshape(double_dim // 2, 2, 2, width).transpose(3, 0, 1, 2)


PLAIN = Layout(lambda x: (x,), lambda x: x)
COMPLEX = Layout(lambda z: (np.real(z), np.imag(z)), _join_complex)
KERNEL = Layout(_split_kernel, _join_kernel)
PAIRS = Layout(lambda x: (x.reshape(-1),), lambda x: x.reshape(-1, 2))
INDICES = Layout(lambda x: (x.astype(np.int64),), lambda x: x.astype(np.int32))


def _plain(path: Path, name: str, *dims: str) -> Entry:
    return Entry(path, (name,), dims, PLAIN)


def _complex(path: Path, name: str, *dims: str) -> Entry:
    return Entry(path, (f"{name}.weight_real", f"{name}.weight_imag"), dims, COMPLEX)


def _linear(path: Path, name: str, outputs: str, inputs: str) -> list[Entry]:
    return [
        _plain((*path, "weight"), f"{name}.weight", outputs, inputs),
        _plain((*path, "bias"), f"{name}.bias", outputs),
    ]


# Of one state space, relative to its own module in both trees.
SSM = [
    _plain(("decay",), "log_A_mag", "G", "N"),
    _plain(("phase",), "A_phase", "G", "N"),
    _complex(("in_proj",), "B_proj", "N", "D/G"),
    _complex(("out_proj",), "C_proj", "D/G", "N"),
    *_linear(("dt_proj",), "dt_proj", "2", "2D/G"),
]

_ENCODER = [
    _plain(("embedding",), "embedding.weight", "V", "D"),
    _plain(("codebook",), "cost.codebook", "M", "P"),
    *_linear(("input_proj",), "cost.input_proj", "P", "D"),
    *_linear(("sdr_to_hidden",), "sdr_to_hidden", "D", "M"),
]

_READOUT = [
    _plain(("final_gamma",), "final_norm.gamma", "D"),
    _plain(("readout", "bias"), "sampler.output_bias", "V"),
    Entry(("readout", "weight"), ("sampler.proj_real.weight", "sampler.proj_imag.weight"), ("V", "D"), COMPLEX),
]


def _below(entries: Iterable[Entry], path: Path, name: str, layer: int | None = None) -> list[Entry]:
    """The entries as parts of a larger tree."""
    return [
        entry._replace(path=(*path, *entry.path), names=tuple(f"{name}.{n}" for n in entry.names), layer=layer)
        for entry in entries
    ]


_MIXER = [
    _plain(("activation_threshold",), "activation_threshold"),
    _plain(("output_scale",), "ssm_output_scale", "D"),
    _plain(("residual_scale",), "residual_scale"),
    _plain(("norm_gamma",), "norm.gamma", "D"),
    _complex(("spinor_gate", "rotation"), "spinor_gate.spinor", "D/b", "b", "b"),
    *_linear(("spinor_gate", "gate_proj"), "spinor_gate.gate_proj", "D", "2D"),
    Entry(("conv", "kernel"), ("conv.weight",), ("2D", "2", "K"), KERNEL),
    Entry(("conv", "bias"), ("conv.bias",), ("2D",), PAIRS),
    *_below(SSM, ("ssm",), "ssm"),
    _complex(("out_proj",), "out_proj", "D", "D"),
]


def _propagator(layer: int) -> list[Entry]:
    entries = [
        _plain(("alpha",), "alpha", "D"),
        _plain(("scale_weights",), "hamiltonian.scale_weights", str(NUM_SCALES)),
    ]
    for scale in range(NUM_SCALES):
        name, size = f"hamiltonian.scales.{scale}", f"E{layer}.{scale}"
        entries += [
            _plain(("edge_weights", scale), f"{name}.edge_weights", size),
            Entry(("edges", scale), (f"{name}.edge_indices",), ("2", size), INDICES),
        ]
    return entries


def model_entries(num_layers: int) -> list[Entry]:
    """The entries of a whole model, in the order of the original's state dict."""
    entries = _below(_ENCODER, ("encoder",), "encoder")
    for layer in range(num_layers):
        entries += _below(_MIXER, ("mixers",), f"mamba_layers.{layer}", layer)
    for layer in range(num_layers):
        entries += _below(_propagator(layer), ("propagators",), f"propagator.layers.{layer}", layer)
    return entries + _READOUT


POSITIONAL_PHASE = "encoder.positional_phase"  # [S, D] = position times frequency, ours is the frequency
FREQUENCY: Path = ("encoder", "frequency")


def is_of_edges(path: Path) -> bool:
    """Whether the leaf's last axis counts the edges of one graph."""
    return len(path) > 1 and path[-2] in ("edges", "edge_weights")


def is_buffer(path: Path) -> bool:
    """Whether the leaf is fixed, not trained."""
    return path == FREQUENCY or "edges" in path


def is_index_name(name: str) -> bool:
    """Whether the original's name is that of an edge list."""
    return name.endswith(".edge_indices")


def symmetric_name(edge_indices_name: str) -> str:
    """The buffer that lists the same edges in both directions: [2, 2E], all (i, j) and then all (j, i)."""
    return edge_indices_name.removesuffix("edge_indices") + "_sparse_idx_sym"


def count_layers(names: Collection[str]) -> int:
    """Layers that a state dict's names tell, those in which a name is missing included; at least 1."""
    known = {n.split(".0.", 1)[1] for entry in model_entries(1) if entry.layer is not None for n in entry.names}
    matches = [re.fullmatch(r"(?:mamba_layers|propagator\.layers)\.(\d{1,9})\.(.+)", name) for name in names]
    told = max((int(m[1]) + 1 for m in matches if m and m[2] in known), default=1)
    return min(told, max(len(names), 1))


def shape(dims: Dims, sizes: Mapping[str, int]) -> list[int | None]:
    """The numbers that dimensions such as "2D/G" stand for; None where the sizes do not tell."""
    return [_resolve(dim, sizes) for dim in dims]


def _resolve(dim: str, sizes: Mapping[str, int]) -> int | None:
    factor, size, divisor = re.fullmatch(r"(\d*)([A-Za-z][\d.]*)?(?:/(\w))?", dim).groups()  # type: ignore[union-attr]
    number = int(factor or 1)
    if size is None:
        return number
    if size not in sizes or (divisor and divisor not in sizes):
        return None
    return number * (sizes[size] // max(sizes[divisor], 1) if divisor else sizes[size])
