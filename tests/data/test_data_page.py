"""docs/data.md: its source works as written."""

from pathlib import Path

import numpy as np
import pytest
from corpora import make_texts
from small import example_in

from sem_jax.config import DataConfig
from sem_jax.data import DataError, open_dataset
from sem_jax.data.sources import SOURCES

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture
def csv_source(monkeypatch):
    monkeypatch.setitem(SOURCES, "csv", None)  # and so is taken out again at the end
    exec(example_in(PAGE), {})


def test_the_example_is_a_source_that_can_be_read_whole_and_streamed(tmp_path, csv_source):
    texts = make_texts(60)
    rows = ["id,body", *(f'{i},"{text}"' for i, text in enumerate(texts))]
    (tmp_path / "a.csv").write_bytes("\r\n".join(rows).encode())
    fields = {"source": "csv", "path": str(tmp_path), "text_field": "body", "cache_dir": str(tmp_path / "cache")}
    fields |= {"validation_fraction": 0.2, "seq_length": 16}
    whole = open_dataset(DataConfig(**fields), 0, 4)
    streamed = open_dataset(DataConfig(**fields, stream=True), 0, 4)
    assert whole.train_bytes + whole.validation_bytes == sum(len(text.encode()) for text in texts)
    assert streamed.validation_bytes == whole.validation_bytes
    epoch = -(-(whole.train_tokens - 1) // 16)  # one shard holds everything
    one = [open_dataset(DataConfig(**fields, stream=stream), 0, epoch).train.batch(0) for stream in (False, True)]
    assert np.array_equal(*(np.sort(batch.tokens, axis=0) for batch in one))
    with pytest.raises(DataError, match=r"a.csv row 1 has no field 'text', only \['body', 'id'\]"):
        open_dataset(DataConfig(**fields | {"text_field": "text"}), 0, 4)
