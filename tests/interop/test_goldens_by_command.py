"""The recorded models by the command line: converted, evaluated on the recorded tokens, exported again."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import golden_models as golden
import numpy as np
import pytest
from state_dicts import differing

from sem_jax.interop.files import read_state_dict, write_state_dict

ROOT = pathlib.Path(__file__).parents[2]

# Recording and evaluation are both float32, so the differences are twice those of a recording to double precision,
# whose origin tests/modules/test_goldens.py explains.
TOLERANCES = {"amp_sq": 1e-5, "logits": 4e-5, "loss": 2e-6, "unitary_divergence": 2e-6}


def run(cache, module, *flags):
    environment = os.environ | {"SEM_JAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"sem_jax.{module}", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=cache)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model_tiny", "model_wide"])
def test_a_recorded_model_says_by_the_commands_what_was_recorded(name, tmp_path):
    recorded = golden.load(name)
    state, outputs = golden.group(recorded, "param"), golden.group(recorded, "out")
    write_state_dict(tmp_path / "model.npz", state)
    np.save(tmp_path / "tokens.npy", recorded["in/token_ids"])
    tokens = [f"--tokens={tmp_path}/tokens.npy", f"--dump={tmp_path}/out.npz"]
    if "in/token_freqs" in recorded:
        np.save(tmp_path / "freqs.npy", recorded["in/token_freqs"])
        tokens.append(f"--token_freqs={tmp_path}/freqs.npy")
    workdir = f"--workdir={tmp_path}/run"

    settings = [f"--set={key}={value}" for key, value in golden.overrides(recorded).items()]
    told = run(tmp_path, "convert", f"--state_dict={tmp_path}/model.npz", workdir, *settings)
    assert f"ids vocabulary of {state['sampler.output_bias'].size}, step 0" in told

    told = run(tmp_path, "evaluate", workdir, *tokens)
    with np.load(tmp_path / "out.npz") as file:
        dump = {key: file[key] for key in file.files}
    assert dump.keys() == {*TOLERANCES, "nll"}
    for key, tolerance in TOLERANCES.items():
        assert dump[key].shape == outputs[key].shape
        assert np.max(np.abs(dump[key] - outputs[key])) <= tolerance * np.max(np.abs(outputs[key])), key
    logits, ids = outputs["logits"].astype(float), recorded["in/token_ids"]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_probs[:, :-1], ids[:, 1:, None], axis=-1).mean()
    assert dump["nll"] == pytest.approx(nll, rel=TOLERANCES["loss"])
    assert f"nll                {dump['nll']:.6f}" in told

    run(tmp_path, "convert", workdir, f"--to={tmp_path}/back.safetensors")
    assert differing(read_state_dict(tmp_path / "back.safetensors"), state) == []
