"""What a state dict must hold, and everything that is wrong with one that does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from sem_jax.interop import names
from sem_jax.interop.buffers import both_directions, frequency_of
from sem_jax.interop.errors import InteropError

Arrays = Mapping[str, np.ndarray]
Sizes = dict[str, int]
Forms = dict[str, names.Dims]


class Schema(NamedTuple):
    """What the names and shapes of a state dict tell."""

    num_layers: int
    entries: list[names.Entry]
    sizes: Sizes  # by the symbols of docs/mathematics.md, such as D; E0.2: edges of layer 0, scale 2


def read_schema(arrays: Arrays, label: str) -> Schema:
    """The schema of a state dict, if it is one of the original.

    Args:
      arrays: names to arrays.
      label: what an error calls them.

    Raises:
      InteropError: entries are missing, unexpected, misshaped or impossible; all of them are listed.
    """
    num_layers = names.count_layers(arrays)
    entries = names.model_entries(num_layers)
    wanted: Forms = {names.POSITIONAL_PHASE: ("S", "D")} | {
        name: entry.dims for entry in entries for name in entry.names
    }
    sizes = _sizes(arrays, wanted)
    problems = list(_form_problems(arrays, wanted, sizes)) or list(_value_problems(arrays, sizes["D"]))
    if problems:
        first = f"{label} is not a state dict of the original, {len(problems)} entries do not fit:"
        last = "Give exactly the entries of its model.state_dict()"
        raise InteropError("\n".join([first, *(f"  {problem}" for problem in problems), last]))
    return Schema(num_layers, entries, sizes)


def _sizes(arrays: Arrays, wanted: Forms) -> Sizes:
    """The sizes that make the fewest shapes wrong, so that an entry of the wrong shape is not taken for the measure."""
    votes: dict[str, Counter[int]] = {}
    for name, dims in wanted.items():
        shape = arrays[name].shape if name in arrays else ()
        for dim, size in zip(dims, shape, strict=False) if len(dims) == len(shape) else ():
            if dim[0].isalpha() and "/" not in dim:
                votes.setdefault(dim, Counter())[size] += 1
    sizes = {dim: counts.most_common(1)[0][0] for dim, counts in votes.items()}
    present = {name: dims for name, dims in wanted.items() if name in arrays}
    for dim in [dim for dim, counts in votes.items() if len(counts) > 1]:

        def misfits(size: int, dim: str = dim) -> int:
            trial = sizes | {dim: size}
            return sum(not _fits(arrays[name].shape, names.shape(dims, trial)) for name, dims in present.items())

        sizes[dim] = min((size for size, _ in votes[dim].most_common()), key=misfits)
    return sizes


def _fits(shape: tuple[int, ...], wanted: list[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))


def _form_problems(arrays: Arrays, wanted: Forms, sizes: Sizes) -> Iterator[str]:
    """Entries that are missing, unexpected or of the wrong shape or type."""
    derived: Forms = {
        names.symmetric_name(name): ("2", f"2{dims[1]}") for name, dims in wanted.items() if names.is_index_name(name)
    }
    for name, dims in wanted.items():
        if name not in arrays:
            yield f"missing     {name} {_show(names.shape(dims, sizes))}"
    for name, array in arrays.items():
        if name not in wanted and name not in derived:
            yield f"unexpected  {name} {array.dtype}{list(array.shape)}"
            continue
        shape = names.shape((wanted | derived)[name], sizes)
        integers = names.is_index_name(name) or name in derived
        if not _fits(array.shape, shape) or not jnp.issubdtype(array.dtype, jnp.integer if integers else jnp.floating):
            kind = "integers" if integers else "floating point numbers"
            yield f"misshaped   {name} {array.dtype}{list(array.shape)}, expected {kind} {_show(shape)}"


def _show(shape: list[int | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _value_problems(arrays: Arrays, num_nodes: int) -> Iterator[str]:
    """What is wrong inside entries of the right form."""
    if frequency_of(arrays[names.POSITIONAL_PHASE]) is None:
        yield f"impossible  {names.POSITIONAL_PHASE}: not position·frequency, nor position·10000^(−j/D)"
    for name, edges in arrays.items():
        if not names.is_index_name(name):
            if jnp.issubdtype(edges.dtype, jnp.floating) and (bad := _count_lost(edges)):
                yield f"impossible  {name}: {bad} of {edges.size} numbers are NaN, infinite or too large for float32"
            continue
        symmetric_name = names.symmetric_name(name)
        symmetric = arrays.get(symmetric_name)
        if edges.size and not 0 <= edges.min() <= edges.max() < num_nodes:
            yield f"impossible  {name}: nodes {edges.min()}..{edges.max()} are not all in 0..{num_nodes - 1}"
        elif np.any(edges[0] == edges[1]):
            yield f"impossible  {name}: an edge joins a node to itself"
        elif symmetric is not None and not np.array_equal(_sorted(symmetric), _sorted(both_directions(edges))):
            yield f"impossible  {symmetric_name}: not the edges of edge_indices in both directions"


def _count_lost(array: np.ndarray) -> int:
    with np.errstate(over="ignore"):
        return int(array.size - np.count_nonzero(np.isfinite(array.astype(np.float32))))


def _sorted(edges: np.ndarray) -> np.ndarray:
    return edges[:, np.lexsort(edges)]
