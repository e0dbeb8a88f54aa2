"""A converted model is a run like any other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file
from state_dicts import OVERRIDES, V, differing, make_state_dict

import sem_jax
from sem_jax import api
from sem_jax.config import ConfigError, build, override
from sem_jax.data import DataError
from sem_jax.data.tokenizers import ByteTokenizer, CharTokenizer
from sem_jax.inference.language_model import LanguageModel
from sem_jax.interop import InteropError, export_state_dict
from sem_jax.training.loop import train

pytestmark = pytest.mark.usefixtures("quick_compilation")

STATE = make_state_dict()
LETTERS = "abcdefghijk"


@pytest.fixture(scope="module")
def state_dict(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "model.safetensors"
    save_file(STATE, path)
    return path


def test_the_workdir_holds_the_model_to_the_bit(state_dict, tmp_path):
    made = api.convert(state_dict, tmp_path / "run", **OVERRIDES)
    loaded = sem_jax.load(tmp_path / "run")
    assert loaded.config == made.config
    assert loaded.step == 0
    for model in (made, loaded):
        assert differing(export_state_dict(model.parts), STATE) == []
    assert repr(loaded).endswith(f"ids vocabulary of {V}, step 0)")


def test_text_is_token_ids_unless_there_is_a_tokenizer(state_dict, tmp_path):
    model = api.convert(state_dict, tmp_path / "ids", **OVERRIDES)
    text = model.generate("3 10", max_tokens=4, seed=1)
    assert text.startswith("3 10 ")
    assert len(model.tokenizer.encode(text)) == 6
    assert model.tokenizer.encode(model.config.sampling.prompt).tolist() == [0]

    CharTokenizer(LETTERS).save(tmp_path / "letters.json")
    model = api.convert(state_dict, tmp_path / "letters", tmp_path / "letters.json", **OVERRIDES)
    assert model.config.data.tokenizer == "char"
    assert model.config.sampling.prompt == "a"
    assert set(model.generate("dac", max_tokens=5, seed=1)) <= set(LETTERS)


def test_what_cannot_be_converted_leaves_nothing(state_dict, tmp_path):
    ByteTokenizer().save(tmp_path / "bytes.json")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError, match=rf"bytes\.json has 261 ids, the model {V}"):
        api.convert(state_dict, tmp_path / "run", tmp_path / "bytes.json", **OVERRIDES)
    with pytest.raises(InteropError, match="absent"):
        api.convert(tmp_path / "absent.npz", tmp_path / "run", **OVERRIDES)
    with pytest.raises(ConfigError, match="already holds something"):
        api.convert(state_dict, tmp_path, **OVERRIDES)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.slow
def test_training_goes_on_from_the_weights_of_the_file(state_dict, tmp_path, monkeypatch):
    monkeypatch.setattr(LanguageModel, "generate", lambda self, prompt: prompt)  # takes longer to compile than to train
    (tmp_path / "ids.txt").write_text(" ".join(str(i) for i in np.random.default_rng(0).integers(0, V, 400)))
    model = api.convert(state_dict, tmp_path / "run", **OVERRIDES)
    changes = {
        "data.source": "text",
        "data.path": str(tmp_path / "ids.txt"),
        "data.cache_dir": str(tmp_path / "cache"),
        "data.tokenizer_path": str(tmp_path / "run" / "tokenizer.json"),
        "training.max_steps": 1,
        "training.global_batch": 2,
        "training.micro_batch": 2,
        "training.eval_batches": 1,
        "optimizer.learning_rate": 1e-4,
    }
    lines = []
    result = train(build(override(dataclasses.asdict(model.config), changes)), tmp_path / "run", echo=lines.append)
    assert result.finished
    assert "resuming from step 0" in lines
    trained = export_state_dict(sem_jax.load(tmp_path / "run").parts)
    moves = {name: np.abs(array - STATE[name]).max() for name, array in trained.items()}
    buffers = {name for name in STATE if name.endswith(("edge_indices", "_sparse_idx_sym", "positional_phase"))}
    assert {name for name, move in moves.items() if move == 0} == buffers
    # Adam's first step is the learning rate in each direction, and decay adds a tenth of the weight, at most 0.4.
    assert max(moves.values()) < 1.5e-4
