import json
import os
import sys
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sem_jax.config import DataConfig
from sem_jax.data import DataError, pystdlib
from sem_jax.data.sources import open_source

RECORDS = [
    {"text": "first", "score": 3.5},
    {"text": "", "score": 5.0},
    {"text": "poor", "score": 1},
    {"text": "second\r\nline é", "score": 3},
]


def read(**fields) -> list[str]:
    return list(open_source(DataConfig(**fields)).read())


def write_jsonl(path: Path, records=RECORDS) -> Path:
    path.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    return path


def write_parquet(path: Path, records=RECORDS) -> Path:
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    return path


class TestPystdlib:
    def test_reads_library_modules_and_help_topics_but_no_tests_or_packages(self):
        root = Path(sysconfig.get_path("stdlib"))
        names = [path.relative_to(root) for path in pystdlib.library_files()]
        assert names == sorted(names)
        assert {Path("argparse.py"), Path("json/decoder.py"), Path("pydoc_data/topics.py")} <= set(names)
        left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
        assert not [name for name in names if left_out & set(name.parts)]

        texts = read()
        from pydoc_data.topics import topics

        assert set(topics.values()) <= set(texts)
        assert (root / "argparse.py").read_bytes().decode() in texts
        assert (root / "pydoc_data/topics.py").read_bytes().decode() not in texts
        assert 5e6 < sum(map(len, texts)) < 20e6

    def test_modules_in_other_encodings_are_passed_over(self, tmp_path, monkeypatch):
        (tmp_path / "good.py").write_bytes("# é\n".encode())
        (tmp_path / "latin.py").write_bytes("# é\n".encode("latin1"))
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests" / "bad.py").write_text("# test\n")
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        assert read() == ["# é\n"]

    def test_an_interpreter_without_a_library_on_disk_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        with pytest.raises(DataError, match=r"no Python file in .*config.data.source = text"):
            read()


class TestText:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "sub").mkdir()
        for name in ("b.txt", "a.txt", "sub/c.txt", "note.md"):
            (tmp_path / name).write_text(name)
        return tmp_path

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("a.txt", ["a.txt"]),
            (".", ["a.txt", "b.txt", "sub/c.txt"]),
            ("*.txt", ["a.txt", "b.txt"]),
            ("**/*.txt", ["a.txt", "b.txt", "sub/c.txt"]),
            ("b.txt, *.txt", ["b.txt", "a.txt"]),
            ("sub,note.md", ["sub/c.txt", "note.md"]),
        ],
    )
    def test_files_folders_and_globs_in_a_fixed_order_and_each_once(self, folder, monkeypatch, path, expected):
        monkeypatch.chdir(folder)
        assert read(source="text", path=path) == expected

    def test_bytes_are_kept_as_they_are(self, tmp_path):
        (tmp_path / "a.txt").write_bytes("a\r\nb\rc\0é".encode())
        assert read(source="text", path=str(tmp_path)) == ["a\r\nb\rc\0é"]

    def test_max_documents(self, folder):
        assert read(source="text", path=str(folder), max_documents=2) == ["a.txt", "b.txt"]

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("absent.txt", r"'absent.txt' matches no file; set config.data.path"),
            ("a.txt,zz*", r"'zz\*' matches no file"),
            ("hollow", r"'hollow' holds no \*.txt file"),
            (" , ", r"names no file"),
            ("latin.txt", r"latin.txt is not UTF-8 at byte 3; .*iconv"),
            ("void.txt", r"void.txt is empty; remove it"),
        ],
    )
    def test_bad_input_is_named(self, folder, monkeypatch, path, message):
        monkeypatch.chdir(folder)
        Path("hollow").mkdir()
        Path("latin.txt").write_bytes("abcé".encode("latin1"))
        Path("void.txt").touch()
        with pytest.raises(DataError, match=message):
            read(source="text", path=path)


@pytest.mark.parametrize(("source", "write"), [("jsonl", write_jsonl), ("parquet", write_parquet)])
class TestRecords:
    def test_texts_in_order_without_empty_ones(self, tmp_path, source, write):
        path = write(tmp_path / f"a.{source}")
        assert read(source=source, path=str(path)) == ["first", "poor", "second\r\nline é"]
        assert read(source=source, path=str(tmp_path)) == ["first", "poor", "second\r\nline é"]

    def test_score_filter_keeps_the_threshold_itself_and_drops_nan(self, tmp_path, source, write):
        path = write(tmp_path / "a", [*RECORDS, {"text": "unknown", "score": float("nan")}])
        fields = {"source": source, "path": str(path), "score_field": "score"}
        assert read(**fields, min_score=3.0) == ["first", "second\r\nline é"]
        with pytest.raises(DataError, match=r"holds no document; lower config.data.min_score = 9"):
            read(**fields, min_score=9.0)

    def test_missing_fields_are_named(self, tmp_path, source, write):
        path = write(tmp_path / "a")
        with pytest.raises(
            DataError, match=r"no (field|column) 'body', only \[.*'text'.*\]; set config.data.text_field"
        ):
            read(source=source, path=str(path), text_field="body")
        with pytest.raises(DataError, match=r"no (field|column) 'rank'"):
            read(source=source, path=str(path), score_field="rank")

    def test_fields_of_the_wrong_type_are_named(self, tmp_path, source, write):
        path = write(tmp_path / "a", [{"text": "good", "score": 1}, {"text": None, "score": 2}])
        with pytest.raises(DataError, match=r"a( row |:)\d: field 'text' must be text, got None"):
            read(source=source, path=str(path))
        with pytest.raises(DataError, match=r"field 'text' must be a number, got 'good'"):
            read(source=source, path=str(path), score_field="text")

    def test_empty_files_are_named(self, tmp_path, source, write):
        path = write(tmp_path / "a", [{"text": ""}])
        with pytest.raises(DataError, match=r"a' holds no document; give files with text"):
            read(source=source, path=str(path))


