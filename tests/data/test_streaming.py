"""A source that is read while a model trains: when it is read, what becomes of it, and what can go wrong."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from corpora import Watched, make_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources import write_parquet

from sem_jax.config import DataConfig
from sem_jax.data import DataError, open_dataset
from sem_jax.data import producer as producer_module
from sem_jax.data import streaming as streaming_module
from sem_jax.data.cache import cache_folder
from sem_jax.data.feed import Feed
from sem_jax.data.packing import Packer
from sem_jax.data.splits import split_by_hash
from sem_jax.data.tokenizers import ByteTokenizer

TEXTS = make_texts(200)
FRACTION = 0.2
SHARD = 1000  # some four documents
BATCH = 8
SEQ = 16


def config_of(folder, **changes) -> DataConfig:
    fields = {"source": "watched", "path": "somewhere", "stream": True, "tokenizer_sample": 20, "shard_tokens": SHARD}
    fields |= {"validation_fraction": FRACTION, "seq_length": SEQ, "cache_dir": str(folder)}
    return DataConfig(**(fields | changes))


@pytest.fixture
def source(monkeypatch):
    return Watched(monkeypatch, TEXTS)


def shard_folder(config):
    return cache_folder(config) / "tokens" / open_dataset(config, 0, BATCH).fingerprint / "shards"


def expected_tokens(texts=TEXTS, tokenizer=None):
    pack = Packer(tokenizer or ByteTokenizer())
    return np.concatenate(pack([text for text in texts if split_by_hash(text, FRACTION) == "train"]))


def cached_tokens(config):
    return np.concatenate([np.fromfile(path, np.uint16) for path in sorted(shard_folder(config).glob("*.bin"))])


def read_all(config):
    """A dataset whose shards have all been made."""
    dataset = open_dataset(config, 0, BATCH)
    dataset.train.batch(10**6)
    return dataset


def bits(batch):
    return [array.tobytes() for array in batch]


def num_chunks(tokens):
    return sum(-(-(min(SHARD, tokens - first) - 1) // SEQ) for first in range(0, tokens, SHARD))


# When the source is read


def test_training_begins_before_the_source_has_been_read_to_its_end(tmp_path, source):
    source.gate_at = 45
    dataset = open_dataset(config_of(tmp_path), 0, BATCH)
    batch = dataset.train.batch(0)  # would fail after 30 s
    assert batch.weights.sum() > 0
    wait_until(lambda: source.passes == [44])
    source.gate.set()
    dataset.train.batch(10**6)
    assert source.passes == [200]
    assert (dataset.train_tokens, dataset.train_bytes) == (None, None)


def test_the_head_is_read_once_for_the_tokenizer_the_validation_split_and_the_first_shard(tmp_path, source):
    config = config_of(tmp_path, tokenizer="bpe", bpe_vocab_size=300)
    first = open_dataset(config, 0, BATCH)
    assert 20 <= source.passes[0] < 40
    assert source.passes == [sum(1 for _ in head_of(TEXTS, 20))]
    first.train.batch(10**6)
    assert source.passes == [200]
    again = open_dataset(config, 0, BATCH)
    again.train.batch(10**6)
    assert source.passes == [200]
    assert again.fingerprint == first.fingerprint
    held_out = [text for text in head_of(TEXTS, 20) if split_by_hash(text, FRACTION) == "validation"]
    assert first.validation_bytes == sum(len(text.encode()) for text in held_out)
    assert first.bytes_per_token == again.bytes_per_token > 1


def head_of(texts, sample):
    for text in texts:
        yield text
        sample -= split_by_hash(text, FRACTION) == "train"
        if not sample:
            return


def test_no_more_shards_are_made_than_training_needs_soon(tmp_path, source):
    config = config_of(tmp_path, shard_tokens=300)
    dataset = open_dataset(config, 0, 1)
    dataset.train.batch(0)
    lead = producer_module._LEAD
    wait_until(lambda: len(list(shard_folder(config).glob("*.json"))) == lead + 1)
    time.sleep(0.1)
    assert len(list(shard_folder(config).glob("*.json"))) == lead + 1
    assert source.passes[0] < 50
    dataset.train.batch(300 // SEQ + 1)  # in the second shard
    wait_until(lambda: len(list(shard_folder(config).glob("*.json"))) == lead + 2)


def wait_until(holds):
    for _ in range(500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass within 5 s")


def test_a_long_run_keeps_few_shards_open(tmp_path, source):
    dataset = open_dataset(config_of(tmp_path), 0, BATCH)
    shards = 0
    for step in range(200):
        dataset.train.batch(step)
        shards = max(shards, len(dataset.train._open))
    assert len(list(shard_folder(config_of(tmp_path)).glob("*.json"))) > 20
    assert shards == streaming_module._OPEN_SHARDS


def test_cut_anew_a_stream_gives_the_batches_of_the_other_size_and_is_read_once(tmp_path, source):
    recut = open_dataset(config_of(tmp_path), 0, BATCH).train.recut(40, 3)
    gc.collect()  # whoever holds the new batches holds the reading of the source
    batches = [bits(recut.batch(step)) for step in (0, 5, 2, 400)]
    assert len(source.passes) == 1
    fresh = open_dataset(config_of(tmp_path, seq_length=40), 0, 3).train
    assert batches == [bits(fresh.batch(step)) for step in (0, 5, 2, 400)]
    recut.close()


# The tokens


def test_the_shards_are_the_training_documents_and_all_but_the_last_are_full(tmp_path, source):
    config = config_of(tmp_path)
    dataset = read_all(config)
    np.testing.assert_array_equal(cached_tokens(config), expected_tokens())
    sizes = [json.loads(path.read_text())["tokens"] for path in sorted(shard_folder(config).glob("*.json"))]
    assert set(sizes[:-1]) == {SHARD}
    assert 0 < sizes[-1] <= SHARD
    assert dataset.tokenizer.vocab_size == 261


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_source_may_end_at_the_border_of_a_shard(tmp_path, source, extra):
    source.texts = TEXTS[:20]
    total = len(expected_tokens(source.texts))
    config = config_of(tmp_path, shard_tokens=total + extra)
    read_all(config)
    np.testing.assert_array_equal(cached_tokens(config), expected_tokens(source.texts))
    assert len(list(shard_folder(config).glob("*.bin"))) == (2 if extra < 0 else 1)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    size=st.integers(1, 60),
    group=st.integers(1, 100),
    stop=st.integers(0, 30),
)
def test_a_feed_goes_on_anywhere_and_loses_or_doubles_no_token(lengths, size, group, stop):
    texts = [f"{i}" + "x" * length for i, length in enumerate(lengths)]

    def feed():
        return Feed(texts, 0.0, Packer(ByteTokenizer()), group)

    whole, parts, positions = feed(), [], []
    while not whole.at_end():
        parts.append(whole.take(size))
        whole.at_end()
        positions.append(whole.position)
    everything = np.concatenate(Packer(ByteTokenizer())(texts))
    np.testing.assert_array_equal(np.concatenate(parts), everything)
    stop = min(stop, len(parts) - 1)
    other = feed()
    other.take(size * (stop // 2))  # it need not be a fresh one
    other.seek(positions[stop])
    np.testing.assert_array_equal(other.take(10**4), everything[(stop + 1) * size :])


def test_held_out_documents_never_appear_in_training(tmp_path, source):
    held_out = [text for text in TEXTS if split_by_hash(text, FRACTION) == "validation"]
    assert len(held_out) > 25
    config = config_of(tmp_path)
    dataset = read_all(config)
    trained = dataset.tokenizer.decode(cached_tokens(config))
    judged = "".join(map(dataset.tokenizer.decode, next(dataset.validation.evaluation_batches(1)).tokens))
    assert not [text for text in held_out if text in trained]
    assert held_out[0][:SEQ] in judged


# A batch is a function of (seed, step)


def test_a_batch_has_the_same_bits_fresh_resumed_and_cached(tmp_path, source):
    steps = range(350)  # an epoch and a quarter
    fresh = open_dataset(config_of(tmp_path / "fresh"), 3, BATCH)
    expected = [bits(fresh.train.batch(step)) for step in steps]
    assert len({tuple(batch) for batch in expected}) == len(steps)

    cached = open_dataset(config_of(tmp_path / "fresh"), 3, BATCH)
    assert [bits(cached.train.batch(step)) for step in reversed(steps)] == expected[::-1]

    for keep in (0, 1, 7):  # shards that a stopped run has left
        folder = tmp_path / f"resumed {keep}"
        shutil.copytree(tmp_path / "fresh", folder)
        for path in sorted(shard_folder(config_of(folder)).glob("*.*"))[2 * keep :]:
            path.unlink()
        later = (120, 10, 340)
        resumed = open_dataset(config_of(folder), 3, BATCH)
        assert [bits(resumed.train.batch(step)) for step in later] == [expected[step] for step in later]
        np.testing.assert_array_equal(cached_tokens(config_of(folder)), expected_tokens())


def test_the_seed_changes_the_order_within_a_shard_and_nothing_else(tmp_path, source):
    per_shard = -(-(SHARD - 1) // SEQ)
    rows = []
    for seed in (0, 1):
        dataset = open_dataset(config_of(tmp_path), seed, per_shard)
        rows.append([dataset.train.batch(step).tokens for step in range(3)])
    for one, other in zip(*rows, strict=True):
        assert not np.array_equal(one, other)
        assert sorted(map(tuple, one.tolist())) == sorted(map(tuple, other.tolist()))


def test_after_the_end_comes_the_beginning_in_another_order(tmp_path, source):
    everything = expected_tokens()
    total = num_chunks(len(everything))
    dataset = open_dataset(config_of(tmp_path), 0, 1)
    epochs = [[dataset.train.batch(epoch * total + row) for row in range(total)] for epoch in range(3)]
    orders = []
    for epoch in epochs:
        orders.append([batch.tokens.tobytes() for batch in epoch])
        targets = np.concatenate([batch.tokens[0, 1:][batch.weights[0] == 1] for batch in epoch])
        # Every token but the first of each shard is a target, a boundary has no weight.
        wanted = np.delete(everything, np.arange(0, len(everything), SHARD))
        wanted = wanted[wanted != dataset.tokenizer.boundary_id]
        assert sorted(targets) == sorted(wanted)
    assert len({tuple(order) for order in orders}) == 3
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])


def test_a_batch_may_span_the_end_and_many_shards(tmp_path, source):
    total = num_chunks(len(expected_tokens()))
    one = open_dataset(config_of(tmp_path), 0, 1)
    wide = open_dataset(config_of(tmp_path), 0, total + 5)
    rows = np.concatenate([one.train.batch(row).tokens for row in range(total + 5)])
    np.testing.assert_array_equal(wide.train.batch(0).tokens, rows)


def test_two_streams_at_once_fill_one_cache(tmp_path, source, monkeypatch):
    monkeypatch.setattr(producer_module, "_LOOK", 30.0)  # a missed notice would be felt
    datasets = [open_dataset(config_of(tmp_path), 0, BATCH) for _ in range(3)]
    found = {}

    def train(number):
        found[number] = [bits(datasets[number].train.batch(step)) for step in range(300)]

    threads = [threading.Thread(target=train, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2]
    np.testing.assert_array_equal(cached_tokens(config_of(tmp_path)), expected_tokens())


def test_a_complete_cache_may_be_read_only(tmp_path, source, monkeypatch):
    first = bits(read_all(config_of(tmp_path)).train.batch(0))
    for module in ("cache", "dataset", "shards"):
        monkeypatch.setattr(f"sem_jax.data.{module}.locked", None)
    dataset = open_dataset(config_of(tmp_path), 0, BATCH)
    assert bits(dataset.train.batch(0)) == first
    dataset.train.batch(10**6)


@pytest.mark.parametrize("change", [{"shard_tokens": 999}, {"tokenizer_sample": 21}, {"validation_fraction": 0.3}])
def test_what_changes_the_batches_changes_the_fingerprint(tmp_path, source, change):
    first = open_dataset(config_of(tmp_path), 0, BATCH)
    assert open_dataset(config_of(tmp_path, **change), 0, BATCH).fingerprint != first.fingerprint
    assert open_dataset(config_of(tmp_path, seq_length=8), 0, BATCH).fingerprint == first.fingerprint


# What goes wrong


@pytest.mark.parametrize("document", [30, 61, 62, 63, 64, 199])
def test_after_an_error_at_any_document_the_stream_goes_on_to_the_same_tokens(tmp_path, source, document):
    config = config_of(tmp_path)
    source.fail_at = document
    broken = open_dataset(config, 0, BATCH)
    with pytest.raises(
        DataError,
        match=r"the stream broke off: cannot read config.data.source = watched, .*: the line is dead; check the",
    ):
        broken.train.batch(10**6)
    if document > 60:
        broken.train.batch(0)  # what was made is still served
    source.fail_at = 0
    read_all(config)
    np.testing.assert_array_equal(cached_tokens(config), expected_tokens())
    assert source.passes[-1] == 200


def test_an_error_in_the_head_comes_at_once(tmp_path, source):
    source.fail_at = 3
    with pytest.raises(DataError, match=r"cannot read .*'somewhere' after 2 documents: the line is dead; check"):
        open_dataset(config_of(tmp_path), 0, BATCH)


KILLED = """
import os, signal
from sem_jax.config import DataConfig
from sem_jax.data import open_dataset
from sem_jax.data import files
from sem_jax.data.corpus import Corpus
from sem_jax.data.sources import SOURCES

