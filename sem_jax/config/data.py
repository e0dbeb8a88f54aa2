"""The data: where text comes from and how it becomes batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sem_jax.config.fields import LONGEST, MOST_IDS, MOST_STEPS, setting


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes batches."""

    source: str = setting(
        "pystdlib",
        "a name of sem_jax/data/sources.py: the Python standard library (pystdlib), files (text, jsonl, parquet), or a "
        "dataset of the Hugging Face hub (hf)",
    )
    path: str = setting("", "file, folder or glob, several with commas (text, jsonl, parquet); name of a dataset (hf)")
    hf_config: str = setting("", "configuration of the dataset (hf)")
    hf_split: str = setting("train", "split of the dataset (hf)")
    text_field: str = setting("text", "field of a record that holds its text (jsonl, parquet, hf)")
    score_field: str = setting("", "field of a record that holds its quality score; empty: no filter")
    min_score: float = setting(0.0, "least score of a document that is read")
    max_documents: int = setting(
        0, "documents that are read at most; 0: all", unit="documents", at_least=0, at_most=MOST_STEPS
    )
    split: Literal["hash", "tail"] = setting(
        "hash", "hold out whole documents by their hash, or the last share of the characters"
    )
    validation_fraction: float = setting(0.05, "share that is held out for validation", above=0, below=1)
    tokenizer: Literal["byte", "char", "bpe", "ids"] = setting(
        "byte", "how text becomes tokens; ids: text is numbers, of a converted model"
    )
    tokenizer_path: str = setting("", "a trained tokenizer; empty: train one on the source and cache it")
    tokenizer_sample: int = setting(
        20_000,
        "documents of the training split that a bpe tokenizer is trained on at most; 0: all",
        unit="documents",
        at_least=0,
        at_most=MOST_STEPS,
    )
    bpe_vocab_size: int = setting(
        4096, "vocabulary of a BPE that is trained here", unit="tokens", at_least=1, at_most=MOST_IDS
    )
    seq_length: int = setting(128, "length of a training sequence", unit="tokens", at_least=1, at_most=LONGEST)
    packing: Literal["documents", "windows"] = setting(
        "documents", "packed documents, or random windows of one long stream"
    )
    reset_at_boundary: bool = setting(True, "conv, SSM, encoder and position start afresh at each document")
    stream: bool = setting(
        False, "read the source while training: tokens are cached in shards as they come; needs packing = documents"
    )
    shard_tokens: int = setting(
        2**22,
        "size of one shard; the order is shuffled within a shard (stream)",
        unit="tokens",
        at_least=1,
        at_most=2**28,
    )
    cache_dir: str = setting("", "folder of tokens and tokenizers; empty: $SEM_JAX_CACHE or ~/.cache/sem_jax")
