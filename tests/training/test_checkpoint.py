"""Checkpoints: exact to the bit, or an error that names the damage and the cure."""

import gc
import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.leaf_record import CheckpointError


class Moments(NamedTuple):
    count: jax.Array
    mu: dict


class Empty(NamedTuple):
    pass


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(2, 3, 50)).astype(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    special_bits = np.concatenate([special.view(np.uint32), np.array([0x7FC00123, 0xFFC00001], np.uint32)])
    return {
        "params": {
            "kernel": jnp.asarray(normal[0] + 1j * normal[1], jnp.complex64),
            "scale": jnp.asarray(normal[0, 0], jnp.bfloat16),
            "special": jnp.asarray(special_bits.view(np.float32)),
            "noise": jnp.asarray(rng.integers(0, 2**32, 20_000, np.uint32)),  # no compression: a flipped bit is silent
            "none": jnp.zeros((0, 4)),
        },
        "opt_state": (Moments(jnp.int32(7 + seed), {"kernel": jnp.asarray(normal[1])}), Empty(), None),
        "guard": [jnp.asarray(True), jnp.asarray([True, False])],
        "position": np.array(2**40 + seed, np.int64),
        "scalar": np.float32(0.1),
        "transposed": normal[1].T,
    }


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), (_, e) in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree_util.tree_leaves_with_path(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert (a.dtype, a.shape) == (e.dtype, e.shape), name
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes(), name


def saved(directory, *steps, keep=10):
    with Checkpointer(directory, keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step))
    return directory


def restore(directory, like=None, step=None):
    with Checkpointer(directory, 10) as checkpointer:
        return checkpointer.restore(make_state() if like is None else like, step)


def files_of(checkpoint):
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


def largest_file(checkpoint):
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_bit(path, position=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * position)] ^= 0x10
    path.write_bytes(content)


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


# What is saved comes back.


def test_round_trip_is_exact_to_the_bit(tmp_path):
    step, state = restore(saved(tmp_path / "deep" / "checkpoints", 3))
    assert step == 3
    assert_same_bits(state, make_state(3))
    assert isinstance(state["params"]["kernel"], jax.Array)
    assert isinstance(state["position"], np.ndarray)


def test_like_may_be_abstract(tmp_path):
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state())
    _, state = restore(saved(tmp_path, 3), like)
    assert_same_bits(state, make_state(3))  # the 64-bit position too, although this JAX has 32 bits


def test_restored_state_can_be_donated(tmp_path):
    like = {"w": jnp.arange(1000.0)}
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(1, like)
        _, state = checkpointer.restore(like)
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s), donate_argnums=0)(state)
    np.testing.assert_array_equal(doubled["w"], 2 * np.arange(1000.0))


def test_leaves_go_where_like_has_them(tmp_path):
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    like = {"w": jax.device_put(jnp.arange(4.0), sharding)}
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(1, like)
        _, state = checkpointer.restore(like)
    assert state["w"].sharding == sharding


def test_state_may_change_as_soon_as_save_returns(tmp_path):
    on_host = np.zeros(1 << 20, np.float32)
    on_device = jnp.zeros(1 << 20)
    increment = jax.jit(lambda x: x + 1, donate_argnums=0)
    with Checkpointer(tmp_path, 1) as checkpointer:
        checkpointer.save(1, {"host": on_host, "device": on_device})
        on_host += 1
        for _ in range(5):
            on_device = increment(on_device)
        on_device.block_until_ready()
        _, state = checkpointer.restore({"host": on_host, "device": on_device})
    assert not state["host"].any()
    assert not state["device"].any()