def read():
    for number, text in enumerate({texts!r}, 1):
        if number == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield text

replace, count = os.replace, 0
def dying_replace(*args):
    global count
    count += 1
    if count == {rename}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*args)
os.replace = dying_replace

SOURCES["watched"] = lambda config: Corpus(read, name=["watched"])
open_dataset({config!r}, 0, 8).train.batch(10**6)
"""


@pytest.mark.parametrize(("at", "rename"), [(100, 0), (0, 8), (0, 9)])  # while reading; before tokens, before a record
def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tmp_path, source, at, rename):
    config = config_of(tmp_path)
    script = KILLED.format(texts=TEXTS, at=at, rename=rename, config=config)
    assert subprocess.run([sys.executable, "-c", script], timeout=60, env=os.environ).returncode == -signal.SIGKILL
    assert 2 < len(list(shard_folder(config).glob("*.json"))) < 20
    read_all(config)
    np.testing.assert_array_equal(cached_tokens(config), expected_tokens())
    assert not list(shard_folder(config).glob(".*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "record"])
def test_a_damaged_shard_is_refused_and_can_be_made_anew(tmp_path, source, damage):
    config = config_of(tmp_path)
    per_shard = -(-(SHARD - 1) // SEQ)
    expected = bits(open_dataset(config, 0, per_shard).train.batch(5))
    tokens = shard_folder(config) / "000005.bin"
    content = bytearray(tokens.read_bytes())
    if damage == "flip":
        content[100] ^= 1
        tokens.write_bytes(content)
    elif damage == "cut":
        tokens.write_bytes(content[:-2])
    elif damage == "remove":
        tokens.unlink()
    else:
        tokens.with_suffix(".json").write_text("{")
    with pytest.raises(DataError, match=r"damaged.*delete .*000005.json and start the same command") as error:
        open_dataset(config, 0, per_shard).train.batch(5)
    assert "\n" not in str(error.value)
    os.unlink(re.search(r"delete (\S+)", str(error.value))[1])
    assert bits(open_dataset(config, 0, per_shard).train.batch(5)) == expected


def test_a_source_that_has_changed_is_noticed(tmp_path, source):
    config = config_of(tmp_path, shard_tokens=300)
    source.fail_at = 60
    with pytest.raises(DataError, match="the line is dead"):
        read_all(config)
    source.fail_at = 0
    source.texts = [text.upper() for text in TEXTS]
    with pytest.raises(DataError, match=r"document \d+ of the source is not the one that the cache was made from"):
        read_all(config)
    source.texts = TEXTS[:40]
    with pytest.raises(DataError, match="is not the one"):
        read_all(config)


def test_a_head_without_a_held_out_document_is_refused(tmp_path, source):
    with pytest.raises(DataError, match=r"the validation split has none of the first documents.*tokenizer_sample = 1"):
        open_dataset(config_of(tmp_path, tokenizer_sample=1), 0, BATCH)


def test_a_batch_that_waits_fails_when_the_stream_is_closed(tmp_path, source):
    source.gate_at = 100
    others = producers()
    dataset = open_dataset(config_of(tmp_path), 0, BATCH)
    failures = []

    def wait():
        try:
            dataset.train.batch(10**6)
        except DataError as error:
            failures.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: source.passes == [99])
    threading.Timer(0.2, source.gate.set).start()
    dataset.close()
    waiting.join(5)
    assert len(failures) == 1
    assert "the stream was closed" in failures[0]
    assert producers() <= others


def test_a_dataset_that_nobody_holds_reads_no_more(tmp_path, source):
    others = producers()
    dataset = open_dataset(config_of(tmp_path), 0, BATCH)
    dataset.train.batch(0)
    assert producers() > others
    del dataset
    gc.collect()
    wait_until(lambda: producers() <= others)


def producers():
    return {thread for thread in threading.enumerate() if thread.name == "producer"}


def test_a_hugging_face_dataset_streams_like_the_same_texts_in_a_file(tmp_path):
    pytest.importorskip("datasets")
    records = [{"text": text, "score": 4.0} for text in TEXTS] + [{"text": "poor", "score": 1.0}]
    (tmp_path / "edu").mkdir()
    write_parquet(tmp_path / "edu" / "train-00000.parquet", records)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"score_field": "score", "min_score": 3.0}
    batches = [
        bits(
            open_dataset(
                config_of(tmp_path / "cache", source=kind, path=str(tmp_path / name), **options), 0, 8
            ).train.batch(9)
        )
        for kind, name in (("hf", "edu"), ("jsonl", "a.jsonl"))
    ]
    assert batches[0] == batches[1]
