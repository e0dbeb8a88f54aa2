"""Several devices and several processes: the same run as on one device, but for the rounding of sums."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from small import text_config

from sem_jax.config import ConfigError, MeshConfig
from sem_jax.core.devices import SMALL, from_chunks, in_chunks, partition
from sem_jax.data import open_dataset
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.checksum import weighted_sum
from sem_jax.training.loop import train
from sem_jax.training.mesh import make_layout, mesh_shape
from sem_jax.training.metrics import read_metrics
from sem_jax.training.processes import ProcessError, all_or_none, joined, require_same
from sem_jax.training.state import abstract_state
from sem_jax.training.workdir import checkpoint_folder

# The rules, on whatever devices there are.


@pytest.mark.parametrize(
    ("shape", "layered", "wanted"),
    [
        ((512, 256), False, ("fsdp", None)),  # the largest axis
        ((255, 512), False, (None, "fsdp")),  # the largest that 8 divides
        ((1024, 250, 500), True, ("fsdp", None, None)),  # the layer axis, where nothing else will do
        ((1024, 256, 500), True, (None, "fsdp", None)),
        ((16, 2 * SMALL), True, ()),  # a vector a layer
        ((SMALL // 8 - 1, 8), False, ()),  # small
        ((255, 511), False, ()),  # nothing divides
    ],
)
def test_large_arrays_are_spread_along_their_largest_axis_that_divides(shape, layered, wanted):
    assert partition(shape, 8, layered) == PartitionSpec(*wanted)
    assert partition(shape, 1, layered) == PartitionSpec()


@pytest.mark.parametrize(
    ("mesh", "devices", "processes", "wanted"),
    [
        (MeshConfig(), 8, 1, (8, 1)),
        (MeshConfig(fsdp=4), 8, 1, (2, 4)),
        (MeshConfig(data=2, fsdp=2), 8, 1, (2, 2)),
        (MeshConfig(fsdp=3), 8, 1, "fsdp = 3 does not divide the 8 devices; set it to a divisor of 8"),
        (MeshConfig(data=4, fsdp=4), 8, 1, "asks for 16 devices, but there are 8; set config.mesh.data = 0"),
        (MeshConfig(data=2), 4, 2, "asks for 2 devices, but 2 processes have 4; set config.mesh.data = 0"),
    ],
)
def test_a_mesh_fits_the_devices_or_is_refused_with_the_cure(mesh, devices, processes, wanted):
    if isinstance(wanted, tuple):
        assert mesh_shape(mesh, devices, processes) == wanted
    else:
        with pytest.raises(ConfigError, match=wanted):
            mesh_shape(mesh, devices, processes)


def test_the_checksum_of_a_leaf_does_not_depend_on_how_it_is_cut():
    rng = np.random.default_rng(0)
    for array in (
        rng.normal(size=(4, 6, 8)).astype(np.complex64),
        rng.integers(0, 2, (4, 6)).astype(bool),
        np.asarray(jax.numpy.asarray(rng.normal(size=(4, 6)), jax.numpy.bfloat16)),
        rng.integers(0, 2**60, (4, 6)),
    ):
        words = array.reshape(-1).view(f"u{min(array.itemsize, 4)}")
        expected = sum((2 * k + 1) * int(word) for k, word in enumerate(words)) % 2**64
        assert weighted_sum(array, [0] * array.ndim, array.shape) == expected
        parts = [
            weighted_sum(array[i : i + 2, j : j + 3], [i, j] + [0] * (array.ndim - 2), array.shape)
            for i in (0, 2)
            for j in (0, 3)
        ]
        assert sum(parts) % 2**64 == expected


def test_chunks_of_one_device_are_its_rows_in_order():
    rows = np.arange(10.0).reshape(10, 1)
    chunks = in_chunks(rows, 4, filling="edge")
    np.testing.assert_array_equal(chunks[..., 0], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]])
    np.testing.assert_array_equal(from_chunks(chunks, 10), rows)


@pytest.mark.parametrize("packing", ["windows", "documents"])
def test_some_rows_of_a_batch_are_those_rows_of_the_whole_batch(tmp_path, packing):
    c = text_config(tmp_path, data__packing=packing, training__global_batch=8)
    train_split = open_dataset(c.data, 0, 8).train
    rows = np.array([1, 4, 5])
    for step in (0, 30):
        for part, whole in zip(train_split.batch(step, rows), train_split.batch(step), strict=True):
            np.testing.assert_array_equal(part, whole[rows])


def test_a_process_alone_agrees_with_itself_and_keeps_its_error():
    require_same({"config.name": "sem"})
    with pytest.raises(KeyError, match="its own"), all_or_none():
        raise KeyError("its own")
    with joined(None, None, None, 1):
        pass
    with pytest.raises(ProcessError, match="num_processes, process_id is missing"), joined("host:1", None, None, 1):
        pass


# One run on eight virtual devices. Its program is eight_devices.py, all of it in one process.

MESHES = ["(1, 1)", "(8, 1)", "(1, 8)", "(4, 2)"]


@pytest.fixture(scope="module")
def found():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    folder = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join([str(folder.parent), environment.get("PYTHONPATH", "")])
    program = [sys.executable, str(folder / "eight_devices.py")]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES[1:])
def test_losses_are_those_of_one_device(found, mesh):
    assert found[mesh]["start"] == found[MESHES[0]]["start"]  # to the bit
    # A loss of 4 has a unit in the last place of 4.8e-7, and each mesh rounds sums in its own order. Measured: 1.2e-6
    # at most in 20 steps.
    np.testing.assert_allclose(found[mesh]["losses"], found[MESHES[0]]["losses"], rtol=0, atol=1e-5)
    assert found[mesh]["losses"][0] - found[mesh]["losses"][-1] > 0.1


@pytest.mark.slow
def test_a_long_evaluation_ends_and_is_that_of_one_device(found):
    """Two hundred programs sent out at once would wait for each other for ever."""
    alone, *others = found["evaluated"]
    np.testing.assert_allclose(others, alone, rtol=0, atol=1e-5)  # as the losses of steps


@pytest.mark.slow
def test_each_device_holds_its_share_of_the_state(found):
    (whole,) = found["(1, 1)"]["bytes"]
    assert found["(8, 1)"]["bytes"] == [whole] * 8
    # What is spread shrinks by the factor, what is small stays: bytes = small + spread / fsdp.
    (by_two, by_eight) = (set(found[mesh]["bytes"]) for mesh in ("(4, 2)", "(1, 8)"))
    assert len(by_two) == len(by_eight) == 1
    spread = (whole - by_two.pop()) * 2
    assert by_eight.pop() == whole - spread * 7 // 8
    assert spread > 0.8 * whole


@pytest.mark.slow
def test_no_device_gathers_more_than_one_layers_weight(found):
    assert found["(8, 1)"]["gathered"] == []
    for mesh in ("(1, 8)", "(4, 2)"):
        assert 0 < max(found[mesh]["gathered"]) <= found["largest weight"]


@pytest.mark.slow
def test_a_batch_that_the_devices_cannot_share_is_refused_with_the_cure(found):
    for name, message in found["refused"].items():
        assert message.startswith(f"config.training.{name} = 12 sequences cannot be spread evenly over the 8 devices")
        assert "make it a multiple of 8, or set config.mesh.data to use fewer devices" in message
    assert list(found["refused"]) == ["micro_batch", "global_batch"]


@pytest.mark.slow
def test_no_rows_of_a_batch_are_gathered(found):
    assert found["behind time"] == []


@pytest.mark.slow
def test_copies_of_the_state_exchange_their_gradient_once_a_step(found):
    # Two micro-batches, two layers and the chunks of two losses; what is added are scalars and a number a layer.
    whole = found["(8, 1)"]
    assert whole["gradient"] <= whole["summed"] < 1.01 * whole["gradient"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_a_nan_in_the_rows_of_one_device_is_skipped_by_all(found, mesh):
    assert found[mesh]["skips"] == [True] * len(found[mesh]["skips"])


@pytest.mark.slow
def test_a_checkpoint_of_any_mesh_is_the_same_state_on_any_other(found):
    assert len(found["moves"]) == 4
    for move in found["moves"].values():
        assert move["differing"] == []
        assert move["spread"]
    assert found["moves"]["(8, 1) -> (2, 4)"]["saved on"] == "data 8 x fsdp 1"


# Two processes, each with one device, on one workdir.

STEPS = 40


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Starts both processes of a run: start(workdir, flags by process) -> [process, process].

    A fault is Python that process 1 executes before it begins.
    """
    folder = tmp_path_factory.mktemp("two")
    c = text_config(folder, training__max_steps=STEPS, training__log_every=1, training__eval_every=STEPS)
    file = folder / "config.py"
    file.write_text(
        "import json\nfrom sem_jax.config import build, to_config_dict\n"
        f"def get_config():\n    return to_config_dict(build(json.loads({json.dumps(dataclasses.asdict(c))!r})))\n"
    )
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "XLA_FLAGS": "",
        "PYTHONPATH": os.pathsep.join([str(folder / "custom"), os.environ.get("PYTHONPATH", "")]),
    }

    @contextlib.contextmanager
    def start(workdir, *flags, ranks=(0, 1), fault="pass"):
        custom = folder / "custom" / "sitecustomize.py"
        custom.parent.mkdir(exist_ok=True)
        custom.write_text(f'import sys\nif "--process_id=1" in sys.orig_argv:\n{textwrap.indent(fault, "    ")}\n')
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "sem_jax.train", f"--config={file}", f"--workdir={workdir}"]
        command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
        processes = []
        for rank, own in zip(ranks, flags or [[]] * len(ranks), strict=True):
            output = (folder / f"output.{rank}").open("w+")
            processes.append(
                subprocess.Popen(
                    [*command, f"--process_id={rank}", *own], env=environment, stdout=output, stderr=subprocess.STDOUT
                )
            )
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()

    start.config = c
    start.said = lambda rank: (folder / f"output.{rank}").read_text()
    return start


