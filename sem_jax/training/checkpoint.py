"""Checkpoints that come back exact to the bit, or not at all and with the cure.

Orbax writes the arrays in the background, renames a checkpoint into place only when it is complete and deletes the
oldest ones. What it leaves open is closed here: it has no checksums, so a flipped bit would be restored silently; it
casts to whatever it is asked for, so a complex leaf restored into a real one would silently lose its imaginary part;
and its own rule for the best checkpoint deletes the newest and takes a NaN for the best.
Each checkpoint therefore carries a record of its leaves:

    <directory>/<step>/state    the arrays, each under the name of its leaf, such as "params/mixer/kernel"
    <directory>/<step>/record   the step, and the dtype, the shape and the checksum of each leaf

Each process writes and reads the parts of the arrays that its own devices hold. So the checksum of a leaf is a sum over
parts, the same however the leaf is cut (`sem_jax.training.checksum`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sem_jax.errors import SemJaxError
from sem_jax.optim import is_sound
from sem_jax.training.checksum import checksums
from sem_jax.training.leaf_record import (
    CheckpointError,
    Record,
    changed_leaves,
    form_of,
    named_leaves,
    record_crc,
    require_same_forms,
)
from sem_jax.training.processes import gather, is_first
from sem_jax.training.retention import Choice, NewestAndBest, best_step

PyTree = Any
_NONE: Mapping[str, np.ndarray] = MappingProxyType({})
_CLEARING = 5  # seconds at most
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is not complete


class _Damaged(Exception):
    """What is broken inside one checkpoint, as a clause."""


class Checkpointer:
    """The checkpoints of one run; a context manager, which waits for the last save when it is left.

    Only `save` and `set_aside` change the directory, so a run may be evaluated while another process trains it. Where a
    run has several processes, each of them calls every method, in the same order.

    Attributes:
      saved_on: the mesh that wrote the checkpoint last restored, in words; "" where it is not known.
      losses: of the validation, by step, as far as they are known; the owner adds to it. The checkpoint of the lowest
        one is the best; a loss that is not finite never is. It is kept besides the newest ones.
      passed_over: what is damaged, by step, in the checkpoints that the last `restore` left for an older one.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int, mesh: str = ""):
        """Opens the directory; the first `save` creates it and clears what a killed save has left.

        Args:
          directory: holds one folder a step.
          keep: number of checkpoints that stay, the newest ones; at least 1. The best one stays, too.
          mesh: on which this run computes, in words; for the record.

        Raises:
          CheckpointError: `keep` is below 1, or `directory` is a file.
        """
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._mesh = mesh
        self.saved_on = ""
        self.losses: dict[int, float] = {}
        self.passed_over: dict[int, str] = {}
        if keep < 1:
            raise CheckpointError(f"keep = {keep} would delete every checkpoint; keep at least 1")
        if self._directory.is_file():
            raise CheckpointError(f"{self._directory} is a file; give a directory for the checkpoints")
        logging.getLogger("absl").addFilter(_without_orbax_chatter)
        logging.getLogger("asyncio").addFilter(_without_unread_failures)
        self._reader = self._open(writing=False)
        self._writer: ocp.CheckpointManager | None = None
        self._unfinished: int | None = None
        self._current: tuple[int, Record] | None = None  # the state last saved or restored

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1 or issubclass(kind, SemJaxError):
            self.close()
        # Else a process may be lost, for whose part of the last save `close` would wait.

    def save(self, step: int, state: PyTree) -> None:
        """Copies the state to the host and writes it in the background.

        The arrays may be donated or overwritten as soon as this returns. A step that is already there is replaced.

        Args:
          step: training step, not below that of the newest checkpoint.
          state: any pytree whose leaves are jax or numpy arrays of numbers or booleans.

        Raises:
          CheckpointError: this save or the one before it failed, a leaf is no such array, or a newer step exists.
        """
        newest = self.latest_step()
        arrays = named_leaves(state)
        sums = checksums(arrays)
        record = {name: form_of(array) | {"sum": sums[name]} for name, array in arrays.items()}
        if step == newest and (step, record) == self._current:
            return
        if newest is not None and step < newest:
            raise CheckpointError(
                f"step {step} cannot be saved: {self.path(newest)} is newer. Start from that one, move the newer ones "
                "away or choose another directory"
            )
        with self._failing_loudly(step):
            self._write(step, arrays, record, replace=step == newest)
        self._unfinished, self._current = step, (step, record)

    def wait(self) -> None:
        """Returns when the last save is complete on disk.

        Raises:
          CheckpointError: it could not be written; nothing of it is left, and the older checkpoints are untouched.
        """
        if self._unfinished is None or self._writer is None:
            return
        step, self._unfinished = self._unfinished, None
        with self._failing_loudly(step):
            self._writer.wait_until_finished()

    def check(self) -> None:
        """Raises as `wait` does if the last save of a process alone has failed already, and returns at once else."""
        alone = jax.process_count() == 1  # several find out at the next save, which they begin together
        if alone and self._writer is not None and not self._writer.is_saving_in_progress():
            self.wait()

    def close(self) -> None:
        """Waits for the last save and releases the threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._reader.close()
            if self._writer is not None:
                self._writer.close()

    def latest_step(self) -> int | None:
        """The newest step in the directory, None if there is none; raises as `wait` does."""
        return max(self._steps(), default=None)

    def newest_finite(self) -> int | None:
        """The newest step whose checkpoint is intact and holds what `finite_guard` lets pass; None if there is none.

        Raises as `wait` does. It reads whole checkpoints, so it is for the end of a run that went wrong.
        """
        return next((step for step in reversed(self._steps()) if self._is_finite(step)), None)

    def _is_finite(self, step: int) -> bool:
        try:
            arrays = self._read_arrays(step, self._read_record(step)).values()  # whole, on every process alike
        except _Damaged:
            return False
        return all(is_sound(array).all() for array in arrays)

    def restore(
        self, like: PyTree, step: Choice = None, fallback: bool = False, absent: Mapping[str, np.ndarray] = _NONE
    ) -> tuple[int, PyTree]:
        """The state as it was saved, bit for bit.

        A damaged checkpoint is an error even where an older one is intact: to give up the steps between them is the
        user's decision, and the message says how to take it.

        Args:
          like: pytree with the structure, shapes and dtypes of the state; leaves are arrays or `jax.ShapeDtypeStruct`.
          step: which checkpoint; None is the newest, "best" the one of the lowest of `losses`.
          fallback: whether to take the newest older one that is intact in place of a damaged one.
          absent: by name, what leaves of `like` are where the checkpoint was saved without them.

        Returns:
          The step, and a pytree of `like`'s structure. Numpy leaves of `like`, and 64-bit ones that this JAX would
          truncate, are numpy arrays; all others are `jax.Array`s with the sharding that `like` gives.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged, or its leaves are not those of `like`.
        """
        steps = self._steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self._directory}; check the path, or train first")
        wanted, step = step, self._choose(step, steps)
        self.passed_over = {}
        for candidate in [each for each in reversed(steps) if each <= step]:
            try:
                return candidate, self._restore(like, candidate, absent)
            except _Damaged as damage:
                if self._has_gone_on(steps):  # and may have deleted what was just read
                    return self.restore(like, wanted, fallback, absent)
                if not fallback:
                    raise CheckpointError(self._cure(step, damage)) from damage
                self.passed_over[candidate] = f"{self.path(candidate)} is damaged: {damage}"
        raise CheckpointError(f"{self.passed_over[step]}. {self._none_intact()}")

    def _choose(self, wanted: Choice, steps: list[int]) -> int:
        step = best_step(self.losses, steps) if wanted == "best" else wanted
        if wanted is None:
            step = steps[-1]
        if step is None:
            raise CheckpointError(
                f"which checkpoint in {self._directory} is the best is not known: none of {steps} was validated with a "
                "finite loss, as far as metrics.jsonl tells; take the newest, or one of these steps"
            )
        if step not in steps:
            raise CheckpointError(f"there is no checkpoint {step} in {self._directory}, only {steps}")
        return step

    def _restore(self, like: PyTree, step: int, absent: Mapping[str, np.ndarray]) -> PyTree:
        targets = named_leaves(like)
        record = self._read_record(step)
        added = {name: value for name, value in absent.items() if name not in record}
        saved = {name: target for name, target in targets.items() if name not in added}
        require_same_forms(record, saved, self.path(step))
        arrays = self._read_arrays(step, record, saved) | added
        self._current = (step, record)
        leaves = [_place(arrays[name], target) for name, target in targets.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _has_gone_on(self, steps: list[int]) -> bool:
        """Whether the run has saved another checkpoint since these were all."""
        return max(self._steps(), default=-1) > steps[-1]

    def set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, so that later steps can be saved; returns its new name.

        Raises:
          CheckpointError: it cannot be renamed.
        """
        names = (f"{step}.damaged{number or ''}" for number in itertools.count())
        name = next(name for name in names if not (self._directory / name).exists())
        failure = None
        if is_first():
            try:
                self.path(step).rename(self._directory / name)
            except OSError as error:
                failure = f"{self.path(step)} cannot be renamed: {error.strerror}; move it away by hand"
        if failure := gather(failure)[0]:
            raise CheckpointError(failure)
        return name

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self._directory / str(step)

    def _open(self, *, writing: bool) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            create=writing,
            cleanup_tmp_directories=writing,
            preservation_policy=NewestAndBest(self._keep, self.losses),
            save_root_metadata=False,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def _steps(self) -> list[int]:
        self.wait()
        self._reader.reload()
        return gather(sorted(self._reader.all_steps()))[0]  # one answer, whoever sees a new folder first

    def _write(self, step: int, arrays: dict[str, Any], record: Record, *, replace: bool) -> None:
        self._writer = self._writer or self._open(writing=True)
        self._writer.reload()
        if replace:
            self._writer.delete(step)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave({name: array for name, array in arrays.items() if array.size}),
            record=ocp.args.JsonSave({"step": step, "leaves": record, "mesh": self._mesh, "crc32": record_crc(record)}),
        )
        self._writer.save(step, args=items, force=True)

    @contextlib.contextmanager
    def _failing_loudly(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # one full disk raises many types, from orbax, tensorstore and the system
            failed, self._writer, self._current, self._unfinished = self._writer, None, None, None
            with contextlib.suppress(Exception):
                if failed is not None:
                    failed.close()
            self._clear_unfinished()
            # JAX does not touch the disk: what it reports is a device or another process.
            lost = isinstance(error, jax.errors.JaxRuntimeError)
            cure = "see whether another process or a device is lost" if lost else "check free space and permissions"
            raise CheckpointError(
                f"{self.path(step)} could not be written ({_summary(error)}). Nothing of it is left and the older "
                f"checkpoints are untouched; {cure}, then start again from the newest"
            ) from error

    def _clear_unfinished(self) -> None:
        """Removes what is left of a save that failed, until its other threads have stopped to make it again."""
        quiet, deadline = 0, time.monotonic() + _CLEARING
        while is_first() and quiet < 5 and time.monotonic() < deadline:
            left = list(self._directory.glob(f"*{_UNFINISHED}*"))
            for folder in left:
                shutil.rmtree(folder, ignore_errors=True)
            quiet = 0 if left else quiet + 1
            time.sleep(0.05)

    def _read_record(self, step: int) -> Record:
        with _agreed(), _reading("its record"):
            content = self._reader.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
            record, crc, self.saved_on = content["leaves"], content["crc32"], content.get("mesh", "")
            written = content.get("step", step)  # version 0.1 did not record it
        if record_crc(record) != crc:
            raise _Damaged("its record does not match the checksum")
        if written != step:
            raise _Damaged(f"it holds step {written}, so its folder has been renamed; give it its name back")
        return record

    def _read_arrays(self, step: int, record: Record, targets: dict[str, Any] | None = None) -> dict[str, Any]:
        """The leaves, of which those that `targets` puts on devices lie there already; the others are numpy arrays."""
        # What version 0.1 recorded can be verified of whole leaves only.
        shardings = {
            name: _sharding_of(target) for name, target in (targets or {}).items() if "crc32" not in record[name]
        }
        arguments = {name: _restore_arguments(shardings.get(name)) for name, e in record.items() if 0 not in e["shape"]}
        with _agreed(), _reading("its data"):
            state = ocp.args.PyTreeRestore(restore_args=arguments)
            stored = self._reader.restore(step, args=ocp.args.Composite(state=state)).state
            # Orbax does not store arrays without elements.
            empty = {name: np.zeros(e["shape"], e["dtype"]) for name, e in record.items() if 0 in e["shape"]}
            arrays = {name: (stored | empty)[name] for name in record}
            broken = [name for name, entry in record.items() if not form_of(arrays[name]).items() <= entry.items()]
        with _reading("its data"):
            broken += changed_leaves(record, arrays)
        if broken:
            raise _Damaged(f"the bytes of leaf {broken[0]} do not match their checksum")
        return arrays

    def _cure(self, step: int, damage: _Damaged) -> str:
        damaged = f"{self.path(step)} is damaged: {damage}"
        for older in reversed([earlier for earlier in self._steps() if earlier < step]):
            with contextlib.suppress(_Damaged):
                self._read_arrays(older, self._read_record(older))
                return (
                    f"{damaged}. Delete it or move it away to go on from step {older}, the newest that is intact; "
                    "--fallback does so by itself"
                )
        return f"{damaged}. {self._none_intact()}"

    def _none_intact(self) -> str:
        return f"No older one is intact: move {self._directory} away to start anew"


@contextlib.contextmanager
def _agreed() -> Iterator[None]:
    """What one process finds damaged is damaged for all: alone it would go on elsewhere, and the others wait."""
    damage = None
    try:
        yield
    except _Damaged as found:
        damage = found
    said = [each for each in gather(damage and str(damage)) if each]
    if said:
        raise damage or _Damaged(said[0])


@contextlib.contextmanager
def _reading(part: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, PermissionError):
        raise  # says nothing about the files
    except Exception as error:  # broken files raise whatever the parser at that byte happens to raise
        raise _Damaged(f"{part} cannot be read ({_summary(error)})") from error


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"


def _without_orbax_chatter(message: logging.LogRecord) -> bool:
    # Orbax logs the traceback of one failure in every thread that it passes; here it is raised, once.
    wanted = message.levelno >= logging.WARNING and not message.exc_info
    return wanted or not message.pathname.startswith(os.path.dirname(ocp.__file__))


def _without_unread_failures(message: logging.LogRecord) -> bool:
    # Orbax leaves further failures of the same save or restore unread; asyncio logs a traceback of each.
    return "exception was never retrieved" not in str(message.msg)


def _sharding_of(target: Any) -> jax.sharding.Sharding | None:
    """Where a leaf is read to; None for the host, from which 64-bit numbers go nowhere if this JAX would cut them."""
    if (
        not isinstance(target, jax.Array | jax.ShapeDtypeStruct)
        or jax.dtypes.canonicalize_dtype(target.dtype) != target.dtype
    ):
        return None
    return target.sharding


def _restore_arguments(sharding: jax.sharding.Sharding | None) -> ocp.RestoreArgs:
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)


def _place(array: Any, target: Any) -> jax.Array | np.ndarray:
    """An array that was read, where the target wants it; most are there already."""
    if isinstance(array, jax.Array) or not isinstance(target, jax.Array | jax.ShapeDtypeStruct):
        return array
    sharding = _sharding_of(target)
    if sharding is not None:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    placed = jnp.asarray(array)
    return placed if placed.dtype == array.dtype else array