def test_newest_are_kept(tmp_path):
    saved(tmp_path, 1, 5, 9, 20, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "9"]
    for step in (9, 20):
        assert_same_bits(restore(tmp_path, step=step)[1], make_state(step))


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_is_kept_besides_the_newest(tmp_path, keep):
    losses = {1: 3.0, 5: 1.0, 9: 2.0, 12: np.nan, 20: -np.inf}
    for step, loss in losses.items():
        with Checkpointer(tmp_path, keep) as checkpointer:  # a new process each time, which is told what was
            checkpointer.losses |= {earlier: losses[earlier] for earlier in losses if earlier < step}
            checkpointer.save(step, make_state(step))
            checkpointer.losses[step] = loss
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == ([5, 20] if keep == 1 else [5, 12, 20])
    with Checkpointer(tmp_path, keep) as checkpointer:
        checkpointer.losses |= losses
        step, state = checkpointer.restore(make_state(), "best")
    assert step == 5
    assert_same_bits(state, make_state(5))


def test_the_best_is_not_known_where_no_loss_is_finite(tmp_path):
    saved(tmp_path, 1, 5)
    with Checkpointer(tmp_path, 2) as checkpointer:
        checkpointer.losses |= {1: np.nan, 3: 1.0}
        with pytest.raises(CheckpointError, match=r"not known: none of \[1, 5\] was validated with a finite loss"):
            checkpointer.restore(make_state(), "best")


def test_newest_are_kept_across_processes(tmp_path):
    for step in (1, 5, 9):
        saved(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "9"]


def test_step_is_restored_by_number(tmp_path):
    step, state = restore(saved(tmp_path, 1, 5, 9), step=5)
    assert step == 5
    assert_same_bits(state, make_state(5))


def test_same_state_twice_is_written_once(tmp_path):
    saved(tmp_path, 4)
    before = largest_file(tmp_path).stat().st_mtime_ns
    with Checkpointer(tmp_path, 2) as checkpointer:
        checkpointer.restore(make_state())
        checkpointer.save(4, make_state(4))
        checkpointer.save(4, make_state(4))
    assert largest_file(tmp_path).stat().st_mtime_ns == before


def test_same_step_with_another_state_is_replaced(tmp_path):
    saved(tmp_path, 3, 4)
    with Checkpointer(tmp_path, 2) as checkpointer:
        checkpointer.save(4, make_state(44))
        checkpointer.save(4, make_state(45))
        assert_same_bits(checkpointer.restore(make_state())[1], make_state(45))
    assert_same_bits(restore(tmp_path, step=3)[1], make_state(3))


def test_same_state_is_written_again_over_a_damaged_checkpoint(tmp_path):
    saved(tmp_path, 3, 4)
    flip_bit(largest_file(tmp_path / "4"))
    with Checkpointer(tmp_path, 2) as checkpointer:
        checkpointer.restore(make_state(), step=3)
        checkpointer.save(4, make_state(4))
    assert_same_bits(restore(tmp_path)[1], make_state(4))


def test_step_deleted_by_hand_can_be_saved_again(tmp_path):
    with Checkpointer(tmp_path, 2) as checkpointer:
        checkpointer.save(1, make_state(1))
        checkpointer.save(2, make_state(2))
        checkpointer.wait()
        shutil.rmtree(tmp_path / "2")
        checkpointer.save(2, make_state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_latest_step(tmp_path):
    with Checkpointer(tmp_path, 2) as checkpointer:
        assert checkpointer.latest_step() is None
        checkpointer.save(3, make_state())
        assert checkpointer.latest_step() == 3
        checkpointer.save(10, make_state())
        assert checkpointer.latest_step() == 10
        shutil.rmtree(tmp_path / "10")
        assert checkpointer.latest_step() == 3


def test_reading_changes_nothing(tmp_path):
    saved(tmp_path, 1)
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"  # perhaps of a run that is saving at this moment
    shutil.copytree(tmp_path / "1", unfinished)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert restore(tmp_path)[0] == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with Checkpointer(tmp_path / "missing", 1) as checkpointer:
        assert checkpointer.latest_step() is None
    assert not (tmp_path / "missing").exists()


def test_terminal_stays_quiet(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, logger="absl"):
        restore(saved(tmp_path, 1))
    assert not [record for record in caplog.records if "orbax" in record.pathname]


# What cannot be right is refused, with its name and the cure.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["params"].update(kernel=s["params"]["kernel"].real), "params/kernel: complex64[3, 50] saved, fl"),
        (lambda s: s["params"].update(scale=jnp.zeros(7, jnp.bfloat16)), "scale: bfloat16[50] saved, bfloat16[7] expe"),
        (lambda s: s["params"].update(none=jnp.zeros((0, 5))), "params/none: float32[0, 4] saved, float32[0, 5] expec"),
        (lambda s: s["params"].pop("special"), "params/special: float32[7] saved, nothing expected"),
        (lambda s: s.update(ema=jnp.zeros(2)), "ema: nothing saved, float32[2] expected"),
        (lambda s: s["guard"].append(jnp.int32(0)), "guard/2: nothing saved, int32[] expected"),
    ],
)
def test_other_configuration_is_refused(tmp_path, change, message):
    like = make_state()
    change(like)
    with pytest.raises(CheckpointError) as error:
        restore(saved(tmp_path, 1), like)
    assert message in str(error.value)
    assert str(tmp_path / "1") in str(error.value)
    assert len(str(error.value).splitlines()) == 3  # no other leaf is listed
    assert_same_bits(restore(tmp_path)[1], make_state(1))


