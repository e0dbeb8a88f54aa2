"""What a run writes for programs, shows to people and measures."""

import contextlib
import io
import math
import os
import subprocess
import sys
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sem_jax.training import metrics, progress
from sem_jax.training.metrics import MetricsError, MetricsWriter, read_metrics
from sem_jax.training.progress import LateMetrics, Progress, Throughput

# metrics.jsonl


def write_steps(workdir, *steps, start_step=0):
    with MetricsWriter(workdir, start_step) as writer:
        for step in steps:
            writer.write("train", step, loss=step / 10)


def steps_of(workdir):
    return [line["step"] for line in read_metrics(workdir / "metrics.jsonl")]


def test_lines_are_strict_json_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path / "new" / "run")
    writer.write("train", 10, loss=np.float32(0.1), bits_per_byte=jnp.float32(2.5), skipped=3)
    writer.write("validation", np.int64(10), loss=jnp.array([[1.5]]))
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [line.rpartition(", ")[0] for line in lines] == [
        '{"split": "train", "step": 10, "loss": 0.10000000149011612, "bits_per_byte": 2.5, "skipped": 3',
        '{"split": "validation", "step": 10, "loss": 1.5',
    ]
    for line in lines:
        content, _, checksum = line.rpartition(", ")
        assert checksum == f'"crc": {zlib.crc32(content.encode())}}}'


def test_nonfinite_numbers_are_null_and_come_back_as_nan(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 1, a=math.nan, b=jnp.float32(np.inf), c=-np.float64(np.inf), d=1.0)
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line.startswith('{"split": "train", "step": 1, "a": null, "b": null, "c": null, "d": 1.0, "crc": ')
    (values,) = read_metrics(tmp_path / "metrics.jsonl")
    assert [math.isnan(values[name]) for name in "abcd"] == [True, True, True, False]


