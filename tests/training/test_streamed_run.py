"""A whole run on a source that is read while it trains."""

import dataclasses
import itertools
import json
import re
import shutil
import signal

import pytest
import small
from small import SENTENCES, differing_leaves

from sem_jax.data import DataError, open_dataset
from sem_jax.data.records import open_jsonl
from sem_jax.data.sources import SOURCES
from sem_jax.training import loop
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.monitor import Monitor
from sem_jax.training.state import abstract_state
from sem_jax.training.workdir import checkpoint_folder, open_workdir

pytestmark = pytest.mark.usefixtures("programs")
STEPS = 24
STOP = 10
DOCUMENTS = 20  # 72 chunks, of which the run takes 96


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """One configuration for all runs, so that they share compiled functions; the environment names the cache."""
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    lines = [json.dumps({"text": f"{i}: " + SENTENCES[i % 3] * (1 + i % 2)}) for i in range(DOCUMENTS)]
    path.write_text("\n".join(lines), encoding="utf-8")
    data = {"source": "jsonl", "path": str(path), "tokenizer": "byte", "split": "hash", "packing": "documents"}
    data |= {"validation_fraction": 0.2, "stream": True, "tokenizer_sample": 5, "shard_tokens": 200}
    fields = {f"data__{name}": value for name, value in data.items()}
    run = {"max_steps": STEPS, "checkpoint_every": 4}
    fields |= {f"training__{name}": value for name, value in run.items()}
    return small.config(**fields, optimizer__temperature=1e-7)


@pytest.fixture(scope="module")
def uninterrupted(config, programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEM_JAX_CACHE", str(folder / "cache"))
        assert train(config, folder / "run", said.append).finished
    assert re.search(
        r"vocabulary 261 \(byte\); streamed training and \d+ validation tokens from jsonl", "\n".join(said)
    )
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEM_JAX_CACHE", str(tmp_path / "cache"))


def metrics_of(workdir):
    """Lines without the values that no run repeats, and without the evaluation at the interruption."""
    unrepeatable, evaluated = ("tokens_per_s", "seconds"), [("validation", STOP), ("sample", STOP)]
    lines = read_metrics(workdir / "metrics.jsonl")
    lines = [line for line in lines if line["split"] != "time" and (line["split"], line["step"]) not in evaluated]
    return [{k: v for k, v in line.items() if k not in unrepeatable} for line in lines]


def final_state(workdir):
    like = abstract_state(open_workdir(workdir)[0])
    with Checkpointer(checkpoint_folder(workdir), 3) as checkpointer:
        return checkpointer.restore(like)


def test_the_first_line_of_a_run_says_that_its_training_tokens_are_streamed(config):
    dataset = open_dataset(config.data, 0, config.training.global_batch)
    line = loop._describe(config, dataset, 1234)
    assert re.search(r"261 \(byte\); streamed training and \d+ validation tokens from jsonl", line)


def require_equal(run, other):
    (step, state), (other_step, other_state) = final_state(run), final_state(other)
    assert step == other_step == STEPS
    assert differing_leaves(state, other_state) == []
    assert metrics_of(run) == metrics_of(other)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["kept", "lost", "of another run"])
def test_a_stopped_run_goes_on_to_the_same_bits(config, uninterrupted, tmp_path, monkeypatch, cache):
    original = Monitor.step

    def step(self, step, metrics):
        if step == STOP:
            signal.raise_signal(signal.SIGINT)
        original(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "step", step)
        assert train(config, tmp_path / "run").step == STOP
    if cache == "lost":
        shutil.rmtree(tmp_path / "cache")
    elif cache == "of another run":
        monkeypatch.setenv("SEM_JAX_CACHE", str(uninterrupted / "cache"))
    assert train(config, tmp_path / "run").finished
    require_equal(tmp_path / "run", uninterrupted / "run")


@pytest.mark.slow
def test_a_run_whose_source_breaks_off_ends_with_one_line_and_goes_on_later(
    config, uninterrupted, tmp_path, monkeypatch
):
    def open_breaking(config):
        corpus = open_jsonl(config)

        def read():
            yield from itertools.islice(corpus.read(), DOCUMENTS - 3)
            raise OSError("the line is dead")

        return dataclasses.replace(corpus, read=read)

    with monkeypatch.context() as patch:
        patch.setitem(SOURCES, "jsonl", open_breaking)
        with pytest.raises(DataError, match=r"stream broke off: cannot read .*the line is dead.*goes on") as error:
            train(config, tmp_path / "run")
        assert "\n" not in str(error.value)
    said = []
    assert train(config, tmp_path / "run", said.append).finished
    assert any("resuming from step" in line for line in said)
    require_equal(tmp_path / "run", uninterrupted / "run")