def ends(two_processes, processes, seconds=600):
    """Exit statuses; what was said is the assertion's message if a process does not end."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert all(process.poll() is not None for process in processes), two_processes.said(0)[-2000:]
    return [process.returncode for process in processes]


def wait_for_step(two_processes, process, step, seconds=600):
    deadline = time.monotonic() + seconds
    while not re.search(rf"^step +{step}/", two_processes.said(0), re.MULTILINE) and time.monotonic() < deadline:
        assert process.poll() is None, two_processes.said(0)[-2000:]
        time.sleep(0.05)


def losses(workdir):
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == "train"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_two_processes_lose_one_start_again_stop_together_and_end_like_one(two_processes, tmp_path):
    workdir = tmp_path / "run"
    with two_processes(workdir) as processes:
        wait_for_step(two_processes, processes[0], 9)
        processes[1].kill()
        left, killed = ends(two_processes, processes)
        assert killed == -signal.SIGKILL
        # Ours where a step or the start of a save is lost; JAX's own, a minute later, where the end of a save is.
        assert left == 1 or "another task died" in two_processes.said(0)
    with two_processes(workdir) as processes:
        wait_for_step(two_processes, processes[0], 20)
        processes[1].terminate()  # one of them is asked
        assert ends(two_processes, processes) == [75, 75]  # stopped and saved, not finished
        assert "resuming from step" in two_processes.said(0)
        assert "stopped and saved at step" in two_processes.said(0)
        assert "step" not in re.sub(r"^[IW]\d.*$", "", two_processes.said(1), flags=re.MULTILINE)  # the first speaks
    with two_processes(workdir) as processes:
        assert ends(two_processes, processes) == [0, 0]

    alone = tmp_path / "alone"
    said = []
    assert train(two_processes.config, alone, said.append).finished
    assert len(losses(workdir)) == STEPS
    # Sums round in another order, by some 2^-24 of a loss near 3; 40 steps at a high rate may amplify that.
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=0, atol=1e-4)
    layout = make_layout(two_processes.config)
    like = layout.abstract(
        abstract_state(
            dataclasses.replace(
                two_processes.config,
                model=dataclasses.replace(two_processes.config.model, vocab_size=vocabulary(workdir)),
            )
        )
    )
    with Checkpointer(checkpoint_folder(workdir), 3, str(layout)) as checkpointer:
        step, state = checkpointer.restore(like)  # verified by its record, which two processes made
    assert (step, int(state.step), checkpointer.saved_on) == (STEPS, STEPS, "data 2 x fsdp 1")
    assert train(two_processes.config, workdir, said.append).finished
    assert "saved on data 2 x fsdp 1, goes on on data 1 x fsdp 1: sums are rounded in another order now" in said


def vocabulary(workdir):
    return json.loads((workdir / "config.json").read_text())["config"]["model"]["vocab_size"]


SILENT_IN_A_SAVE = """
import os, signal
from sem_jax.training.checkpoint import Checkpointer
Checkpointer._write = lambda *_, **__: os.kill(os.getpid(), signal.SIGSTOP)
"""
ITS_OWN_DATA_END = """
from sem_jax.data.batches import Windows
from sem_jax.data import DataError
batch = Windows.batch
def ending(self, number, *rest):
    if number == 6:
        raise DataError("the disk of process 1 is gone")
    return batch(self, number, *rest)