def test_many_differences_are_summed_up(tmp_path):
    with pytest.raises(CheckpointError, match="and 30 more"):
        restore(saved(tmp_path, 1), make_state() | {f"layer_{i}": jnp.zeros(1) for i in range(40)})


@pytest.mark.parametrize("leaf", [3, "text", np.array(["text"]), jax.random.key(0), np.array([None])])
def test_only_arrays_of_numbers_are_saved(tmp_path, leaf):
    with Checkpointer(tmp_path, 1) as checkpointer, pytest.raises(CheckpointError, match="leaf params/odd is"):
        checkpointer.save(1, {"params": {"odd": leaf, "w": jnp.zeros(2)}})
    assert not list(tmp_path.iterdir())


def test_two_leaves_of_one_name_are_refused(tmp_path):
    with Checkpointer(tmp_path, 1) as checkpointer, pytest.raises(CheckpointError, match="same name"):
        checkpointer.save(1, {"a/b": jnp.zeros(1), "a": {"b": jnp.ones(1)}})


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*missing"):
        restore(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"no checkpoint 2 in .*, only \[1, 3\]"):
        restore(saved(tmp_path, 1, 3), step=2)
    with pytest.raises(CheckpointError, match="keep = 0"):
        Checkpointer(tmp_path, 0)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpointer(tmp_path / "file", 1)


def test_run_that_did_not_start_from_the_newest_is_stopped(tmp_path):
    saved(tmp_path, 5, 8)
    with Checkpointer(tmp_path, 2) as checkpointer:
        checkpointer.restore(make_state(), step=5)
        with pytest.raises(CheckpointError, match=r"step 6 cannot be saved: .*8 is newer"):
            checkpointer.save(6, make_state(6))
    assert_same_bits(restore(tmp_path)[1], make_state(8))


# Damage is found, wherever it is.


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoints"), 1, 2)


