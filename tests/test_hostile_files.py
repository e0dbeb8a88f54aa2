"""Files that are damaged or made to do harm: one line, no code that runs, no memory that a number asks for."""

from __future__ import annotations

import io
import json
import logging
import resource
import zipfile

import numpy as np
import pytest
import survival_fuzz

from sem_jax.interop import InteropError, files
from sem_jax.interop.files import read_state_dict

EVERY_LOADER = [
    "tokenizer.json", "config.json", "metrics.jsonl", "jsonl", "parquet", "text", ".npz", ".safetensors", ".pt", "npy",
    "metadata.json", "shard record",
]  # fmt: skip


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    logging.disable(logging.CRITICAL)  # a rebuilt cache says so each time
    folder = tmp_path_factory.mktemp("hostile")
    yield survival_fuzz.loaders(folder)
    logging.disable(logging.NOTSET)
    assert [path.name for path in folder.rglob("*has run code")] == []


@pytest.fixture
def bounded_memory():
    """Within the test the process takes no more than 512 MiB on top of what it has taken before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19


def test_every_loader_is_tried(loaders):
    assert list(loaders) == EVERY_LOADER
    for loader in loaders.values():
        loader.read(loader.seeds[0])


@pytest.mark.parametrize("name", EVERY_LOADER)
def test_no_damaged_file_gets_past_its_loader_as_anything_but_an_error(loaders, name, bounded_memory):
    outcome = survival_fuzz.survive(loaders[name], 40, seed=1)
    assert outcome.failures == []
    assert outcome.read > 0
    assert outcome.read + outcome.refused == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_LOADER)
def test_none_of_many_damaged_files_does(loaders, name):
    assert survival_fuzz.survive(loaders[name], 1700, seed=2).failures == []


def npy(header):
    text = str(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def npz_of(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", content)
    return file.getvalue()


def form(shape, dtype="<f4"):
    return {"descr": dtype, "fortran_order": False, "shape": shape}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: npz_of(npy(form((2**62, 2**62)))), "its header tells of float32 of shape"),
        (lambda: npz_of(npy(form((-1, 4)))), "its header tells of"),
        (lambda: npz_of(npy(form((0,) * 40))), "its header tells of"),
        (lambda: npz_of(npy(form((4,), "|O"))), "pickled objects, which are never loaded"),
        (lambda: npz_of(npy("(" * 60)), "no .npy file of one array"),
        (lambda: npz_of(b""), "no .npy file of one array"),
        (lambda: b"", "no readable .npz file"),
    ],
    ids=["overflow", "negative", "axes", "objects", "parser", "empty member", "empty"],
)
def test_an_npz_that_lies_is_refused_before_memory_is_taken(tmp_path, bounded_memory, content, message):
    path = tmp_path / "model.npz"
    path.write_bytes(content())
    with pytest.raises(InteropError, match=message) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_an_npz_bomb_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    np.savez_compressed(path, x=np.zeros(2**20))
    assert read_state_dict(path)["x"].size == 2**20  # small enough to be let pass
    monkeypatch.setattr(files, "_SMALL", 2**20)
    monkeypatch.setattr(files, "read_array", None)  # not even the first array is read
    with pytest.raises(InteropError, match=r"tells of 8_388_736 bytes in .* no weights can be compressed to"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda torch: torch.zeros(1).expand(10**11), r"tells of 400_000_000_000 bytes where it holds 4"),
        (lambda torch: torch.ones(3).to(torch.float8_e4m3fn), r"x in .*model.pt has type torch.float8_e4m3fn"),
        (lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "model.pt"),
        (lambda torch: torch.ones(3, device="meta"), r"model.pt"),
        (lambda torch: torch.eye(3).to_sparse(), r"x in .*model.pt is a torch.sparse_coo tensor; save it dense"),
        (lambda torch: torch.ones(2, dtype=torch.complex32), r"has type torch.complex32"),
    ],
    ids=["expanded", "float8", "quantised", "meta", "sparse", "complex32"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_numpy_cannot_hold_is_named(tmp_path, bounded_memory, make, message):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"x": make(torch)}, path)
    with pytest.raises(InteropError, match=message) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value)


def test_a_compressed_torch_file_is_refused_before_memory_is_taken(tmp_path, bounded_memory):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(2**12)}, tmp_path / "sound.pt")
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in sound.namelist():
            bomb.writestr(member, sound.read(member) * (2**10 if "/data/" in member else 1))
    with pytest.raises(InteropError, match=r"tells of .* bytes where it holds"):
        read_state_dict(path)


@pytest.mark.parametrize("record", [".storage_alignment", ".Storage_Alignment"])
@pytest.mark.parametrize("alignment", [b"0", b"00", b"-64", b""])
def test_a_torch_file_that_aligns_by_nothing_is_refused(tmp_path, record, alignment):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(4), "y": torch.zeros(4)}, tmp_path / "sound.pt")
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(path, "w") as archive:
        for member in sound.namelist():
            name = member.replace(".storage_alignment", record)
            archive.writestr(name, alignment if name.endswith(record) else sound.read(member))
    # PyTorch alone would divide by zero and end the process.
    with pytest.raises(InteropError, match="which must be at least 1"):
        read_state_dict(path)


@pytest.mark.parametrize("shape", [[2**62, 4], [4], [2**40], [-1]])
def test_a_safetensors_file_that_lies_is_refused(tmp_path, shape, bounded_memory):
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 2**60]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(InteropError, match="no readable safetensors file"):
        read_state_dict(path)
