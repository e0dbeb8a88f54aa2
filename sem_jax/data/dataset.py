"""The way from a `DataConfig` to batches: source, tokenizer, cached tokens, sequences."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sem_jax.config import DataConfig
from sem_jax.data.batches import Chunks, EvaluationBatches, Sequences, TrainingBatches, Windows
from sem_jax.data.cache import TokenStream, cache_folder, open_packed, open_streams, stream_key
from sem_jax.data.errors import DataError
from sem_jax.data.files import fingerprint, locked
from sem_jax.data.head import Head
from sem_jax.data.packing import Packer
from sem_jax.data.producer import Producer
from sem_jax.data.shards import ShardFolder
from sem_jax.data.sources import Source, open_source
from sem_jax.data.splits import Split, tokenizer_texts
from sem_jax.data.streaming import StreamedChunks
from sem_jax.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer, save_sealed, train_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A tokenised corpus, or a stream of which a part is tokenised.

    Attributes:
      tokenizer: turns prompts into ids and ids into text.
      train, validation: the splits as batches.
      train_tokens, validation_tokens: ids in each split, special tokens included; None of a stream's training split,
        whose end is not known.
      train_bytes, validation_bytes: UTF-8 bytes of the text in each split; None likewise.
      bytes_per_token: of the validation split, counting the tokens that batches weigh: mean nats per weighted token
        divided by ln 2 and by this are bits per byte.
      fingerprint: equal for equal text, split and tokenizer.
    """

    tokenizer: Tokenizer
    train: TrainingBatches
    validation: EvaluationBatches
    train_tokens: int | None
    validation_tokens: int
    train_bytes: int | None
    validation_bytes: int
    bytes_per_token: float
    fingerprint: str

    def close(self) -> None:
        """Ends the reading of a stream in the background; a batch that waits for it fails."""
        if isinstance(self.train, StreamedChunks):
            self.train.close()


def open_dataset(config: DataConfig, seed: int, global_batch: int) -> Dataset:
    """Opens the corpus of `config`, tokenising it on first use, or while training if it is a stream.

    Args:
      config: what to read and how to cut it.
      seed: selects the order of the training sequences.
      global_batch: sequences in a batch.

    Raises:
      DataError: text, tokenizer or cache folder cannot be used; the message says why and what to do.
    """
    source = open_source(config)
    return (_open_stream if config.stream else _open_whole)(source, config, seed, global_batch)


def _open_whole(source: Source, config: DataConfig, seed: int, global_batch: int) -> Dataset:
    tokenizer = open_tokenizer(source, tokenizer_texts(source, config), config)
    streams = open_streams(source, config, tokenizer)
    train, validation = streams["train"], streams["validation"]

    def batches(stream: TokenStream) -> Windows | Chunks:
        sequences = Sequences(stream.tokens, config.seq_length, tokenizer.boundary_id, config.reset_at_boundary)
        return (Windows if config.packing == "windows" else Chunks)(sequences, seed, global_batch)

    return Dataset(
        tokenizer=tokenizer,
        train=batches(train),
        validation=batches(validation),
        train_tokens=len(train.tokens),
        validation_tokens=len(validation.tokens),
        train_bytes=train.num_bytes,
        validation_bytes=validation.num_bytes,
        bytes_per_token=_bytes_per_token(validation, tokenizer),
        fingerprint=stream_key(source, config, tokenizer),
    )


def _open_stream(source: Source, config: DataConfig, seed: int, global_batch: int) -> Dataset:
    """Reads the head of the source, where tokenizer and validation split are not cached; the rest comes on demand.

    The validation split is what the hash holds out of the head. Further documents that it would hold out are passed
    over, so that a longer head never turns training text into validation text.
    """
    head = Head(source, config)
    tokenizer = open_tokenizer(source, head.texts("train"), config)
    key = fingerprint(stream_key(source, config, tokenizer), config.shard_tokens, config.tokenizer_sample)
    folder = cache_folder(config) / "tokens" / key
    held_out: Iterator[tuple[Split, str]] = (("validation", text) for text in head.texts("validation"))
    validation = open_packed(folder / "validation", ("validation",), held_out, tokenizer)["validation"]
    sequences = Sequences(validation.tokens, config.seq_length, tokenizer.boundary_id, config.reset_at_boundary)
    shards = ShardFolder(folder / "shards", tokenizer)
    producer = Producer(shards, head.whole_source, Packer(tokenizer), config)
    return Dataset(
        tokenizer=tokenizer,
        train=StreamedChunks(shards, producer, config, tokenizer, seed, global_batch),
        validation=Chunks(sequences, seed, global_batch),
        train_tokens=None,
        validation_tokens=len(validation.tokens),
        train_bytes=None,
        validation_bytes=validation.num_bytes,
        bytes_per_token=_bytes_per_token(validation, tokenizer),
        fingerprint=key,
    )


def _bytes_per_token(stream: TokenStream, tokenizer: Tokenizer) -> float:
    num_boundaries = 0 if tokenizer.boundary_id is None else stream.num_documents
    return stream.num_bytes / (len(stream.tokens) - num_boundaries)


def open_tokenizer(source: Source, texts: Iterable[str], config: DataConfig) -> Tokenizer:
    """The tokenizer at `tokenizer_path`, or a cached one, or one trained and cached.

    Args:
      source: names the cached one.
      texts: the sample of `source` to train on, read only for that.
      config: which kind of tokenizer.

    Raises:
      DataError: the file holds another kind of tokenizer than `config.tokenizer`, or cannot be used.
    """
    if config.tokenizer_path:
        tokenizer = load_tokenizer(config.tokenizer_path)
        if tokenizer.kind != config.tokenizer:
            raise DataError(
                f"{config.tokenizer_path} is a {tokenizer.kind} tokenizer, config.data.tokenizer = {config.tokenizer}; "
                f"set config.data.tokenizer = {tokenizer.kind}"
            )
        return tokenizer
    return ByteTokenizer() if config.tokenizer == "byte" else _cached_tokenizer(source, texts, config)


def _cached_tokenizer(source: Source, texts: Iterable[str], config: DataConfig) -> Tokenizer:
    size = (config.bpe_vocab_size, config.tokenizer_sample) if config.tokenizer == "bpe" else ()
    key = fingerprint(source.fingerprint, config.split, config.validation_fraction, config.tokenizer, size)
    path = cache_folder(config) / "tokenizers" / f"{key}.json"
    with contextlib.suppress(DataError):  # first without the lock, so that a folder that cannot be written to will do
        return load_tokenizer(path)
    with locked(path.with_suffix(".lock")):
        try:
            return load_tokenizer(path)
        except DataError as error:
            if path.exists():
                _log.warning("%s; it will be trained again", error)
        tokenizer = train_tokenizer(config.tokenizer, texts, config.bpe_vocab_size)
        save_sealed(tokenizer, path)
        return tokenizer