DAMAGES = {
    "flipped at the start": lambda path: flip_bit(path, 0.0),
    "flipped in the middle": lambda path: flip_bit(path, 0.5),
    "flipped at the end": lambda path: flip_bit(path, 0.999),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_any_file_is_found_or_harmless(two_checkpoints, tmp_path, damage):
    found = set()
    for name in files_of(two_checkpoints / "2"):
        directory = shutil.copytree(two_checkpoints, tmp_path / str(name).replace("/", "-"))
        DAMAGES[damage](directory / "2" / name)
        try:
            step, state = restore(directory)
        except CheckpointError as error:
            message = str(error)
            found.add(str(name))
            assert f"{directory}/2 is damaged" in message, name
            assert "Delete it or move it away to go on from step 1" in message, name
        else:
            assert step == 2
            assert_same_bits(state, make_state(2))
    assert {"record/metadata", "state/manifest.ocdbt"} <= found


def test_damage_is_healed_by_the_cure(two_checkpoints, tmp_path):
    directory = shutil.copytree(two_checkpoints, tmp_path / "copy")
    flip_bit(largest_file(directory / "2"))
    with pytest.raises(CheckpointError, match=r"leaf|data"):
        restore(directory)
    shutil.rmtree(directory / "2")
    step, state = restore(directory)
    assert step == 1
    assert_same_bits(state, make_state(1))


def test_bit_that_orbax_does_not_miss_is_named_by_its_leaf(two_checkpoints, tmp_path):
    directory = shutil.copytree(two_checkpoints, tmp_path / "copy")
    flip_bit(largest_file(directory / "2"))
    with ocp.PyTreeCheckpointer() as alone:
        unchecked = alone.restore(directory / "2" / "state")
    assert (unchecked["params/noise"] != np.asarray(make_state(2)["params"]["noise"])).sum() == 1
    with pytest.raises(CheckpointError, match="leaf params/noise do not match their checksum"):
        restore(directory)


def test_damaged_record_is_not_taken_for_another_configuration(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / "1" / "record" / "metadata"
    path.write_text(path.read_text().replace("complex64", "complex74"))
    with pytest.raises(CheckpointError, match="1 is damaged: its record does not match"):
        restore(tmp_path)


def test_record_of_version_0_1_is_verified_too(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / "1" / "record" / "metadata"
    leaves = json.loads(path.read_text())["leaves"]
    state = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x
        for p, x in jax.tree_util.tree_leaves_with_path(make_state(1))
    }
    for name, entry in leaves.items():
        del entry["sum"]
        entry["crc32"] = zlib.crc32(np.ascontiguousarray(state[name]).tobytes())
    content = {"leaves": leaves, "crc32": zlib.crc32(json.dumps(leaves, sort_keys=True).encode())}
    path.write_text(json.dumps(content))
    assert_same_bits(restore(tmp_path)[1], make_state(1))
    flip_bit(largest_file(tmp_path / "1"))
    with pytest.raises(CheckpointError, match="leaf params/noise do not match their checksum"):
        restore(tmp_path)


def test_cure_skips_older_damage(tmp_path):
    saved(tmp_path, 1, 2, 3)
    flip_bit(largest_file(tmp_path / "3"))
    shutil.rmtree(tmp_path / "2" / "state")
    with pytest.raises(CheckpointError, match=r"3 is damaged.*go on from step 1,"):
        restore(tmp_path)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(CheckpointError, match=r"3 is damaged.*No older one is intact"):
        restore(tmp_path)


def test_fallback_takes_the_newest_intact_one_and_names_what_it_passed_over(tmp_path):
    saved(tmp_path, 1, 2, 3)
    flip_bit(largest_file(tmp_path / "3"))
    shutil.rmtree(tmp_path / "2" / "state")
    with Checkpointer(tmp_path, 10) as checkpointer:
        step, state = checkpointer.restore(make_state(), fallback=True)
        assert step == 1
        assert_same_bits(state, make_state(1))
        assert sorted(checkpointer.passed_over) == [2, 3]
        assert f"{tmp_path}/3 is damaged: the bytes of leaf" in checkpointer.passed_over[3]
        assert [checkpointer.set_aside(damaged) for damaged in (3, 2)] == ["3.damaged", "2.damaged"]
        checkpointer.save(3, make_state(3))
    assert_same_bits(restore(tmp_path)[1], make_state(3))
    flip_bit(largest_file(tmp_path / "3"))
    with Checkpointer(tmp_path, 10) as checkpointer:
        assert checkpointer.set_aside(3) == "3.damaged1"
    shutil.rmtree(tmp_path / "1")
    saved(tmp_path, 4)
    flip_bit(largest_file(tmp_path / "4"))
    with Checkpointer(tmp_path, 10) as checkpointer, pytest.raises(CheckpointError, match=r"4 is damaged.*No older"):
        checkpointer.restore(make_state(), fallback=True)


def test_a_renamed_checkpoint_is_not_believed(tmp_path):
    saved(tmp_path, 1, 40)
    (tmp_path / "40").rename(tmp_path / "80")
    with pytest.raises(CheckpointError, match=r"/80 is damaged: it holds step 40, .*renamed; give it its name back"):
        restore(tmp_path)
    (tmp_path / "80").rename(tmp_path / "40")
    assert restore(tmp_path)[0] == 40


@pytest.mark.parametrize("part", ["_read_record", "_read_arrays"])
def test_a_reader_that_a_run_overtakes_reads_what_has_come(tmp_path, monkeypatch, part):
    saved(tmp_path, 1, keep=1)
    read, overtaken = getattr(Checkpointer, part), []

    def overtake(self, step, *others):
        if not overtaken:
            overtaken.append(step)
            saved(tmp_path, 2, keep=1)
        return read(self, step, *others)

    monkeypatch.setattr(Checkpointer, part, overtake)
    step, state = restore(tmp_path)
    assert (overtaken, step) == ([1], 2)
    assert_same_bits(state, make_state(2))


@pytest.mark.parametrize("content", ["empty", "foreign"])
def test_folder_that_is_no_checkpoint_of_ours_is_named(tmp_path, content):
    saved(tmp_path, 1)
    (tmp_path / "2").mkdir()
    if content == "foreign":
        (tmp_path / "2" / "model.bin").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"/2 is damaged: its record cannot be read.*go on from step 1"):
        restore(tmp_path)


@pytest.mark.parametrize("error", [PermissionError, MemoryError])
def test_failure_that_says_nothing_about_the_files_is_not_called_damage(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error("not the fault of the files")

    saved(tmp_path, 1)
    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with pytest.raises(error):
        restore(tmp_path)


# A save that fails or is killed leaves nothing behind.


@pytest.fixture
def full_disk():
    """Stops every file of this process at one megabyte."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("surfaces_in", ["wait", "save", "close", "check"])
def test_full_disk_is_an_error_and_loses_nothing(tmp_path, full_disk, surfaces_in, caplog):
    large = {"w": np.random.default_rng(0).integers(0, 256, 4 << 20, np.uint8)}
    small = {"w": large["w"][:1000]}
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(1, small)
    checkpointer.save(2, large)
    act = {
        "wait": checkpointer.wait,
        "close": checkpointer.close,
        "save": lambda: checkpointer.save(3, small),
        "check": lambda: wait_until(checkpointer.check),  # as a run asks after every step
    }
    with pytest.raises(CheckpointError, match="2 could not be written"):
        act[surfaces_in]()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_same_bits(restore(tmp_path, small)[1], small)
    gc.collect()  # tasks whose failure nobody has read are reported now
    # Only this folder's: the unread task of an earlier test is reported whenever it is collected.
    assert not [
        record for record in caplog.records if record.exc_info and str(tmp_path) in caplog.handler.format(record)
    ]
    full_disk()  # has been emptied
    with Checkpointer(tmp_path, 1) if surfaces_in == "close" else checkpointer as again:
        again.save(4, large)
    assert [path.name for path in tmp_path.iterdir()] == ["4"]
    assert_same_bits(restore(tmp_path, large)[1], large)


def test_a_save_that_waited_for_a_lost_process_does_not_blame_the_disk(tmp_path, monkeypatch):
    def lost(*_, **__):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    with Checkpointer(tmp_path, 1) as checkpointer:
        monkeypatch.setattr(ocp.CheckpointManager, "save", lost)
        with pytest.raises(CheckpointError, match="another process or a device is lost") as caught:
            checkpointer.save(1, {"w": np.zeros(3)})
    assert "free space" not in str(caught.value)


def test_killed_save_leaves_the_older_checkpoint(tmp_path):
    program = f"""
        import os, signal
        import numpy as np
        from sem_jax.training.checkpoint import Checkpointer
        checkpointer = Checkpointer({str(tmp_path)!r}, 1)
        checkpointer.save(1, {{"w": np.arange(5)}})
        checkpointer.wait()
        checkpointer.save(2, {{"w": np.random.default_rng(0).normal(size=1 << 22)}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the unfinished one is still there
    like = {"w": np.arange(5)}
    with Checkpointer(tmp_path, 5) as checkpointer:
        step, state = checkpointer.restore(like)
        assert step == 1
        assert_same_bits(state, like)
        checkpointer.save(2, like)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
