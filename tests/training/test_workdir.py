"""A workdir belongs to one run."""

import dataclasses
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from small import fields

from sem_jax.config import ConfigError, build
from sem_jax.data import DataError
from sem_jax.data.seal import unsealed
from sem_jax.data.tokenizers.byte import ByteTokenizer
from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.leaf_record import CheckpointError
from sem_jax.training.workdir import (
    checkpoint_folder,
    create_workdir,
    data_fingerprint,
    locked_workdir,
    open_workdir,
    prepare_workdir,
    read_config,
)

TOKENIZER = CharTokenizer("abcd")
DATASET = SimpleNamespace(tokenizer=TOKENIZER, fingerprint="first")


def config(**changes):
    return build(fields(model__vocab_size=4, **changes))


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "runs" / "one"
    assert prepare_workdir(folder, config(), DATASET) == []
    (folder / "checkpoints" / "4").mkdir(parents=True)  # a run has begun with its first checkpoint
    return folder


def contents(workdir):
    return {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}


def record_of(workdir):
    return unsealed(json.loads((workdir / "config.json").read_text()))


def test_configuration_and_tokenizer_come_back(workdir):
    opened, tokenizer = open_workdir(workdir)
    assert opened == config()
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    assert checkpoint_folder(workdir).parent == workdir


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("model__hidden_dim", 32, "model.hidden_dim: 16 -> 32"),
        ("model__propagator__cayley_dt", 0.2, "model.propagator.cayley_dt: 0.1 -> 0.2"),
        ("training__seed", 1, "training.seed: 0 -> 1"),
        ("training__global_batch", 8, "training.global_batch: 4 -> 8"),
        ("data__seq_length", 8, "data.seq_length: 16 -> 8"),
        ("data__validation_fraction", 0.2, "data.validation_fraction: 0.1 -> 0.2"),
    ],
)
def test_another_run_is_refused_by_field_and_leaves_the_workdir_alone(workdir, field, value, text):
    before = contents(workdir)
    with pytest.raises(ConfigError) as error:
        prepare_workdir(workdir, config(**{field: value}), DATASET)
    assert text in str(error.value)
    assert "--workdir" in str(error.value)
    assert contents(workdir) == before


def test_a_start_without_a_checkpoint_gives_way_to_a_corrected_one(tmp_path):
    prepare_workdir(tmp_path, config(), DATASET)
    corrected = config(model__hidden_dim=32, training__seed=1)
    other = SimpleNamespace(tokenizer=CharTokenizer("abce"), fingerprint="second")
    assert prepare_workdir(tmp_path, corrected, other) == []
    assert open_workdir(tmp_path)[0] == corrected


def test_a_lost_record_is_named_where_there_are_checkpoints(workdir):
    (workdir / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds checkpoints, but its config\.json is gone"):
        prepare_workdir(workdir, config(), DATASET)


def test_no_flipped_bit_in_a_record_passes(workdir):
    path = workdir / "config.json"
    content = path.read_bytes()
    wanted = record_of(workdir)
    rng = np.random.default_rng(0)
    for position in rng.choice(8 * len(content), 400, replace=False):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = open_workdir(workdir)[0]
        except ConfigError:
            continue
        assert found == config()
        assert record_of(workdir) == wanted  # a blank became another blank


def test_a_record_edited_on_purpose_is_read_without_its_seal(workdir):
    path = workdir / "config.json"
    record = json.loads(path.read_text())
    record["config"]["sampling"]["prompt"] = "c"
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r'its seal does not fit.*changed it on purpose, delete its "seal"'):
        read_config(workdir)
    path.write_text(json.dumps(unsealed_by_hand(record)))
    assert read_config(workdir).sampling.prompt == "c"


def unsealed_by_hand(record):
    return {name: value for name, value in record.items() if name != "seal"}


def test_the_data_of_a_run_are_known(workdir, converted):
    assert data_fingerprint(workdir) == "first"
    assert data_fingerprint(converted) is None


def test_a_second_training_in_a_workdir_is_refused_until_the_first_has_ended(tmp_path):
    with locked_workdir(tmp_path / "run"):
        second = locked_workdir(tmp_path / "run")
        with pytest.raises(ConfigError, match=r"another process is training in .*run; wait for it"):
            second.__enter__()
    with locked_workdir(tmp_path / "run"):
        pass


