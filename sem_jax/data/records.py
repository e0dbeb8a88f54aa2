"""Records with a text and perhaps a quality score: JSON lines, Parquet files and Hugging Face datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sem_jax.config import DataConfig
from sem_jax.data.corpus import Corpus
from sem_jax.data.errors import DataError
from sem_jax.data.files import find_files

Record = tuple[str, Mapping[str, Any]]  # where it stands, for error messages, and its fields


def open_jsonl(config: DataConfig) -> Corpus:
    """The .jsonl files of `path`."""
    files = find_files(config.path, ".jsonl")
    return Corpus(lambda: select_texts(read_jsonl(files), config), files)


def open_parquet(config: DataConfig) -> Corpus:
    """The .parquet files of `path`."""
    files = find_files(config.path, ".parquet")
    columns = [name for name in (config.text_field, config.score_field) if name]
    return Corpus(lambda: select_texts(read_parquet(files, columns), config), files)


def open_hf(config: DataConfig) -> Corpus:
    """The Hugging Face dataset `path`, a local folder or a name on the hub."""
    files = sorted(path for path in Path(config.path).rglob("*") if path.is_file())
    name = ([] if files else [config.path]) + [config.hf_config, config.hf_split]
    return Corpus(lambda: select_texts(read_hf(config), config), files, name)


def select_texts(records: Iterable[Record], config: DataConfig) -> Iterator[str]:
    """The texts of the records whose score reaches `min_score`; records with an empty text are passed over.

    Raises:
      DataError: a record lacks a field, a field has the wrong type, or a text is not valid Unicode.
    """
    for where, record in records:
        text = _field(record, config.text_field, where, str, "text_field")
        if config.score_field:
            score = _field(record, config.score_field, where, (int, float), "score_field")
            if not score >= config.min_score:  # NaN is no score
                continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: field {config.text_field!r} holds half of a surrogate pair at character {error.start}; "
                "write the character whole"
            ) from error
        if text:
            yield text


def _field(record: Mapping[str, Any], name: str, where: str, kinds: type | tuple[type, ...], setting: str) -> Any:
    if name not in record:
        raise DataError(f"{where} has no field {name!r}, only {sorted(record)}; set config.data.{setting}")
    if not isinstance(record[name], kinds):
        wanted = "text" if kinds is str else "a number"
        raise DataError(
            f"{where}: field {name!r} must be {wanted}, got {record[name]!r:.60}; "
            f"correct it or change config.data.{setting}"
        )
    return record[name]


def read_jsonl(files: Sequence[Path]) -> Iterator[Record]:
    """One record a line, blank lines apart.

    Raises:
      DataError: a line is not UTF-8 or not a JSON object; the message gives file and line number.
    """
    for path in files:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", _parse_line(line.rstrip(), f"{path}:{number}")


def _parse_line(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 at byte {error.start} of the line; convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{where} is not valid JSON: {reason}; a record must fill exactly one line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where} must be a JSON object such as {{'text': ...}}, got {record!r:.60}")
    return record


def read_parquet(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Record]:
    """One record a row, read batch by batch.

    Raises:
      DataError: pyarrow is not installed, a file is damaged, or a column is missing.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("config.data.source = parquet needs pyarrow: pip install '.[parquet]'") from error
    for path in files:
        try:
            for number, row in enumerate(_parquet_rows(pyarrow.parquet, path, columns), 1):
                yield f"{path} row {number}", row
        except DataError:
            raise
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise DataError(f"{path} is not a readable Parquet file: {error}; write it again") from error


def _parquet_rows(parquet: Any, path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if absent := [column for column in columns if column not in names]:
            raise DataError(f"{path} has no column {absent[0]!r}, only {names}; set config.data.text_field")
        for batch in file.iter_batches(columns=list(columns)):
            yield from batch.to_pylist()


def read_hf(config: DataConfig) -> Iterator[Record]:
    """One record an example of a Hugging Face dataset, streamed; `path` is a name or a local folder.

    Raises:
      DataError: `datasets` is not installed, or the dataset, configuration or split cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("config.data.source = hf needs datasets: pip install '.[hf]'") from error
    name = f"dataset {config.path!r}, split {config.hf_split!r}"
    try:
        stream = datasets.load_dataset(config.path, config.hf_config or None, split=config.hf_split, streaming=True)
        for index, example in enumerate(stream):
            yield f"{name}, example {index}", example
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {name}: {error}; check config.data.path, hf_config and hf_split, and the connection"
        ) from error