def test_lists_keep_their_gaps(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("health", 1, residual=[1e-7, math.nan])
    (values,) = read_metrics(tmp_path / "metrics.jsonl")
    assert values["residual"][0] == 1e-7
    assert math.isnan(values["residual"][1])


def test_the_clock_goes_on_from_the_last_line_that_is_kept(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        assert writer.seconds == 0
        for step, seconds in [(1, 2.5), (2, 4.0), (3, 9.0)]:
            writer.write("train", step, seconds=seconds)
    with MetricsWriter(tmp_path, 2) as writer:
        assert writer.seconds == 4


@pytest.mark.parametrize("value", [1j, np.zeros(2), object(), [1j]])
def test_what_is_no_number_is_refused_and_nothing_is_written(tmp_path, value):
    with MetricsWriter(tmp_path) as writer, pytest.raises((TypeError, ValueError)):
        writer.write("train", 1, good=1.0, bad=value)
    assert steps_of(tmp_path) == []


def test_resuming_drops_what_will_be_written_again(tmp_path):
    write_steps(tmp_path, 0, 10, 20, 30, 40)
    write_steps(tmp_path, 30, 40, 50, start_step=20)
    assert steps_of(tmp_path) == [0, 10, 20, 30, 40, 50]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_starting_anew_drops_everything(tmp_path):
    write_steps(tmp_path, 0, 10)
    write_steps(tmp_path, 0)
    assert steps_of(tmp_path) == [0]


@pytest.mark.parametrize("cut", range(1, 40))
def test_torn_last_line_is_repaired(tmp_path, cut):
    write_steps(tmp_path, 10, 20)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    whole = [10, 20] if cut == 1 else [10]  # only the newline was lost
    assert steps_of(tmp_path) == whole
    write_steps(tmp_path, 30, start_step=20)
    assert steps_of(tmp_path) == [*whole, 30]
    assert path.read_bytes().endswith(b"\n")


def test_kept_lines_keep_their_bytes(tmp_path):
    line = b'{"step":1,  "split":"train","loss":0.1000}\n'
    (tmp_path / "metrics.jsonl").write_bytes(line)
    write_steps(tmp_path, 2, start_step=1)
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(line)


@pytest.mark.parametrize("damage", [b"\x00\xff", b'{"split": "train"}', b"[1]", b'{"step": nul', b""])
def test_damaged_line_is_named_and_nothing_is_lost(tmp_path, damage):
    write_steps(tmp_path, 10, 20, 30)
    path = tmp_path / "metrics.jsonl"
    first, _, last = path.read_bytes().splitlines()
    content = b"\n".join([first, damage, last, b""])
    path.write_bytes(content)
    for act in (lambda: read_metrics(path), lambda: MetricsWriter(tmp_path, 20)):
        with pytest.raises(MetricsError, match=r"metrics.jsonl, line 2 is damaged .*; delete that line"):
            act()
    assert path.read_bytes() == content


def test_no_flipped_bit_makes_another_line(tmp_path):
    write_steps(tmp_path, 10, 20, 30)
    path = tmp_path / "metrics.jsonl"
    content, wanted = path.read_bytes(), read_metrics(path)
    refused = 0
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read_metrics(path)
        except MetricsError:
            refused += 1
            continue
        # A checksum of another name is a value that nobody asks for.
        assert [{name: line.get(name) for name in wanted[0]} for line in found] == wanted
    assert refused > 0.9 * 8 * len(content)


def test_names_of_older_versions_are_read_as_those_of_today(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write("validation", 10, cg_residual=1e-7, cg_iterations=8)
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"split": "validation", "step": 10, "residual": 1e-7, "iterations": 8}
    ]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MetricsError, match=r"metrics.jsonl does not exist"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_interrupted_rewrite_keeps_the_old_file(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError("disk full")

    write_steps(tmp_path, 10, 20, 30)
    monkeypatch.setattr(metrics.os if failing == "fsync" else metrics.Path, failing, fail)
    with pytest.raises(MetricsError, match=r"cannot write .*metrics.jsonl: disk full; make room"):
        MetricsWriter(tmp_path, 10)
    assert steps_of(tmp_path) == [10, 20, 30]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_full_disk_is_named_and_closing_says_nothing_more(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(metrics, "_parse", lambda path: [])
    monkeypatch.setattr(metrics, "_rewrite", lambda path, lines: None)
    writer = MetricsWriter(tmp_path)
    with pytest.raises(MetricsError, match=r"metrics.jsonl: No space left on device; make room"):
        writer.write("train", 1, loss=1.0)
    writer.close()


def test_a_workdir_without_room_for_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MetricsError, match=r"cannot write .*metrics.jsonl: Is a directory"):
        MetricsWriter(tmp_path, 10)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(MetricsError, match="a pipe or a device"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "3",
        '{"step": 3}',
        '{"split": "train"}',
        '{"split": "train", "step": Infinity}',
        '{"split": "train", "step": -1}',
        '{"split": "train", "step": 1e400}',
        '{"split": [], "step": 1}',
        '{"split": "train", "step": 1' + "0" * 5000 + "}",
        '{"split": "train", "step": 1, "x": "' + "y" * 2**21 + '"}',
    ],
    ids=range(10),
)
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"split": "train", "step": 2}}\n')
    with pytest.raises(MetricsError, match=r"metrics.jsonl, line 1 is damaged"):
        read_metrics(path)