Windows.batch = ending
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_what_one_process_alone_meets_ends_the_other_soon(two_processes, tmp_path):
    with two_processes(tmp_path / "data", fault=ITS_OWN_DATA_END) as processes:
        wait_for_step(two_processes, processes[0], 5)
        assert ends(two_processes, processes, seconds=50) == [1, 1]  # its goodbye alone would last 60 s
        assert "error: the disk of process 1 is gone" in two_processes.said(1)
        assert "start all processes again, and the run goes on" in two_processes.said(0)
    with two_processes(tmp_path / "save", fault=SILENT_IN_A_SAVE) as processes:
        os.waitid(os.P_PID, processes[1].pid, os.WSTOPPED)
        assert ends(two_processes, processes[:1], seconds=90) == [-signal.SIGABRT]  # JAX waits 100 s if not told
        assert "another task died" in two_processes.said(0)


@pytest.mark.slow
def test_processes_that_differ_or_miss_one_another_end_with_an_error_and_a_dry_run_with_none(two_processes, tmp_path):
    other_code = "from sem_jax.training import processes\nprocesses._code_digest = lambda: 'another'"
    differing = "process 1 differs from process 0 in code of sem_jax, config.optimizer.learning_rate"
    other = [[], ["--config.optimizer.learning_rate=0.5"]]
    with two_processes(tmp_path / "run", *other, fault=other_code) as processes:
        assert ends(two_processes, processes) == [1, 1]
        assert [rank for rank in (0, 1) if differing not in two_processes.said(rank)] == []
    with two_processes(tmp_path / "run", [], ["--config.data.path=/nowhere"]) as processes:
        assert ends(two_processes, processes) == [1, 1]
        assert "process 1 could not start" in two_processes.said(0)
        assert "/nowhere" in two_processes.said(1)
    dry = ["--dry_run", "--config.data.tokenizer=byte"]
    with two_processes(tmp_path / "run", dry, dry) as processes:
        assert ends(two_processes, processes) == [0, 0]
        assert ["data 2 x fsdp 1" in two_processes.said(rank) for rank in (0, 1)] == [True, False]
    with two_processes(tmp_path / "run", ["--join_timeout=3"], ranks=(0,)) as processes:
        assert ends(two_processes, processes) == [1]
        assert "process 0 of 2 waited 3 s" in two_processes.said(0)
    assert not (tmp_path / "run").exists()