def test_an_unknown_source_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"config.data.source = 'csv' is not one of pystdlib, text, jsonl, parquet, hf"):
        read(source="csv", path="a.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"a.jsonl:2 is not valid JSON: Expecting ',' delimiter at column 13"),
        (b'{"text": "\xff"}', r"a.jsonl:2 is not UTF-8 at byte 10"),
        (b'["text"]', r"a.jsonl:2 must be a JSON object"),
        (b'{"text": "a\\ud800"}', r"a.jsonl:2: field 'text' holds half of a surrogate pair at character 1"),
    ],
)
def test_broken_json_lines_are_named_by_number(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        read(source="jsonl", path=str(tmp_path))


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a.parquet is not a readable Parquet file"):
        read(source="parquet", path=str(path))


@pytest.mark.parametrize(("source", "module", "extra"), [("parquet", "pyarrow", "parquet"), ("hf", "datasets", "hf")])
def test_a_missing_package_names_the_extra_to_install(tmp_path, monkeypatch, source, module, extra):
    write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(DataError, match=rf"pip install '\.\[{extra}\]'"):
        read(source=source, path=str(tmp_path))


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def offline(self, tmp_path, monkeypatch):
        pytest.importorskip("datasets")
        import datasets

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def test_streams_a_local_dataset_of_the_schema_of_fineweb_edu(self, tmp_path):
        folder = tmp_path / "edu"
        folder.mkdir()
        write_parquet(folder / "train-00000.parquet", [record | {"id": "x", "int_score": 3} for record in RECORDS])
        fields = {"source": "hf", "path": str(folder), "score_field": "score"}
        assert read(**fields, min_score=3.0) == ["first", "second\r\nline é"]
        with pytest.raises(DataError, match=r"example 0 has no field 'body'"):
            read(**fields, text_field="body")

    def test_what_cannot_be_opened_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"cannot read dataset 'no/where', split 'train'"):
            read(source="hf", path="no/where")
        folder = tmp_path / "edu"
        folder.mkdir()
        write_parquet(folder / "train.parquet")
        with pytest.raises(DataError, match=r"split 'dev': .*check config.data.path, hf_config and hf_split"):
            read(source="hf", path=str(folder), hf_split="dev")


class TestFingerprint:
    def fingerprint(self, path: Path, **fields) -> str:
        return open_source(DataConfig(source="text", path=str(path), **fields)).fingerprint

    def test_follows_the_content_not_the_place_or_the_time(self, tmp_path):
        for name in ("here", "there"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.txt").write_text("same")
        before = self.fingerprint(tmp_path / "here")
        assert self.fingerprint(tmp_path / "there") == before
        os.utime(tmp_path / "here" / "a.txt", (1, 1))
        assert self.fingerprint(tmp_path / "here") == before
        (tmp_path / "here" / "a.txt").write_text("SAME")
        os.utime(tmp_path / "here" / "a.txt", (1, 1))
        assert self.fingerprint(tmp_path / "here") != before

    def test_follows_the_order_and_the_selection(self, tmp_path):
        (tmp_path / "a.txt").write_text("a")
        (tmp_path / "b.txt").write_text("b")
        a, b = tmp_path / "a.txt", tmp_path / "b.txt"
        names = {self.fingerprint(f"{a},{b}"), self.fingerprint(f"{b},{a}"), self.fingerprint(a)}
        assert len(names | {self.fingerprint(f"{a},{b}", max_documents=1)}) == 4

    @pytest.mark.parametrize("place", [0, -1])
    def test_a_stream_knows_a_file_by_its_size_and_both_ends(self, tmp_path, place):
        path = tmp_path / "a.txt"
        content = bytearray(b"x" * 2**18)
        path.write_bytes(content)
        before = self.fingerprint(path, stream=True)
        path.write_bytes(content + b"x")
        assert self.fingerprint(path, stream=True) != before
        content[place] = 32
        path.write_bytes(content)
        assert self.fingerprint(path, stream=True) != before
