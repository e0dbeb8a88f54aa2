"""Trackers hear what metrics.jsonl tells, a resumed run goes on with its own record, and none of them stops a run."""

from __future__ import annotations

import json
import math
import struct
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from small import config
from tensorboardX.proto.event_pb2 import Event, SessionLog

from sem_jax.config import ConfigError
from sem_jax.training import trackers
from sem_jax.training.trackers import Trackers

LINE = {"loss": 1.5, "grad_norm": math.nan, "skipped": np.int32(3), "h_lambda": [1.0, 2.0], "seconds": 4.0}


def tracked(*names, **changes):
    return config(training__trackers=",".join(names), name="wave", **changes)


@pytest.fixture
def said():
    return []


@pytest.fixture
def follow(tmp_path, said):
    """Opens the trackers of a run in a folder."""

    def follow(*names, start=0):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        return Trackers(tracked(*names), folder, start, said.append)

    return follow


def crc32c(data):
    """The masked checksum of a record, from the polynomial itself."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events_in(folder):
    """The events of all event files of a folder, the oldest file first, with every checksum verified."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        assert path.name.startswith("events.out.tfevents.")
        content = path.read_bytes()
        while content:
            head, body = content[:8], content[12 : 12 + struct.unpack("<Q", content[:8])[0]]
            sums = content[8:12] + content[12 + len(body) : 16 + len(body)]
            assert struct.unpack("<II", sums) == (crc32c(head), crc32c(body))
            events.append(Event.FromString(body))
            content = content[16 + len(body) :]
    return events


def values_of(events):
    return [(event.step, value) for event in events for value in event.summary.value]


def test_an_event_file_holds_numbers_samples_and_the_configuration(follow, tmp_path):
    run = follow("tensorboard")
    run.log("train", 10, LINE)
    run.log("validation", 20, {"nll": 0.25})
    run.log("sample", 20, {"text": "the wave\nψ"})
    run.log("health", 20, {"residual": 9.0})  # layer by layer: not for trackers
    run.close()
    events = events_in(tmp_path / "run")
    assert events[0].file_version == "brain.Event:2"
    numbers = {(step, v.tag): v.simple_value for step, v in values_of(events) if v.HasField("simple_value")}
    assert math.isnan(numbers.pop((10, "train/grad_norm")))
    assert numbers == {
        (10, "train/loss"): 1.5,
        (10, "train/skipped"): 3.0,
        (10, "train/seconds"): 4.0,
        (20, "validation/nll"): 0.25,
    }
    texts = {v.tag: v.tensor.string_val[0].decode() for _, v in values_of(events) if v.HasField("tensor")}
    assert texts.keys() == {"configuration/text_summary", "sample/text/text_summary"}
    assert texts["sample/text/text_summary"] == "the wave\nψ"
    assert json.loads(texts["configuration/text_summary"])["model"]["hidden_dim"] == 16


def test_a_resumed_run_voids_the_events_after_its_checkpoint(follow, tmp_path):
    for start, steps in ((0, (10, 20, 30)), (20, (30, 40)), (0, (10,))):
        run = follow("tensorboard", start=start)
        for step in steps:
            run.log("train", step, {"loss": float(step)})
        run.close()
    left, starts = [], []
    for event in events_in(tmp_path / "run"):  # as TensorBoard reads them
        if event.HasField("session_log"):
            assert event.session_log.status == SessionLog.START
            starts.append(event.step)
            left = [step for step in left if step < event.step]
        left += [event.step for value in event.summary.value if value.tag == "train/loss"]
        if len(starts) == 2:
            resumed = list(left)
    assert starts == [0, 21, 0]
    assert resumed == [10, 20, 30, 40]
    assert left == [10]


class FakeLibrary(ModuleType):
    """What wandb and trackio have in common, as far as it is used."""

    def __init__(self, name):
        super().__init__(name)
        self.opened, self.logged, self.finished = [], [], 0
        self.Settings = SimpleNamespace

    def init(self, **arguments):
        self.opened.append(arguments)
        return self

    def define_metric(self, *_, **__):
        pass

    def log(self, values, step=None):
        self.logged.append((values.get("step", step), {k: v for k, v in values.items() if k != "step"}))

    def finish(self):
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def library(request, monkeypatch):
    library = FakeLibrary(request.param)
    monkeypatch.setitem(sys.modules, request.param, library)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return library


def test_the_libraries_of_services_hear_the_same(follow, library):
    run = follow(library.__name__)
    run.log("train", 10, LINE)
    run.log("sample", 10, {"text": "the wave"})
    run.close()
    (opened,) = library.opened
    assert opened["config"]["name"] == "wave"
    assert opened.get("mode", "offline") == "offline"
    (step, numbers), sample = library.logged
    assert (step, sorted(numbers)) == (10, ["train/grad_norm", "train/loss", "train/seconds", "train/skipped"])
    assert sample == (10, {"sample/text": "the wave"})
    assert library.finished == 1


def test_a_resumed_run_is_the_same_to_a_service_and_a_fresh_one_is_another(follow, library):
    for start in (0, 20, 0):
        follow(library.__name__, start=start).close()
    key = "id" if library.__name__ == "wandb" else "name"
    first, resumed, fresh = (opened[key] for opened in library.opened)
    assert first == resumed
    assert first != fresh
    assert {opened["resume"] for opened in library.opened} == {"allow"}


def test_two_services_know_a_resumed_run_by_one_identity(follow, monkeypatch):
    libraries = [FakeLibrary(name) for name in ("trackio", "wandb")]
    for library in libraries:
        monkeypatch.setitem(sys.modules, library.__name__, library)
    for start in (0, 20):
        follow("trackio", "wandb", start=start).close()
    for library, key in zip(libraries, ("name", "id"), strict=True):
        first, resumed = (opened[key] for opened in library.opened)
        assert first == resumed


def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(follow, library, tmp_path, said):
    run = follow("tensorboard", library.__name__)
    library.log = lambda *_, **__: 1 / 0
    for step in (10, 20):
        run.log("train", step, {"loss": 1.0})
    run.close()
    (warning,) = said
    assert f"the tracker {library.__name__} fails, and the run goes on without it (ZeroDivisionError" in warning
    assert library.finished == 0
    found = [step for step, value in values_of(events_in(tmp_path / "run")) if value.tag == "train/loss"]
    assert found == [10, 20]


def test_a_tracker_that_cannot_be_opened_or_closed_is_one_warning(follow, library, said, monkeypatch):
    library.finish = lambda: 1 / 0
    follow(library.__name__).close()
    library.init = lambda **_: 1 / 0
    follow(library.__name__).close()
    monkeypatch.setitem(sys.modules, library.__name__, None)
    follow(library.__name__).close()
    assert len(said) == 3
    assert f"pip install 'sem-jax[{library.__name__}]'" in said[2]


def test_a_full_disk_under_an_event_file_is_one_warning(follow, said, monkeypatch):
    run = follow("tensorboard")
    sink = run._open["tensorboard"]
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(sink._writer._py_recordio_writer, "_writer", full)
        for step in (10, 20):
            run.log("train", step, {"loss": 1.0})
    run.close()
    (warning,) = said
    assert "No space left on device" in warning


def test_without_trackers_nothing_is_written(follow, tmp_path):
    run = follow()
    run.log("train", 10, LINE)
    run.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match=r"names 'wandbe', which is none of tensorboard, trackio, wandb"):
        tracked("tensorboard", "wandbe")
    assert set(trackers.SINKS) == {"tensorboard", "trackio", "wandb"}
