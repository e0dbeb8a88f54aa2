"""Trains a tokenizer on the training split of a corpus and saves it.

    python -m sem_jax.tokenizer --source=text --path=books/ --kind=bpe --vocab_size=8192 --output=tokenizer.json
    python -m sem_jax.tokenizer --config=configs/quickstart.py --config.data.tokenizer=bpe --output=tokenizer.json

A run uses it with `--config.data.tokenizer=bpe --config.data.tokenizer_path=tokenizer.json`. Without one, a run trains
its own and keeps it in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from absl import app, flags
from ml_collections import config_flags

from sem_jax import config as config_lib
from sem_jax.cli import parse_flags, reporting_errors
from sem_jax.config import DataConfig
from sem_jax.data.files import require_writable
from sem_jax.data.head import Head
from sem_jax.data.sources import Source, open_source
from sem_jax.data.splits import split_documents, tokenizer_texts
from sem_jax.data.tokenizers import Tokenizer, train_tokenizer

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file; without one, the default configuration.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_SHORTHANDS = {
    "source": flags.DEFINE_string("source", None, "Short for --config.data.source."),
    "path": flags.DEFINE_string("path", None, "Short for --config.data.path."),
    "tokenizer": flags.DEFINE_string("kind", None, "Short for --config.data.tokenizer: byte, char or bpe."),
    "bpe_vocab_size": flags.DEFINE_integer("vocab_size", None, "Short for --config.data.bpe_vocab_size."),
}


def data_config() -> DataConfig:
    """The data configuration that the flags describe.

    Raises:
      ConfigError: a value is impossible.
    """
    config = _CONFIG.value or config_lib.default()
    for field, flag in _SHORTHANDS.items():
        if flag.value is not None:
            config.data[field] = flag.value
    return config_lib.build(config).data


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """How far the tokenizer compresses texts."""
    num_tokens = num_bytes = 0
    for text in texts:
        ids = tokenizer.encode(text)
        num_tokens += len(ids)
        num_bytes += int(tokenizer.token_bytes[ids].sum())
    return num_bytes / num_tokens


def texts_of(source: Source, config: DataConfig) -> tuple[Iterator[str], Iterator[str]]:
    """What to train on, and held-out text to judge by: of a stream, both are from its head."""
    if config.stream:
        head = Head(source, config)
        return head.texts("train"), head.texts("validation")
    held_out = (text for split, text in split_documents(source, config) if split == "validation")
    return tokenizer_texts(source, config), held_out


@reporting_errors
def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    config = data_config()
    require_writable(_OUTPUT.value)
    texts, held_out = texts_of(open_source(config), config)
    tokenizer = train_tokenizer(config.tokenizer, texts, config.bpe_vocab_size)
    ratio = bytes_per_token(tokenizer, held_out)
    tokenizer.save(_OUTPUT.value)
    print(f"{config.tokenizer} tokenizer, vocabulary {tokenizer.vocab_size}, {ratio:.3f} bytes per token on validation")
    print(f"use it with --config.data.tokenizer={config.tokenizer} --config.data.tokenizer_path={_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