def test_a_killed_training_leaves_no_lock(tmp_path):
    program = (
        "import os, signal\n"
        "from sem_jax.training.workdir import locked_workdir\n"
        f"with locked_workdir({str(tmp_path)!r}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == -signal.SIGKILL
    with locked_workdir(tmp_path):
        pass


def test_other_data_is_refused(workdir):
    with pytest.raises(DataError, match="run on other data"):
        prepare_workdir(workdir, config(), SimpleNamespace(tokenizer=TOKENIZER, fingerprint="second"))


def test_harmless_changes_are_listed_once_and_kept(workdir):
    changed = config(training__max_steps=40, optimizer__learning_rate=2e-2, data__path="elsewhere", name="longer")
    assert sorted(prepare_workdir(workdir, changed, DATASET)) == [
        "data.path: 'unused' -> 'elsewhere'",
        "name: 'sem' -> 'longer'",
        "optimizer.learning_rate: 0.01 -> 0.02",
        "training.max_steps: 12 -> 40",
    ]
    assert prepare_workdir(workdir, changed, DATASET) == []
    assert open_workdir(workdir)[0] == changed


def test_a_workdir_of_version_0_1_0_is_read_and_resumed(workdir):
    path = workdir / "config.json"
    record = record_of(workdir)
    del record["tokenizer"]
    model = record["config"]["model"]
    del model["layout"], model["blocks"]
    model["propagator"]["cg_tol"] = model["propagator"].pop("solver_tol")
    model["encoder"]["population_rate"] = 0.01
    path.write_text(json.dumps(record))
    assert read_config(workdir) == config()
    assert prepare_workdir(workdir, config(), DATASET) == []


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json does not exist.*sem_jax\.train"):
        open_workdir(tmp_path / "missing")


def broken(workdir, content):
    (workdir / "config.json").write_text(content)
    return workdir


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "{}", '{"config": 3, "data_fingerprint": "x"}', '{"config": {}}']
)
def test_a_damaged_record_is_an_error_to_readers_and_writers(workdir, content):
    broken(workdir, content)
    for use in (lambda: open_workdir(workdir), lambda: prepare_workdir(workdir, config(), DATASET)):
        with pytest.raises(ConfigError, match=r"config\.json is damaged"):
            use()


def test_a_record_of_another_version_is_refused_by_field(workdir):
    record = {"config": dataclasses.asdict(config()) | {"colour": 1}, "data_fingerprint": "first"}
    with pytest.raises(ConfigError, match=r"config\.colour does not exist"):
        open_workdir(broken(workdir, json.dumps(record)))


def test_another_tokenizer_in_the_workdir_is_refused_by_size(workdir):
    ByteTokenizer().save(workdir / "tokenizer.json")
    with pytest.raises(DataError, match=r'tokenizer\.json has changed.*delete "tokenizer" and "seal" from'):
        open_workdir(workdir)
    record = record_of(workdir)
    del record["tokenizer"]
    broken(workdir, json.dumps(record))
    with pytest.raises(DataError, match=r"tokenizer\.json has 261 ids, the model 4"):
        open_workdir(workdir)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("{")])
def test_a_missing_or_damaged_tokenizer_is_refused(workdir, damage):
    damage(workdir / "tokenizer.json")
    with pytest.raises(DataError, match=r"tokenizer\.json.*; restore it; the command that trained this run writes it"):
        open_workdir(workdir)
    prepare_workdir(workdir, config(), DATASET)
    assert open_workdir(workdir)[1].fingerprint == TOKENIZER.fingerprint


@pytest.fixture
def converted(tmp_path):
    """A workdir with a state and without data."""
    create_workdir(tmp_path / "converted", config(), TOKENIZER, {"params": np.arange(3.0)})
    return tmp_path / "converted"


def test_a_new_workdir_holds_configuration_tokenizer_and_state(converted):
    opened, tokenizer = open_workdir(converted)
    assert opened == read_config(converted) == config()
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    with Checkpointer(checkpoint_folder(converted), keep=1) as checkpointer:
        step, state = checkpointer.restore({"params": np.zeros(3)})
    assert step == 0
    np.testing.assert_array_equal(state["params"], np.arange(3.0))


def test_the_first_data_of_a_new_workdir_are_free_and_stay(converted):
    chosen = config(
        data__seq_length=8, data__validation_fraction=0.2, training__seed=3, training__global_batch=8,
        training__micro_batch=8,
    )  # fmt: skip
    changes = prepare_workdir(converted, chosen, DATASET)
    assert "data.seq_length: 16 -> 8" in changes
    assert prepare_workdir(converted, chosen, DATASET) == []
    with pytest.raises(ConfigError, match=r"data\.seq_length: 8 -> 16"):
        prepare_workdir(converted, config(), DATASET)
    with pytest.raises(DataError, match="run on other data"):
        prepare_workdir(converted, chosen, SimpleNamespace(tokenizer=TOKENIZER, fingerprint="second"))


def test_model_and_tokenizer_of_a_new_workdir_are_its_own(converted):
    before = {path.name: path.read_bytes() for path in converted.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"model\.hidden_dim: 16 -> 32"):
        prepare_workdir(converted, config(model__hidden_dim=32), DATASET)
    other = SimpleNamespace(tokenizer=CharTokenizer("abce"), fingerprint="first")
    with pytest.raises(DataError, match=r"another vocabulary .*tokenizer_path = .*converted/tokenizer\.json"):
        prepare_workdir(converted, config(), other)
    assert {path.name: path.read_bytes() for path in converted.iterdir() if path.is_file()} == before


def test_a_workdir_is_not_made_where_something_lies(converted, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (converted, tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match="already holds something"):
            create_workdir(path, config(), TOKENIZER, {})
    (tmp_path / "empty").mkdir()
    create_workdir(tmp_path / "empty", config(), TOKENIZER, {"params": np.zeros(2)})
    assert open_workdir(tmp_path / "empty")[0] == config()


def test_of_a_workdir_that_cannot_be_made_nothing_is_left(tmp_path):
    with pytest.raises(CheckpointError, match="leaf name is 'x'"):
        create_workdir(tmp_path / "new", config(), TOKENIZER, {"name": "x"})
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/new"):
        create_workdir(tmp_path / "file" / "new", config(), TOKENIZER, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
