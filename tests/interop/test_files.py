"""State dicts as files."""

from __future__ import annotations

import builtins
import os
import pathlib
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from state_dicts import OVERRIDES, differing, make_state_dict

from sem_jax.data import DataError
from sem_jax.interop import InteropError, export_state_dict, import_state_dict, write_state_dict
from sem_jax.interop.files import read_state_dict

STATE = make_state_dict()


def save_torch(path, content):
    torch = pytest.importorskip("torch")

    def tensors(value):
        if isinstance(value, dict):
            return {name: tensors(inner) for name, inner in value.items()}
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    torch.save(tensors(content), path)


WRITERS = {".pt": save_torch, ".safetensors": lambda path, state: save_file(state, path), ".npz": write_state_dict}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_of_every_kind_is_read_to_the_bit(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    WRITERS[suffix](path, STATE)
    assert differing(read_state_dict(path), STATE) == []
    assert differing(export_state_dict(import_state_dict(str(path), **OVERRIDES)[1]), STATE) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_what_is_written_comes_back_also_from_arrays_that_do_not_lie_in_order(tmp_path, suffix):
    path = tmp_path / "deep" / f"model{suffix}"
    arrays = {"turned": np.arange(12.0).reshape(3, 4).T, "step": np.arange(10)[::-2], "scalar": np.float32(-0.0)}
    write_state_dict(path, arrays)
    assert differing(read_state_dict(path), {name: np.asarray(array) for name, array in arrays.items()}) == []
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_of_a_compiled_run_is_read(tmp_path):
    path = tmp_path / "checkpoint.pt"
    compiled = {f"_orig_mod.{name}": array for name, array in STATE.items()}
    save_torch(path, {"model_state_dict": compiled, "step": 7, "optimizer": {"lr": 0.1}})
    assert differing(read_state_dict(path), STATE) == []


def test_bfloat16_is_read_exactly(tmp_path):
    torch = pytest.importorskip("torch")
    values = np.linspace(-3, 3, 7).astype(jnp.bfloat16)
    torch.save({"x": torch.from_numpy(values.astype(np.float32)).bfloat16()}, tmp_path / "model.pt")
    (torch_file,) = read_state_dict(tmp_path / "model.pt").values()
    save_file({"x": values}, tmp_path / "model.safetensors")
    (safetensors_file,) = read_state_dict(tmp_path / "model.safetensors").values()
    for found in (torch_file, safetensors_file):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found.astype(np.float32), values.astype(np.float32))


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return builtins.open, (str(self.path), "w")


def test_code_in_a_file_is_not_run(tmp_path):
    trace = tmp_path / "trace"
    torch = pytest.importorskip("torch")
    torch.save(STATE | {"payload": RunsCode(trace)}, tmp_path / "model.pt")
    np.savez(tmp_path / "model.npz", payload=np.array([RunsCode(trace)], object))
    for name in ("model.pt", "model.npz"):
        with pytest.raises(InteropError, match=name):
            import_state_dict(tmp_path / name)
    assert not trace.exists()


def test_without_pytorch_a_pt_file_names_the_cure(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InteropError, match=r"model\.pt needs PyTorch.*pip install '\.\[torch\]'"):
        import_state_dict(path)


@pytest.mark.parametrize("in_archive", [True, False])
def test_a_name_without_end_is_refused_before_torch_sees_it(tmp_path, in_archive):
    pickled = b"\x80\x02c" + b"a" * 10_000_000 + b"\nb\n."  # torch would search its own message for days
    path = tmp_path / "model.pt"
    if in_archive:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
    else:
        path.write_bytes(pickled)
    with pytest.raises(InteropError, match=r"model\.pt holds a name of 10,000,002 characters"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
@pytest.mark.parametrize("content", [b"", b"not a file of arrays", b"\x08\0\0\0\0\0\0\0{}      "[:12]], ids=str)
def test_damaged_files_are_named(tmp_path, suffix, content):
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(InteropError, match=rf"model\{suffix} "):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    WRITERS[suffix](path, STATE)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InteropError, match=rf"model\{suffix} "):
        read_state_dict(path)


def test_files_that_cannot_be_are_named(tmp_path):
    with pytest.raises(InteropError, match=r"absent\.npz does not exist"):
        read_state_dict(tmp_path / "absent.npz")
    with pytest.raises(InteropError, match=r"model\.bin .* must end in \.pt, \.safetensors, \.npz"):
        read_state_dict(tmp_path / "model.bin")
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(InteropError, match=r"single\.npz is no readable \.npz file"):
        read_state_dict(tmp_path / "single.npz")
    save_torch(tmp_path / "list.pt", [1, 2])
    with pytest.raises(InteropError, match=r"list\.pt holds a list"):
        read_state_dict(tmp_path / "list.pt")


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(InteropError, match=r"model\.pt cannot be written: its name must end in \.safetensors or \.npz"):
        write_state_dict(tmp_path / "model.pt", STATE)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*folder\.npz"):
        write_state_dict(tmp_path / "folder.npz", STATE)
    assert [path.name for path in pathlib.Path(tmp_path).iterdir()] == ["folder.npz"]


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "f4"), (np.inf, "f4"), (-np.inf, "f2"), (1e300, "f8")])
def test_weights_that_are_no_numbers_are_refused_by_name(value, dtype):
    weights = STATE["encoder.embedding.weight"].astype(dtype)
    weights[2, 3] = value
    with pytest.raises(
        InteropError, match=r"impossible +encoder\.embedding\.weight: 1 of 88 numbers are NaN, infinite"
    ):
        import_state_dict(STATE | {"encoder.embedding.weight": weights}, **OVERRIDES)
