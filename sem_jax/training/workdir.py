"""The folder of a run: what was run (config.json), its vocabulary (tokenizer.json), checkpoints and metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sem_jax.config import Config, ConfigError, build, upgrade
from sem_jax.data import DataError, Dataset, Tokenizer, load_tokenizer
from sem_jax.data.files import content_digest, folder_atomically, parse_json, read_text, write_atomically
from sem_jax.data.seal import SEAL, sealed, unsealed
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.metrics import validation_losses
from sem_jax.training.rescue import Remedy, in_effect, remedies_in
from sem_jax.training.retention import Choice
from sem_jax.training.state import TrainState, abstract_state, leaves_of_first_stage

_log = logging.getLogger(__name__)
_RECORDED = {"config", "data_fingerprint", "tokenizer", "remedies"}
_RECORDED_OF_EXPORTS = {"step", "weights", "card", "bits", "group"}  # as `sem_jax.sharing.folder` writes them
# A change of these would make the run another one; everything else may change between two starts.
_FIXED_GROUPS = ("model", "data")
_FIXED_FIELDS = ("training.seed", "training.global_batch")
FREE_FIELDS = ("data.cache_dir", "data.path", "data.tokenizer_path")  # the data's fingerprint guards the content
_LARGEST_RECORD = 2**24  # bytes of config.json
_NO_DATA = ""  # fingerprint in a workdir that has not been trained in


def checkpoint_folder(workdir: str | Path) -> Path:
    """Where the checkpoints lie."""
    return Path(workdir) / "checkpoints"


def prepare_workdir(
    workdir: str | Path, config: Config, dataset: Dataset, remedies: Sequence[Remedy] = ()
) -> list[str]:
    """Writes configuration and tokenizer at the first start; checks at the next that they are the same run's.

    A start that has ended before its first checkpoint has left nothing to go on with, so the next one may differ.

    Args:
      workdir: of the run.
      config: the experiment, with the remedies.
      dataset: its tokenizer and its fingerprint are kept.
      remedies: what a rescue has changed, also in the model.

    Returns:
      The fields that differ from the last start, as "name: old -> new".

    Raises:
      ConfigError: the workdir holds a run with another model, seed or batch.
      DataError: it holds a run on other data.
    """
    folder = Path(workdir)
    changes: list[str] = []
    _require_record_of_checkpoints(folder)
    if (folder / "model.safetensors").exists() and not _has_checkpoints(folder):
        _require_no_export(folder)
    if _has_checkpoints(folder):
        record = _read_record(folder)
        changes = _changes(dataclasses.asdict(build(record["config"])), dataclasses.asdict(config))
        started = record["data_fingerprint"] != _NO_DATA
        remedied = {remedy.field for remedy in in_effect(config, remedies)}
        fields = {change: change.split(":")[0] for change in changes}
        fixed = [change for change, field in fields.items() if _is_fixed(field, started) and field not in remedied]
        if fixed:
            raise ConfigError(
                f"{folder} holds a run with another configuration ({'; '.join(fixed)}); give another --workdir, or "
                "start with the configuration of this one to resume it"
            )
        if not started:
            _require_same_tokenizer(folder / "tokenizer.json", dataset.tokenizer)
        elif record["data_fingerprint"] != dataset.fingerprint:
            raise DataError(
                f"{folder} holds a run on other data: text, split or tokenizer have changed since; give another "
                "--workdir, or restore the data to resume it"
            )
    make_folder(folder)
    dataset.tokenizer.save(folder / "tokenizer.json")
    write_record(folder, config, dataset.fingerprint, remedies)
    return changes


@contextlib.contextmanager
def locked_workdir(workdir: str | Path) -> Iterator[None]:
    """Holds the only right to train in a workdir, which is made where it is missing.

    The system frees the lock with the process, however it ends. Readers do not ask for it.

    Raises:
      ConfigError: another process trains there, or the folder cannot be made or written to.
    """
    folder = Path(workdir)
    make_folder(folder)
    try:
        file = open(folder / ".lock", "ab")  # noqa: SIM115 (closed by the with statement below, outside this try)
    except OSError as error:
        raise ConfigError(
            f"the workdir {folder} cannot be written to: {error.strerror}; give --workdir a place that can be"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is training in {folder}; wait for it, stop it, or give another --workdir"
            ) from None
        except OSError as error:  # some network file systems have no locks
            _log.warning("%s cannot be locked (%s); start no second training there", folder, error.strerror)
        yield


def _has_checkpoints(folder: Path) -> bool:
    return any(path.name.isdecimal() for path in checkpoint_folder(folder).glob("[0-9]*"))


def _require_no_export(folder: Path) -> None:
    if exported(folder) is not None:
        raise ConfigError(
            f"{folder} is an exported model, which holds neither checkpoints nor the state of an optimizer; give "
            "--workdir the folder of a run"
        )


def _require_record_of_checkpoints(folder: Path) -> None:
    """Without its record a run would go on with whatever data and seed the next start brings."""
    if _has_checkpoints(folder) and not (folder / "config.json").exists():
        raise ConfigError(
            f"{folder} holds checkpoints, but its config.json is gone, which tells of what run; restore it, or give "
            "another --workdir"
        )


def make_folder(workdir: str | Path) -> None:
    """Makes the folder of a run, and those above it, where they are missing.

    Raises:
      ConfigError: it is a file, or it cannot be made.
    """
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise ConfigError(
            f"the workdir {folder} cannot be made: {reason}; give --workdir a folder, or a place for one that can be "
            "written to"
        ) from error


def create_workdir(workdir: str | Path, config: Config, tokenizer: Tokenizer, state: TrainState) -> None:
    """A new workdir with a state of step 0, as training would write it, but of no data yet: whole, or nothing at all.

    The first training in it may choose any data, seed and batch; model and tokenizer are its own.

    Args:
      workdir: a folder that does not exist, or an empty one.
      config: the experiment.
      tokenizer: its vocabulary.
      state: the `TrainState` that the configuration's training would start from.

    Raises:
      ConfigError: the folder holds something.
      DataError, CheckpointError: it cannot be written.
    """
    folder = Path(workdir).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder} already holds something; give --workdir a new or an empty folder")
    with folder_atomically(folder) as partial:
        tokenizer.save(partial / "tokenizer.json")
        with Checkpointer(checkpoint_folder(partial), config.training.keep_checkpoints) as checkpointer:
            checkpointer.save(0, state)
        write_record(partial, config, _NO_DATA)


def data_fingerprint(workdir: str | Path) -> str | None:
    """The fingerprint of the data that a run was trained on, as of `Dataset`; None before its first training.

    Raises:
      ConfigError: the folder is not a workdir, or its configuration is damaged.
    """
    return _read_record(Path(workdir))["data_fingerprint"] or None


def recorded_remedies(workdir: str | Path) -> list[Remedy]:
    """What a rescue has changed in the run of a workdir; empty before its first checkpoint.

    Raises:
      ConfigError: its configuration is damaged.
    """
    folder = Path(workdir)
    return remedies_in(_read_record(folder)) if (folder / "config.json").exists() and _has_checkpoints(folder) else []


def read_config(workdir: str | Path) -> Config:
    """Configuration of a run.

    Raises:
      ConfigError: the folder is not a workdir, or its configuration is damaged.
    """
    return build(_read_record(Path(workdir))["config"])


def with_own_tokenizer(config: Config, workdir: str | Path) -> Config:
    """The configuration that reads its data with the tokenizer of the workdir."""
    tokenizer_path = str(Path(workdir) / "tokenizer.json")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer_path=tokenizer_path))


def open_workdir(workdir: str | Path) -> tuple[Config, Tokenizer]:
    """Configuration and tokenizer of a run.

    Raises:
      ConfigError: the folder is not a workdir, or its configuration is damaged.
      DataError: its tokenizer is missing or damaged, or of another size than the model's vocabulary.
    """
    folder = Path(workdir)
    record = _read_record(folder)
    config = build(record["config"])
    cure = "restore it; the command that trained this run writes it again when it goes on"
    tokenizer = load_tokenizer(folder / "tokenizer.json", cure)
    if record.get("tokenizer") not in (None, content_digest(folder / "tokenizer.json")):
        raise DataError(
            f"{folder}/tokenizer.json has changed since it was written; restore it. If you changed it on purpose, "
            f'delete "tokenizer" and "{SEAL}" from {folder}/config.json'
        )
    if tokenizer.vocab_size != config.model.vocab_size:
        raise DataError(
            f"{folder}/tokenizer.json has {tokenizer.vocab_size} ids, the model {config.model.vocab_size}; put the "
            "tokenizer back that the run was trained with"
        )
    return config, tokenizer


class Exported(NamedTuple):
    """What the record of an exported model tells besides its configuration."""

    step: int  # of training, behind the weights
    weights: str | None  # digest of model.safetensors
    card: str | None  # digest of README.md
    bits: int | None  # of a rounded weight, as the record has it; None: the weights are as the run left them
    group: int | None  # rounded weights that share a scale


def exported(workdir: str | Path) -> Exported | None:
    """What an exported model records of itself; None for the workdir of a run.

    Raises:
      ConfigError: the folder is neither, or its configuration is damaged.
    """
    record = _read_record(Path(workdir))
    if "step" not in record:
        return None
    return Exported(record["step"], *(record.get(name) for name in ("weights", "card", "bits", "group")))


class Run(NamedTuple):
    """A run at one of its checkpoints."""

    config: Config
    tokenizer: Tokenizer
    step: int
    state: TrainState


def restore_run(workdir: str | Path, step: Choice = None, fallback: bool = False) -> Run:
    """A run as it was saved.

    Args:
      workdir: of `python -m sem_jax.train`.
      step: which checkpoint; None is the newest, "best" the one of the lowest validation loss.
      fallback: whether to take the newest older one that is intact in place of a damaged one; a warning says so.

    Raises:
      ConfigError, DataError, CheckpointError, MetricsError: the workdir is not one, or what it holds is damaged.
    """
    config, tokenizer = open_workdir(workdir)
    _require_no_export(Path(workdir))
    with Checkpointer(checkpoint_folder(workdir), config.training.keep_checkpoints) as checkpointer:
        if step == "best":
            checkpointer.losses |= validation_losses(workdir)
        found, state = checkpointer.restore(abstract_state(config), step, fallback, leaves_of_first_stage(config))
        for damage in checkpointer.passed_over.values():
            _log.warning("%s; step %d takes its place", damage, found)
    return Run(config, tokenizer, found, state)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        record = unsealed(parse_json(read_text(path, _LARGEST_RECORD)))
        if unknown := record.keys() - _RECORDED - _RECORDED_OF_EXPORTS:
            raise KeyError(*sorted(unknown))
        if not isinstance(record["config"], dict) or not isinstance(record["data_fingerprint"], str):
            raise KeyError("config")
        if not isinstance(record.get("step", 0), int) or not 0 <= record.get("step", 0) < 2**31:
            raise KeyError("step")
        remedies_in(record)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{path} does not exist, so {folder} is not the workdir of a run or an exported model; make one with "
            "python -m sem_jax.train"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check that you may read it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({_one_line(error)}); restore it, or start again in another workdir. If you changed it "
            f'on purpose, delete its "{SEAL}"'
        ) from None
    return record | {"config": upgrade(record["config"])}


def write_record(
    folder: Path, config: Config, data_fingerprint: str, remedies: Sequence[Remedy] = (), /, **of_export: int | str
) -> None:
    """Writes config.json; `of_export` are the values of `Exported`."""
    rescued = {"remedies": [list(remedy) for remedy in remedies]} if remedies else {}
    record = {
        "config": json.loads(json.dumps(dataclasses.asdict(config))),  # as it will be read: JSON knows no tuples
        "data_fingerprint": data_fingerprint,
        "tokenizer": content_digest(folder / "tokenizer.json"),
        **rescued,
        **of_export,
    }
    write_atomically(folder / "config.json", json.dumps(sealed(record), indent=2) + "\n")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error!s:.200}".replace("\n", " ")


def _require_same_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    if load_tokenizer(path).fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"the model in {path.parent} has another vocabulary than the data; set config.data.tokenizer_path = {path}"
        )


def _is_fixed(field: str, started: bool) -> bool:
    if not started:
        return field.startswith("model.")
    return field not in FREE_FIELDS and (field.split(".")[0] in _FIXED_GROUPS or field in _FIXED_FIELDS)


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    changes = []
    for name, value in new.items():
        if isinstance(value, dict):
            changes += _changes(old[name], value, f"{prefix}{name}.")
        elif old[name] != value:
            changes.append(f"{prefix}{name}: {old[name]!r} -> {value!r}")
    return changes
