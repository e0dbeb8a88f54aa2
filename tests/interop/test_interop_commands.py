"""How the commands around imported models fail: one line, and nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest
from commands import run_module
from state_dicts import make_state_dict

from sem_jax import api
from sem_jax.interop import write_state_dict


def run(folder, module, *flags):
    variables = {"SEM_JAX_CACHE": str(folder / "cache")}
    done = run_module(f"sem_jax.{module}", *flags, folder=folder, variables=variables)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines() + done.stdout.splitlines()


def test_a_state_dict_that_does_not_fit_is_one_error_that_lists_its_entries(tmp_path):
    np.savez(tmp_path / "model.npz", **{"encoder.embedding.weight": np.zeros((5, 8), np.float32), "x": np.zeros(3)})
    lines = run(tmp_path, "convert", "--state_dict=model.npz", "--workdir=run", "--set=cayley_dt=0.2")
    (first,) = [line for line in lines if line.startswith("error: ")]
    assert "model.npz is not a state dict of the original, 39 entries do not fit:" in first
    assert {"  missing     final_norm.gamma [8]", "  unexpected  x float64[3]"} <= set(lines)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--state_dict=m.npz", "--to=m.npz"], "give --state_dict with --set and --tokenizer to import, or --to"),
        (["--state_dict=m.npz", "--set=cayley_dt=fast"], "error: --set cayley_dt=fast is not of the form name=number"),
        (["--to=m.npz"], "error: {}/run/config.json does not exist, so {}/run is not the workdir of a run"),
    ],
    ids=["both", "no-number", "no-workdir"],
)
def test_conversions_that_cannot_be_are_explained(tmp_path, flags, part):
    lines = run(tmp_path, "convert", f"--workdir={tmp_path}/run", *flags)
    assert [line for line in lines if part.format(tmp_path, tmp_path) in line]


def test_tokens_outside_the_vocabulary_are_one_line_and_leave_no_dump(tmp_path, quick_compilation):
    write_state_dict(tmp_path / "model.npz", make_state_dict())
    api.convert(tmp_path / "model.npz", tmp_path / "run", sdr_sparsity=4)
    np.save(tmp_path / "tokens.npy", np.array([[3, 11]]))
    lines = run(tmp_path, "evaluate", "--workdir=run", "--tokens=tokens.npy", "--dump=out.npz")
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert "tokens.npy: token ids 3..11 leave the vocabulary 0..10" in error
    assert not (tmp_path / "out.npz").exists()
    assert [line for line in run(tmp_path, "evaluate", "--workdir=run", "--dump=out.npz") if "need --tokens" in line]
