"""T = 1/N and the groups in a run: resolved once, kept in the workdir, found again at the next start."""

import functools

import jax
import pytest
from small import TEXT, text_config

from sem_jax.config import ConfigError
from sem_jax.diagnosis import run as diagnose
from sem_jax.optim import make_optimizer
from sem_jax.training import state
from sem_jax.training.loop import train
from sem_jax.training.workdir import checkpoint_folder, read_config


@pytest.fixture(scope="module", autouse=True)
def one_model(quick_compilation):
    """All runs have the same model, and to initialise it takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "init_model", functools.cache(state.init_model))
        yield


class Started(Exception):
    """All is prepared and the first step is about to be compiled; its configuration is the argument."""


def start(config, workdir, echo=print):
    """The configuration that a run's step is made with."""

    def make_step(config):
        raise Started(config)

    with pytest.raises(Started) as started:
        train(config, workdir, echo, make_step)
    return started.value.args[0]


@pytest.fixture
def posterior(tmp_path):
    return text_config(tmp_path, optimizer__thermostat="posterior")


def test_a_run_takes_and_keeps_one_over_its_training_tokens(posterior, tmp_path):
    workdir, said = tmp_path / "run", []
    used = start(posterior, workdir).optimizer
    training_characters = len(TEXT) - round(0.1 * len(TEXT))  # a token each, and the last tenth is held out
    assert 1 / used.temperature == pytest.approx(training_characters, abs=1)
    assert read_config(workdir).optimizer == used
    assert start(posterior, workdir, said.append).optimizer == used
    assert said == []
    assert start(read_config(workdir), workdir, said.append).optimizer == used
    assert said == []


def test_the_diagnosis_of_a_configuration_sees_the_same_temperature(posterior, tmp_path, monkeypatch):
    monkeypatch.setattr(diagnose, "diagnose", lambda config, *rest: config)
    assert diagnose.diagnose_config(posterior).optimizer == start(posterior, tmp_path / "run").optimizer


def test_an_optimizer_without_the_number_of_tokens_is_refused(posterior):
    with pytest.raises(ConfigError, match=r"thermostat = posterior.*with_posterior_temperature"):
        make_optimizer(posterior.optimizer, max_steps=100, seed=0)


def test_a_path_that_fits_no_parameter_is_an_error_before_there_is_a_workdir(tmp_path):
    for field in ("lr_factors", "decay_factors"):
        config = text_config(tmp_path, **{f"optimizer__{field}": "propagators/edge_weigths=0.1"})
        with pytest.raises(ConfigError, match=rf"{field}: .*the closest are propagators/edge_weights"):
            train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_factors_may_change_between_two_starts(tmp_path):
    workdir, said = tmp_path / "run", []
    before = start(text_config(tmp_path), workdir)
    (checkpoint_folder(workdir) / "1").mkdir(parents=True)  # without one the second start would replace the first
    after = start(text_config(tmp_path, optimizer__lr_factors="readout=0.5"), workdir, said.append)
    assert said == ["changed since the last start: optimizer.lr_factors: '' -> 'readout=0.5'"]
    states = [
        jax.eval_shape(make_optimizer(c.optimizer, 100, 0).init, {"readout": jax.numpy.ones(3)})
        for c in (before, after)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])  # so the checkpoint of one fits the other
