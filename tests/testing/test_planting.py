"""Faults in real runs: what the run says, what it writes, how it goes on and how it ends."""

import functools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import copied, differing_leaves, example_in, shared_programs, text_config

import sem_jax
from sem_jax.optim import Reason
from sem_jax.report import write_report
from sem_jax.testing import Fault, Place, faults, planting
from sem_jax.training.checkpoint import Checkpointer
from sem_jax.training.loop import train
from sem_jax.training.metrics import read_metrics
from sem_jax.training.monitor import TrainingDiverged
from sem_jax.training.state import abstract_state
from sem_jax.training.step import make_train_step
from sem_jax.training.workdir import checkpoint_folder, open_workdir

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guard.md"
STEPS, HOPELESS = 12, 3
LEAF = "readout/weight"
UNUSED = Fault(int(Place.LOSS), step=0, value=0.0)  # faults of another number would compile anew


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return text_config(
        tmp_path_factory.mktemp("data"),
        optimizer__guard_max_consecutive=HOPELESS,
        training__max_steps=STEPS,
        training__ema_decay=0.5,
        training__log_every=1,
        training__eval_every=100,
    )


@pytest.fixture(scope="module", autouse=True)
def programs(quick_compilation):
    with shared_programs(), pytest.MonkeyPatch.context() as patch:
        make = faults.make_faulty_step

        @functools.cache
        def make_faulty_step(config):
            step = make(config)
            return lambda state, batch, planted: step(state, batch, [*planted, *[UNUSED] * (4 - len(planted))])

        patch.setattr(faults, "make_faulty_step", make_faulty_step)
        yield


def run(config, workdir, *places_and_steps, value=math.nan):
    """The result of a run with faults."""
    planted = [Fault(place, step, value, LEAF) for place, step in places_and_steps]
    return train(config, workdir, make_step=planting(*planted))


def state_at(workdir, step):
    like = abstract_state(open_workdir(workdir)[0])
    with Checkpointer(checkpoint_folder(workdir), 3) as checkpointer:
        return checkpointer.restore(like, step)[1]


def test_a_skipped_step_is_named_written_and_survived(config, tmp_path, capsys):
    assert run(config, tmp_path, (Place.GRADIENT, 6)).finished
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "skipped," in line]
    assert note.startswith(f"step 6: skipped, gradient not finite or too large in {LEAF}; parameters unchanged")
    (line,) = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "skip"]
    assert (line["step"], line["reason"], line["leaf"], line["skipped"]) == (6, "gradient", LEAF, 1)
    assert math.isfinite(line["loss"])
    assert f"| 6 | gradient | {LEAF} |" in write_report(tmp_path)
    guard = state_at(tmp_path, STEPS).opt_state
    assert (int(guard.skipped), int(guard.consecutive), int(guard.clean)) == (1, 0, STEPS - 6)
    assert float(guard.lr_scale) == 0.5


def test_a_bad_loss_has_no_leaf(config, tmp_path, capsys):
    run(config, tmp_path, (Place.BATCH, 2))
    assert "step 2: skipped, loss not finite or too large; " in capsys.readouterr().out
    (line,) = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "skip"]
    assert (line["reason"], "leaf" in line) == ("loss", False)
    assert math.isnan(line["loss"])
    assert "| 2 | loss |  |" in write_report(tmp_path)


def test_a_run_goes_on_from_its_checkpoint_with_the_guards_memory(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, whole, (Place.LOSS, 4), (Place.UPDATE, 7))
    with pytest.raises(TrainingDiverged):
        run(config, parts, (Place.LOSS, 4), (Place.PARAMETER, 6))
    assert run(config, parts, (Place.LOSS, 4), (Place.UPDATE, 7)).finished
    assert differing_leaves(state_at(whole, STEPS), state_at(parts, STEPS)) == []
    saved = state_at(whole, 4).opt_state
    assert (int(saved.skipped), int(saved.reason), int(saved.leaf)) == (1, Reason.LOSS, -1)