def test_killed_process_loses_no_line(tmp_path):
    program = f"""
import os
from sem_jax.training.metrics import MetricsWriter
MetricsWriter({str(tmp_path)!r}).write("train", 1, loss=2.0)
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"split": "train", "step": 1, "loss": 2.0}]


# The progress line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


NUMBERS = {
    "loss": 2.12341,
    "bits_per_byte": 2.3111,
    "lr": 1.2e-3,
    "lr_scale": 1.0,
    "grad_norm": 0.8201,
    "tokens_per_s": 23_100.0,
    "skipped": 0,
}


def test_plain_line(capsys, clock):
    with Progress(2000) as progress:
        progress.update(100, **NUMBERS)
        clock[0] += 4
        progress.note("checkpoint written")
        progress.update(200, **NUMBERS | {"lr_scale": 0.25, "skipped": 2, "grad_norm": 1e-4})
    assert capsys.readouterr().out.splitlines() == [
        "step  100/2000  loss 2.1234  bpb 2.311  lr 1.20e-03  |g| 0.82  23.1k tok/s  eta --  skipped 0",
        "checkpoint written",
        "step  200/2000  loss 2.1234  bpb 2.311  lr 1.20e-03 x0.25  |g| 0.0001  23.1k tok/s  eta 01:12  skipped 2",
    ]


def test_eta_counts_this_process_only(clock):
    stream = io.StringIO()
    progress = Progress(2000, 1000, stream)
    clock[0] += 60  # compilation
    progress.update(1010, **NUMBERS)
    clock[0] += 10
    progress.update(1020, **NUMBERS)
    assert "eta 16:20" in stream.getvalue().splitlines()[-1]  # 980 steps of one second


def test_numbers_that_are_unknown_or_not_finite(capsys):
    Progress(10).update(1, **NUMBERS | {"loss": math.nan, "grad_norm": math.inf, "tokens_per_s": math.nan})
    line = capsys.readouterr().out
    assert "loss nan" in line
    assert "|g| inf" in line
    assert "-- tok/s" in line


def test_bar_shows_sparse_updates():
    """Left to itself tqdm takes the 20 steps between two frames for its pace, and leaves out step 30."""
    terminal = Terminal()
    with Progress(100, 0, terminal) as progress:
        for step in (10, 20, 30):
            progress.update(step, **NUMBERS)
            time.sleep(0.11)
        assert "step  30/100" in terminal.getvalue()


def test_bar_on_a_terminal():
    terminal = Terminal()
    with Progress(200, 50, terminal) as progress:
        progress.update(100, **NUMBERS)
        progress.note("a note")
        progress.update(150, **NUMBERS | {"loss": 1.5})
    frames = terminal.getvalue().replace("\n", "\r").split("\r")
    assert "a note" in [frame.strip() for frame in frames]
    final = [frame for frame in frames if frame.strip()][-1]
    assert " 75%|" in final
    assert "step 150/200  loss 1.5000" in final


# What is read late, and how fast it goes


def test_late_metrics_come_one_push_later_and_in_order():
    late = LateMetrics()
    assert late.flush() is None
    assert late.push(1, {"loss": jnp.float32(1.5)}) is None
    assert late.push(2, {"loss": jnp.float32(2.5)}) == (1, {"loss": np.float32(1.5)})
    step, values = late.flush()
    assert (step, values) == (2, {"loss": np.float32(2.5)})
    assert isinstance(values["loss"], np.ndarray | np.generic)
    assert late.flush() is None
    assert late.push(3, {"loss": jnp.float32(3.5)}) is None


def test_pushing_does_not_fetch_what_is_pushed(monkeypatch):
    fetched = []
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(tree) or tree)
    late = LateMetrics()
    late.push(1, "first")
    late.push(2, "second")
    assert fetched == ["first"]


def test_throughput_leaves_out_compilation_and_pauses(clock):
    throughput = Throughput(window=4)
    assert math.isnan(throughput.tokens_per_second())
    clock[0] += 60  # compilation
    throughput.step(1000)
    assert math.isnan(throughput.tokens_per_second())
    clock[0] += 2
    throughput.step(1000)
    with throughput.pause():
        clock[0] += 30
    clock[0] += 3
    throughput.step(1500)
    assert throughput.tokens_per_second() == pytest.approx(2500 / 5)


def test_throughput_forgets_steps_before_the_window(clock):
    throughput = Throughput(window=2)
    for seconds in (50, 10, 3, 1):
        clock[0] += seconds
        throughput.step(100)
    assert throughput.tokens_per_second() == pytest.approx(200 / 4)


def test_pause_counts_when_its_body_fails(clock):
    throughput = Throughput()
    throughput.step(1)
    with contextlib.suppress(RuntimeError), throughput.pause():
        clock[0] += 5
        raise RuntimeError
    clock[0] += 1
    throughput.step(10)
    assert throughput.tokens_per_second() == pytest.approx(10)
