import os

import numpy as np
import pytest

from sem_jax.data import DataError
from sem_jax.data.arrays import read_token_freqs, read_tokens, write_arrays


def saved(folder, array):
    np.save(folder / "x.npy", array)
    return folder / "x.npy"


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int32])
def test_tokens_of_every_integer_type_become_int32(tmp_path, dtype):
    tokens = read_tokens(saved(tmp_path, np.array([[0, 6], [3, 2]], dtype)), 7)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [[0, 6], [3, 2]]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([[0, 7]]), r"token ids 0\.\.7 leave the vocabulary 0\.\.6; encode"),
        (np.array([[-1, 3]]), r"token ids -1\.\.3 leave the vocabulary"),
        (np.array([[0.0, 1.0]]), r"must be integers of shape \[B, S\], got float64 of shape \[1, 2\]"),
        (np.array([0, 1]), r"must be integers of shape \[B, S\], got int64 of shape \[2\]"),
        (np.array([[True, False]]), r"must be integers of shape \[B, S\], got bool"),
        (np.array([["1", "2"]]), r"must be integers"),
        (np.zeros((2, 1), int), r"shape \[2, 1\] hold no token with a successor; give S >= 2"),
        (np.zeros((0, 4), int), r"shape \[0, 4\] hold no token with a successor"),
    ],
)
def test_tokens_that_cannot_be_are_named_with_their_file(tmp_path, tokens, message):
    with pytest.raises(DataError, match=rf"x\.npy: .*{message}"):
        read_tokens(saved(tmp_path, tokens), 7)


@pytest.mark.parametrize(
    ("freqs", "message"),
    [
        (np.ones(6), r"real numbers of shape \[7\], one for each token, got float64 of shape \[6\]"),
        (np.ones((7, 1)), r"of shape \[7\].* got float64 of shape \[7, 1\]"),
        (np.ones(7, complex), r"real numbers .* got complex128"),
        (np.array([1, 2, 3, 4, 5, 6, -1.0]), "finite and not negative"),
        (np.array([1, 2, 3, 4, 5, 6, np.nan]), "finite and not negative"),
        (np.array([1, 2, 3, 4, 5, 6, 1e300]), "finite and not negative"),  # infinite as float32
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_frequencies_that_cannot_be_are_named_with_their_file(tmp_path, freqs, message):
    with pytest.raises(DataError, match=rf"x\.npy: .*{message}"):
        read_token_freqs(saved(tmp_path, freqs), 7)


def test_frequencies_may_be_counts(tmp_path):
    freqs = read_token_freqs(saved(tmp_path, np.arange(7)), 7)
    assert freqs.dtype == np.float32
    assert freqs.tolist() == list(range(7))


@pytest.mark.parametrize("read", [read_tokens, read_token_freqs])
def test_files_that_are_no_arrays_are_named(tmp_path, read):
    with pytest.raises(DataError, match=r"cannot read .*absent\.npy: No such file"):
        read(tmp_path / "absent.npy", 7)
    (tmp_path / "text.npy").write_text("1 2 3")
    with pytest.raises(DataError, match=r"cannot read .*text\.npy: .*numpy\.save"):
        read(tmp_path / "text.npy", 7)
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    with pytest.raises(DataError, match=r"several\.npz: it is no .npy file of one array"):
        read(tmp_path / "several.npz", 7)
    np.save(tmp_path / "object.npy", np.array([{}], object))
    with pytest.raises(DataError, match=r"cannot read .*object\.npy"):
        read(tmp_path / "object.npy", 7)
    os.truncate(saved(tmp_path, np.zeros((2, 9), int)), 150)
    with pytest.raises(DataError, match=r"cannot read .*x\.npy"):
        read(tmp_path / "x.npy", 7)


def test_arrays_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "out.npz"
    write_arrays(path, {"a": np.arange(3), "b": np.float32(2)})
    with np.load(path) as file:
        assert {name: file[name].tolist() for name in file.files} == {"a": [0, 1, 2], "b": 2.0}
    before = path.read_bytes()

    class Breaks:
        def __array__(self, *_, **__):
            raise RuntimeError("no array")

    with pytest.raises(RuntimeError):
        write_arrays(path, {"a": np.zeros(1000), "b": Breaks()})
    assert path.read_bytes() == before
    with pytest.raises(DataError, match=r"out\.npy cannot be written: .*\.npz"):
        write_arrays(tmp_path / "deep" / "out.npy", {})
    assert [entry.name for entry in path.parent.iterdir()] == ["out.npz"]