def test_nothing_is_saved_within_a_streak_of_bad_steps(config, tmp_path):
    assert run(config, tmp_path, *((Place.LOSS, step) for step in (7, 8))).finished
    folder = checkpoint_folder(tmp_path)
    assert sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) == [4, 12]


@pytest.mark.slow
def test_a_state_whose_loss_overflows_is_not_saved_though_its_numbers_are_finite(config, tmp_path):
    said = []

    def make_step(config):
        step = make_train_step(config)

        def ruined(state, batch):
            state, metrics = step(state, batch)
            ruin = jnp.where(state.step >= 8, jnp.float32(1e30), jnp.float32(1))
            params = state.params | {"readout": jax.tree.map(lambda x: x * ruin, state.params["readout"])}
            return state.replace(params=params), metrics

        return ruined

    with pytest.raises(TrainingDiverged, match=r"checkpoints/4"):
        train(config, tmp_path, said.append, make_step)
    assert any(line.startswith("step 8: not saved") for line in said)
    assert sorted(path.name for path in checkpoint_folder(tmp_path).iterdir() if path.name.isdecimal()) == ["4"]


def test_bad_steps_without_end_name_step_cause_leaf_and_checkpoint(config, tmp_path):
    with pytest.raises(TrainingDiverged) as error:
        run(config, tmp_path, *[(Place.GRADIENT, step) for step in (6, 7, 8)], value=1e30)
    assert f"step 8: {HOPELESS} bad steps in a row" in str(error.value)
    assert f"gradient not finite or too large in {LEAF}." in str(error.value)
    path = re.search(r"last good checkpoint is (\S+):", str(error.value))[1]
    assert path == str(checkpoint_folder(tmp_path).absolute() / "4")
    assert len([line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "skip"]) == HOPELESS


def test_before_the_first_checkpoint_the_error_says_that_there_is_none(config, tmp_path):
    with pytest.raises(
        TrainingDiverged, match=r"step 3: 3 bad.*loss not finite or too large\. No checkpoint has been saved yet"
    ):
        run(config, tmp_path, *[(Place.LOSS, step) for step in (1, 2, 3)])


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (Place.PARAMETER, LEAF),
        (Place.FIRST_MOMENT, f"direction/adam/mu/{LEAF}"),
        (Place.SECOND_MOMENT, f"direction/adam/nu/{LEAF}"),
    ],
    ids=["parameter", "first_moment", "second_moment"],
)
def test_a_damaged_state_ends_the_run_at_once_and_names_the_leaf(config, tmp_path, place, name):
    with pytest.raises(TrainingDiverged) as error:
        run(config, tmp_path, (place, 6))
    assert str(error.value).startswith(
        f"step 6: value of the state before the step not finite or too large in {name}. "
    )
    assert f"{checkpoint_folder(tmp_path).absolute() / '4'}: start the run again" in str(error.value)


@pytest.mark.parametrize("factor", [np.nan, 1e30])
def test_a_checkpoint_of_a_damaged_state_is_not_called_good(config, tmp_path, factor):
    run(config, tmp_path, (Place.LOSS, STEPS + 1))
    state = state_at(tmp_path, 8)
    damaged = state.replace(
        params=jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(factor), copied(state.params))
    )
    with Checkpointer(checkpoint_folder(tmp_path), 3) as checkpointer:
        checkpointer.save(STEPS, damaged)
        assert checkpointer.newest_finite() == 8
        checkpointer.save(STEPS + 1, state)
        assert checkpointer.newest_finite() == STEPS + 1


def test_the_example_of_the_documentation_runs(config, tmp_path, monkeypatch, capsys):
    example = example_in(GUIDE)
    build = sem_jax.config.build
    # Its configuration is only validated: to compile one more model would take longer than all of this file.
    monkeypatch.setattr(sem_jax.config, "build", lambda fields: config if build(fields) else None)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    said = capsys.readouterr().out
    assert f"step 6: skipped, gradient not finite or too large in {LEAF}; parameters unchanged, LR scale was 1" in said
    assert read_metrics("runs/fault/metrics.jsonl")[-1]["step"] == STEPS
