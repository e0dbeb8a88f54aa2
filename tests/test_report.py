"""What a finished run says about itself."""

import math
from types import SimpleNamespace

import pytest
from small import TEXT, config

from sem_jax.config import ConfigError
from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.report import write_report
from sem_jax.training.metrics import MetricsError, MetricsWriter
from sem_jax.training.workdir import prepare_workdir


@pytest.fixture
def workdir(tmp_path):
    tokenizer = CharTokenizer.train([TEXT])
    dataset = SimpleNamespace(tokenizer=tokenizer, fingerprint="f")
    prepare_workdir(tmp_path, config(name="small", model__vocab_size=tokenizer.vocab_size), dataset)
    return tmp_path


def write(workdir, losses, validation=()):
    with MetricsWriter(workdir) as writer:
        for i, loss in enumerate(losses, start=1):
            writer.write(
                "train",
                10 * i,
                loss=loss,
                nll=loss,
                skipped=i // 4,
                residual=1e-7 * i,
                norm_drift=2e-7 * i,
                tokens_per_s=math.nan if i == 1 else 100.0 * i,
            )
        for step, nll in validation:
            writer.write("validation", step, nll=nll, bits_per_byte=nll / 2)


def curve(text):
    (line,) = [line for line in text.splitlines() if line.startswith("    ")]
    return line.strip()


def test_curve_runs_from_the_highest_to_the_lowest_bar_of_a_falling_loss(workdir):
    write(workdir, [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert curve(write_report(workdir)) == "█▇▆▅▄▃▂▁"


def test_long_runs_are_averaged_to_sixty_bars(workdir):
    write(workdir, [1.0] * 300 + [3.0] * 300)
    assert curve(write_report(workdir)) == "▁" * 30 + "█" * 30


def test_a_loss_that_is_not_finite_is_an_x_and_is_counted(workdir):
    write(workdir, [2.0, math.nan, 1.0, math.inf])
    text = write_report(workdir)
    assert curve(text) == "█x▁x"
    assert "loss that is not finite 2" in text


@pytest.mark.parametrize(("losses", "wanted"), [([1.5, 1.5], "▁▁"), ([math.nan] * 3, "xxx"), ([2.0], "▁")])
def test_curves_without_a_range_are_drawn(workdir, losses, wanted):
    write(workdir, losses)
    assert curve(write_report(workdir)) == wanted


def test_numbers_are_the_worst_the_last_and_the_median(workdir):
    write(workdir, [4.0, 3.0, 2.5, 2.0, 1.25])
    text = write_report(workdir)
    assert "over 50 steps, 4.000 to 1.250" in text
    assert "Skipped steps 1" in text
    assert "worst residual 5.0e-07, worst norm drift 1.0e-06" in text
    assert "median 400 tokens/s" in text  # of 200, 300, 400, 500: the upper one


def test_table_lists_every_evaluation(workdir):
    write(workdir, [1.0], validation=[(50, 2.5), (100, math.nan)])
    rows = [line for line in write_report(workdir).splitlines() if line.startswith("| ")]
    assert rows == ["| step | nats/token | bits/byte |", "| 50 | 2.5000 | 1.2500 |", "| 100 | nan | nan |"]


def test_report_is_written_beside_the_run(workdir):
    write(workdir, [1.0])
    text = write_report(workdir)
    assert (workdir / "report.md").read_text(encoding="utf-8") == text
    assert text.startswith("# small\n")


def test_a_run_that_has_only_begun_says_so(workdir):
    write(workdir, [])
    text = write_report(workdir)
    assert "No training step has been reported yet." in text
    assert "No evaluation has been made yet." in text


def test_a_line_that_lacks_a_value_or_has_another_is_reported_without_it(workdir):
    lines = [
        '{"split": "train", "step": 1}',
        '{"split": "train", "step": 2, "loss": "low", "tokens_per_s": [], "residual": 1' + "0" * 400 + "}",
        '{"split": "skip", "step": 3}',
        '{"split": "validation", "step": 4, "nll": true}',
        '{"split": "something new", "step": 5}',
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    text = write_report(workdir)
    assert "Training loss over 2 steps, nan to nan" in text
    assert "| 3 |  |  |" in text
    assert "| 4 | 1.0000 | nan |" in text


def test_folders_without_a_run_are_refused(workdir, tmp_path_factory):
    with pytest.raises(MetricsError, match=r"metrics\.jsonl does not exist"):
        write_report(workdir)
    with pytest.raises(ConfigError, match="not the workdir of a run"):
        write_report(tmp_path_factory.mktemp("empty"))


def test_the_last_line_of_the_time_is_a_table_with_the_largest_share_first(workdir):
    write(workdir, [1.0])
    assert "where the time went" not in write_report(workdir)
    with MetricsWriter(workdir) as writer:
        writer.write("time", 10, step_s=1.0, save_s=2.0)
        writer.write("time", 20, step_s=60.0, save_s=1500.0, data_s=0.0, evaluation_s=40.0, lost_s=math.nan)
    rows = [line for line in write_report(workdir).splitlines() if line.startswith("| ")]
    assert rows[-3:] == [
        "| saving checkpoints | 1,500.0 | 93.8% |",
        "| training steps | 60.0 | 3.8% |",
        "| evaluations and samples | 40.0 | 2.5% |",
    ]
