"""Text to batches: sources, tokenizers, the token cache, and batches that are functions of (seed, step)."""

from sem_jax.data.batches import Batch
from sem_jax.data.dataset import Dataset, open_dataset
from sem_jax.data.errors import DataError
from sem_jax.data.prefetch import Prefetch
from sem_jax.data.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "Batch",
    "DataError",
    "Dataset",
    "Prefetch",
    "Tokenizer",
    "load_tokenizer",
    "open_dataset",
    "train_tokenizer",
]
