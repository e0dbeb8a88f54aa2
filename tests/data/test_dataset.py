import itertools
import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from corpora import Watched, make_texts, text_config, write_texts

from sem_jax.config import DataConfig
from sem_jax.data import DataError, open_dataset, train_tokenizer
from sem_jax.data.cache import cache_folder, open_streams
from sem_jax.data.dataset import open_tokenizer
from sem_jax.data.seal import unsealed
from sem_jax.data.sources import open_source
from sem_jax.data.splits import split_documents
from sem_jax.data.tokenizers import ByteTokenizer, CharTokenizer

TEXTS = make_texts(60)


def cached_files(config, part="tokens"):
    files = (cache_folder(config) / part).rglob("*")
    return sorted(path for path in files if path.is_file() and path.suffix != ".lock")


def stamps(config):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in cached_files(config)}


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_the_stream_is_boundary_text_eos_for_each_document_of_the_split(tmp_path, kind):
    config = text_config(tmp_path, TEXTS, tokenizer=kind, bpe_vocab_size=300)
    source = open_source(config)
    dataset = open_dataset(config, 0, 4)
    tokenizer = dataset.tokenizer
    for split, stream in open_streams(source, config, tokenizer).items():
        texts = [text for side, text in split_documents(source, config) if side == split]
        expected = [[tokenizer.boundary_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        assert stream.tokens.tolist() == list(itertools.chain(*expected))
        assert stream.tokens.dtype == np.uint16
        assert stream.num_documents == len(texts)
        assert stream.num_bytes == sum(len(text.encode()) for text in texts)


def test_sizes_and_bytes_per_token(tmp_path):
    dataset = open_dataset(text_config(tmp_path, TEXTS, tokenizer="bpe", bpe_vocab_size=300), 0, 4)
    batches = list(dataset.validation.evaluation_batches(10**6))
    weight = sum(batch.weights.sum() for batch in batches)
    text = sum((dataset.tokenizer.token_bytes[batch.tokens[:, 1:]] * batch.weights).sum() for batch in batches)
    assert text == dataset.validation_bytes
    assert dataset.bytes_per_token == pytest.approx(text / weight, rel=1e-6)
    assert dataset.train_bytes + dataset.validation_bytes == sum(len(text.encode()) for text in TEXTS)


def test_char_tail_windows_is_nanogpts_data(tmp_path):
    text = "".join(TEXTS)
    changes = {"tokenizer": "char", "split": "tail", "packing": "windows", "validation_fraction": 0.1}
    dataset = open_dataset(text_config(tmp_path, [text], **changes), 0, 4)
    cut = int(len(text) * 0.9)
    assert (dataset.train_tokens, dataset.validation_tokens) == (cut, len(text) - cut)
    for batches, part in ((dataset.train, text[:cut]), (dataset.validation, text[cut:])):
        rows = batches.batch(3).tokens
        assert all(dataset.tokenizer.decode(row) in part for row in rows)


def test_a_model_can_be_resumed_from_a_dataset_opened_anew(tmp_path):
    config = text_config(tmp_path, TEXTS)
    whole = [open_dataset(config, 5, 4).train.batch(step).tokens for step in range(10)]
    resumed = open_dataset(config, 5, 4)
    assert all(np.array_equal(resumed.train.batch(step).tokens, whole[step]) for step in range(5, 10))


class TestCache:
    def test_is_reused(self, tmp_path, monkeypatch):
        config = text_config(tmp_path, TEXTS, tokenizer="bpe", bpe_vocab_size=300)
        first, before = open_dataset(config, 0, 4), stamps(config)
        monkeypatch.setattr("sem_jax.data.dataset.train_tokenizer", None)  # would raise if it were called
        second = open_dataset(config, 1, 2)
        assert stamps(config) == before
        assert second.fingerprint == first.fingerprint
        assert len(before) == 3

    def test_can_be_used_from_a_folder_that_cannot_be_written_to(self, tmp_path, monkeypatch):
        config = text_config(tmp_path, TEXTS, tokenizer="char")
        open_dataset(config, 0, 4)
        for module in ("cache", "dataset"):
            monkeypatch.setattr(f"sem_jax.data.{module}.locked", None)
        open_dataset(config, 0, 4)

    @pytest.mark.parametrize(
        "change",
        [
            {"validation_fraction": 0.4},
            {"split": "tail"},
            {"tokenizer": "char"},
            {"max_documents": 50},
        ],
    )
    def test_another_configuration_has_another_cache(self, tmp_path, change):
        first = open_dataset(text_config(tmp_path, TEXTS), 0, 4)
        second = open_dataset(text_config(tmp_path, TEXTS, **change), 0, 4)
        assert first.fingerprint != second.fingerprint

    def test_an_edited_text_is_read_anew(self, tmp_path):
        config = text_config(tmp_path, TEXTS)
        first = open_dataset(config, 0, 4)
        write_texts(tmp_path / "corpus", ["X" + text[1:] for text in TEXTS])
        second = open_dataset(config, 0, 4)
        tokens = np.concatenate([second.train.batch(step).tokens.ravel() for step in range(20)])
        assert first.fingerprint != second.fingerprint
        assert ord("X") in tokens

    @pytest.mark.parametrize("damage", ["flip", "cut", "remove", "metadata", "metadata value", "metadata edited"])
    def test_damage_is_reported_and_mended(self, tmp_path, caplog, damage):
        config = text_config(tmp_path, TEXTS)
        before = open_dataset(config, 0, 4)
        expected = before.train.batch(0).tokens
        metadata, train, _ = cached_files(config)
        content = bytearray(train.read_bytes())
        if damage == "flip":
            content[100] ^= 1
            train.write_bytes(content)
        elif damage == "cut":
            train.write_bytes(content[:-2])
        elif damage == "remove":
            train.unlink()
        elif damage == "metadata":
            metadata.write_text(metadata.read_text()[:40])
        elif damage == "metadata value":
            metadata.write_text(json.dumps({"train": 3}))
        else:
            values = json.loads(metadata.read_text())
            values["train"]["tokens"] -= 1
            metadata.write_text(json.dumps(values))
        after = open_dataset(config, 0, 4)
        assert np.array_equal(after.train.batch(0).tokens, expected)
        assert caplog.text.count(f"the token cache {train.parent} is damaged") == 1

    @pytest.mark.parametrize("field", ["tokens", "bytes", "documents", "max_id", "checksum"])
    @pytest.mark.parametrize("value", [-1, 10**12, "3", None, 0.5, []])
    def test_metadata_without_a_seal_is_not_believed_either(self, tmp_path, field, value):
        config = text_config(tmp_path, TEXTS)
        expected = open_dataset(config, 0, 4)
        metadata, _, _ = cached_files(config)
        values = unsealed(json.loads(metadata.read_text()))
        values["train"][field] = value
        metadata.write_text(json.dumps(values))
        after = open_dataset(config, 0, 4)
        assert after.train_tokens == expected.train_tokens
        assert after.bytes_per_token == expected.bytes_per_token

    def test_a_damaged_tokenizer_is_trained_again(self, tmp_path, caplog):
        config = text_config(tmp_path, TEXTS, tokenizer="bpe", bpe_vocab_size=300)
        before = open_dataset(config, 0, 4).tokenizer.fingerprint
        (path,) = cached_files(config, "tokenizers")
        path.write_text(path.read_text()[:50])
        assert open_dataset(config, 0, 4).tokenizer.fingerprint == before
        assert caplog.text.count("it will be trained again") == 1

    @pytest.mark.parametrize("kind", ["bpe", "char"])
    def test_no_flipped_bit_makes_a_cached_tokenizer_another_one(self, tmp_path, kind):
        config = text_config(tmp_path, TEXTS, tokenizer=kind, bpe_vocab_size=300)
        source = open_source(config)
        before = open_tokenizer(source, TEXTS, config).fingerprint
        (path,) = cached_files(config, "tokenizers")
        content = path.read_bytes()
        for position in np.random.default_rng(0).choice(8 * len(content), 150, replace=False):
            damaged = bytearray(content)
            damaged[position // 8] ^= 1 << position % 8
            path.write_bytes(damaged)
            assert open_tokenizer(source, TEXTS, config).fingerprint == before, position

    @pytest.mark.parametrize(
        ("room", "message"), [(100, r"cannot write .*tokenizers/.*make room"), (3000, r"cannot build the token cache")]
    )
    def test_a_full_disk_is_named_and_nothing_half_written_stays(self, tmp_path, room, message):
        config = text_config(tmp_path, TEXTS, tokenizer="char")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # bytes of any file that this process writes
        try:
            with pytest.raises(DataError, match=message):
                open_dataset(config, 0, 4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert cached_files(config) == []
        assert len(cached_files(config, "tokenizers")) == (room == 3000)
        open_dataset(config, 0, 4)

    def test_nothing_is_left_of_a_build_that_failed_or_was_killed(self, tmp_path):
        config = text_config(tmp_path, TEXTS)
        with pytest.raises(DataError, match="is not among the 1 characters"):
            open_streams(open_source(config), config, CharTokenizer("a"))
        assert cached_files(config) == []

        fingerprint = open_dataset(config, 0, 4).fingerprint
        folder = cache_folder(config) / "tokens" / fingerprint
        killed = folder.with_suffix(".partial")
        folder.rename(killed)
        open_dataset(config, 0, 4)
        assert folder.is_dir()
        assert not killed.exists()

    def test_processes_that_start_together_share_one_build(self, tmp_path):
        config = text_config(tmp_path, make_texts(2000), tokenizer="bpe", bpe_vocab_size=300)
        script = (
            "import logging; logging.basicConfig(level='INFO');"
            "from sem_jax.config import DataConfig; from sem_jax.data import open_dataset;"
            f"print(open_dataset({config!r}, 0, 4).train.batch(3).tokens.sum())"
        )
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(3)]
        outputs = [process.communicate(timeout=60) for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], outputs
        assert len({out for out, _ in outputs}) == 1
        assert sum(err.count("tokenising") for _, err in outputs) == 1
        assert len(cached_files(config)) == 3

    def test_a_large_vocabulary_takes_four_bytes(self, tmp_path, monkeypatch):
        config = text_config(tmp_path, TEXTS)
        monkeypatch.setattr(ByteTokenizer, "vocab_size", 2**16 + 1)
        streams = open_streams(open_source(config), config, ByteTokenizer())
        assert streams["train"].tokens.dtype == np.uint32
        assert streams["train"].tokens.max() == 260

    def test_ids_outside_the_vocabulary_are_never_served(self, tmp_path, monkeypatch):
        config = text_config(tmp_path, TEXTS)
        monkeypatch.setattr(ByteTokenizer, "vocab_size", 260)
        with pytest.raises(DataError, match="holds id 260, the vocabulary has 260"):
            open_dataset(config, 0, 4)

    def test_the_folder_follows_configuration_then_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SEM_JAX_CACHE", str(tmp_path / "environment"))
        assert cache_folder(DataConfig()) == tmp_path / "environment"
        assert cache_folder(DataConfig(cache_dir=str(tmp_path))) == tmp_path
        monkeypatch.delenv("SEM_JAX_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cache_folder(DataConfig()) == tmp_path / ".cache" / "sem_jax"

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"cannot write to the cache folder .*file/tokens.*SEM_JAX_CACHE"):
            open_dataset(text_config(tmp_path, TEXTS, cache_dir=str(tmp_path / "file")), 0, 4)


class TestTokenizerPath:
    def test_the_file_is_used(self, tmp_path):
        tokenizer = train_tokenizer("bpe", TEXTS[:5], 280)
        tokenizer.save(tmp_path / "t.json")
        config = text_config(tmp_path, TEXTS, tokenizer="bpe", tokenizer_path=str(tmp_path / "t.json"))
        assert open_dataset(config, 0, 4).tokenizer.fingerprint == tokenizer.fingerprint
        assert cached_files(config, "tokenizers") == []

    def test_another_kind_than_configured_is_an_error(self, tmp_path):
        train_tokenizer("bpe", TEXTS[:5], 280).save(tmp_path / "t.json")
        with pytest.raises(DataError, match=r"t.json is a bpe tokenizer, .*; set config.data.tokenizer = bpe"):
            open_dataset(text_config(tmp_path, TEXTS, tokenizer_path=str(tmp_path / "t.json")), 0, 4)

    def test_trained_tokenizers_see_only_the_training_split(self, tmp_path):
        config = text_config(tmp_path, ["abab" * 50 + "Ж"], split="tail", tokenizer="char")
        with pytest.raises(DataError, match="'Ж'"):
            open_dataset(config, 0, 4)


def test_the_standard_library_is_ready_to_train_on(tmp_path):
    dataset = open_dataset(DataConfig(cache_dir=str(tmp_path)), 0, 16)
    assert dataset.train_bytes > 5e6
    assert 0.02 < dataset.validation_bytes / dataset.train_bytes < 0.1
    batch = dataset.train.batch(0)
    assert "self" in dataset.tokenizer.decode(np.concatenate([dataset.train.batch(i).tokens.ravel() for i in range(9)]))
    assert batch.tokens.max() < dataset.tokenizer.vocab_size


class TestHowOftenASourceIsRead:
    def fields(self, tmp_path, **changes):
        return {"source": "watched", "path": "-", "validation_fraction": 0.2, "cache_dir": str(tmp_path)} | changes

    def test_once_and_the_sample_of_a_bpe_before_that(self, tmp_path, monkeypatch):
        watched = Watched(monkeypatch, TEXTS)
        fields = self.fields(tmp_path, tokenizer="bpe", bpe_vocab_size=300, tokenizer_sample=10, seq_length=16)
        open_dataset(DataConfig(**fields), 0, 4)
        assert watched.passes[1:] == [60]
        assert 10 <= watched.passes[0] < 20
        open_dataset(DataConfig(**fields), 0, 4)
        assert len(watched.passes) == 2

    def test_tail_asks_once_how_long_the_text_is(self, tmp_path, monkeypatch):
        watched = Watched(monkeypatch, TEXTS)
        open_dataset(DataConfig(**self.fields(tmp_path, split="tail", tokenizer="char", seq_length=16)), 0, 4)
        assert watched.passes == [60, 60, 60]  # its length, the characters, the ids

    def test_a_sample_as_large_as_the_corpus_changes_nothing(self, tmp_path, monkeypatch):
        Watched(monkeypatch, TEXTS)
        fields = self.fields(tmp_path, tokenizer="bpe", bpe_vocab_size=300)
        prints = [
            open_dataset(DataConfig(**fields, tokenizer_sample=sample), 0, 4).tokenizer.fingerprint
            for sample in (0, 60, 20_000, 10)
        ]
        assert prints[0] == prints[1] == prints[2] != prints[3]
