import pytest
from commands import run_module

from sem_jax.data import load_tokenizer

TEXTS = [f"{i}: the wave function of token {i * i} turns and turns\n" for i in range(200)]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text)
    return folder


def run(folder, *flags):
    return run_module("sem_jax.tokenizer", *flags, folder=folder, timeout=60)


def test_trains_saves_and_reports(corpus, tmp_path):
    output = tmp_path / "out" / "tokenizer.json"
    done = run(tmp_path, "--source=text", f"--path={corpus}", "--kind=bpe", "--vocab_size=290", f"--output={output}")
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(output)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("bpe", 290)
    report, use = done.stdout.splitlines()
    assert "bpe tokenizer, vocabulary 290" in report
    assert float(report.split("290, ")[1].split()[0]) > 1.5
    assert f"--config.data.tokenizer=bpe --config.data.tokenizer_path={output}" in use


def test_takes_a_config_file_and_overrides(corpus, tmp_path):
    config = tmp_path / "experiment.py"
    config.write_text(
        "from sem_jax.config import default\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.data.source, config.data.tokenizer = 'text', 'char'\n"
        "    return config\n"
    )
    output = tmp_path / "tokenizer.json"
    done = run(tmp_path, f"--config={config}", f"--config.data.path={corpus}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert load_tokenizer(output).decode(range(3)) == "\n 0"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source=text", "--path=nowhere"], "error: 'nowhere' matches no file"),
        (["--path=nowhere"], "error: config.data.path = 'nowhere' is not read while config.data.source = pystdlib"),
        (["--kind=word"], "error: config.data.tokenizer = 'word' is not one of byte, char, bpe"),
        (["--kind=bpe", "--vocab_size=20"], "error: config.data.bpe_vocab_size = 20 must be at least 261"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(tmp_path, flags, message):
    output = tmp_path / "tokenizer.json"
    done = run(tmp_path, *flags, f"--output={output}")
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
