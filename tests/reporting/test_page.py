"""The page of a run: the numbers that it draws are those of metrics.jsonl, and nothing in it can do harm."""

import base64
import hashlib
import html.parser
import math
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from small import TEXT, config

from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.modules.model import abstract_model, count_parameters
from sem_jax.reporting import live
from sem_jax.reporting.live import LivePage
from sem_jax.reporting.page import page, write_page
from sem_jax.reporting.runs import Run, read_runs
from sem_jax.training.metrics import MetricsWriter
from sem_jax.training.workdir import prepare_workdir

TOKENIZER = CharTokenizer.train([TEXT])
NASTY = '</pre></script><script>alert(1)</script><img src="http://x.y/" onerror=alert(1)> & "quotes" \x00\x1b[31m\ud800'


def make_workdir(folder, *lines, **changes):
    """The workdir of a run that has written (split, step, values)."""
    typed = config(model__vocab_size=TOKENIZER.vocab_size, **({"name": "small"} | changes))
    prepare_workdir(folder, typed, SimpleNamespace(tokenizer=TOKENIZER, fingerprint="f"))
    with MetricsWriter(folder) as writer:
        for split, step, values in lines:
            writer.write(split, step, **values)
    return folder


def train_lines(losses, every=10):
    return [
        ("train", every * i, {"loss": loss, "nll": loss, "bits_per_byte": loss / 2, "lr": 1e-3 * i, "seconds": 1.5 * i})
        for i, loss in enumerate(losses, start=1)
    ]


class Parsed(html.parser.HTMLParser):
    """Start tags with attributes, and all text outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self._open = [], "", "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._open = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts += data
        elif self._open != "style":
            self.text += data


def page_of(*workdirs, **options):
    return page(read_runs(workdirs), **options)


def charts(text):
    """The drawings by title and by what their x axis counts."""
    found = {}
    for figure in re.findall(r"<figure.*?</figure>", text, re.DOTALL):
        tree = ElementTree.fromstring(re.sub(r"<br>", "", figure))
        svg = tree.find(".//svg")
        if svg is not None:
            found[tree.find(".//h3").text, svg.get("data-position")] = svg
    return found


def values_of(axis, shares):
    low, high, *kind = axis.split()
    low, high = float(low), float(high)
    return low * (high / low) ** shares if kind else low + (high - low) * shares


def curve(svg, name=None):
    """The points of a curve as numbers, as they are read off the axes."""
    (path,) = [p for p in svg.iter("path") if "curve" in p.get("class") and name in (None, p.get("data-name"))]
    points = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d")), float)
    return values_of(svg.get("data-x"), points[:, 0] / 1000), values_of(svg.get("data-y"), 1 - points[:, 1] / 200)


def assert_drawn(svg, x, y, name=None):
    """Within the last digit of a coordinate: 0.05 of 1000 across, 0.005 of 200 up, on a linear or logarithmic axis."""
    low, high, *kind = svg.get("data-y").split()
    low, high = float(low), float(high)
    drawn_x, drawn_y = curve(svg, name)
    np.testing.assert_allclose(drawn_x, x, atol=6e-5 * max(x), rtol=0)
    if kind:
        np.testing.assert_allclose(np.log(drawn_y), np.log(y), atol=3e-5 * math.log(high / low), rtol=0)
    else:
        np.testing.assert_allclose(drawn_y, y, atol=3e-5 * (high - low), rtol=0)


def test_the_points_of_a_curve_are_the_numbers_of_the_metrics(tmp_path):
    losses = [7.25, 6.5, 5.125, 5.5, 3.75]
    norms = [1e-3, 1.0, 250.0, 2.0, 1.0]
    lines = train_lines(losses)
    for (_, _, values), norm in zip(lines, norms, strict=True):
        values["grad_norm"] = norm
    lines += [("validation", 50, {"loss": 3.5, "nll": 3.5, "bits_per_byte": 1.7, "seconds": 9.0})]
    found = charts(page_of(make_workdir(tmp_path, *lines)))
    steps = np.arange(10, 60, 10)
    tokens = 4 * 16  # of a step of the small configuration
    assert_drawn(found["Loss", "steps"], steps, losses, "train")
    assert_drawn(found["Loss", "tokens"], steps * tokens, losses, "train")
    assert_drawn(found["Loss", "seconds"], 1.5 * np.arange(1, 6), losses, "train")
    assert_drawn(found["Loss", "seconds"], [9.0], [3.5], "validation")
    assert_drawn(found["Bits/byte", "steps"], [50], [1.7], "validation")
    assert_drawn(found["Learning rate", "steps"], steps, 1e-4 * steps)
    assert found["Gradient norm", "steps"].get("data-y").endswith(" log")
    assert_drawn(found["Gradient norm", "steps"], steps, norms)


def test_layers_have_a_curve_each(tmp_path):
    residuals = np.array([[1e-7, 2e-7, 3e-7], [4e-7, 1e-7, 5e-4]])
    waves = np.array([[0.5, 0.25, 0.125], [0.4, 0.3, 0.2]])
    lines = [("health", 10 * (i + 1), {"residual": row.tolist()}) for i, row in enumerate(residuals)]
    lines += [("validation", 10 * (i + 1), {"coherence_mixers": row.tolist()}) for i, row in enumerate(waves)]
    found = charts(page_of(make_workdir(tmp_path, *lines, model__num_layers=3)))
    for layer in range(3):
        name = f"layer {layer}"
        assert_drawn(found["Residual of the solve", "steps"], [10, 20], residuals[:, layer], name)
        assert_drawn(found["Phase coherence after the mixers", "steps"], [10, 20], waves[:, layer], name)
    assert found["Residual of the solve", "steps"].find("line[@class='limit']") is not None


def test_skipped_steps_are_marked_at_their_place_and_named(tmp_path):
    skips = [(20, "gradient", "readout/weight"), (21, "gradient", "readout/weight"), (60, "loss", None)]
    lines = train_lines([3.0] * 10) + [
        ("skip", step, {"reason": reason, "lr_scale": 0.5} | ({"leaf": leaf} if leaf else {}))
        for step, reason, leaf in skips
    ]
    text = page_of(make_workdir(tmp_path, *lines))
    for name in ("Learning rate", "Loss"):
        marks = charts(text)[name, "steps"].findall("line[@class='mark']")
        assert [float(mark.get("x1")) for mark in marks] == pytest.approx([200, 210, 600], abs=0.05)
        assert [mark.find("title").text for mark in marks] == [
            "step 20 skipped: gradient in readout/weight",
            "step 21 skipped: gradient in readout/weight",
            "step 60 skipped: loss",
        ]
    (table,) = re.findall(r'<table class="skips">.*?</table>', text)
    rows = [[cell.text for cell in row] for row in ElementTree.fromstring(table).find("tbody")]
    assert [[row[0], row[1], row[2], row[4]] for row in rows] == [
        ["1", "20 to 21", "gradient", "0.5"],
        ["2", "60", "loss", "0.5"],
    ]


def test_skips_at_one_place_share_a_mark_that_counts_them(tmp_path):
    lines = train_lines([1.0], every=10**6)
    lines += [("skip", 500_000 + i, {"reason": "spike"}) for i in range(20)]
    (mark,) = charts(page_of(make_workdir(tmp_path, *lines)))["Loss", "steps"].findall("line[@class='mark']")
    assert mark.find("title").text.splitlines()[-1] == "and 16 more"


def test_gaps_are_gaps_with_a_mark_and_a_lone_point_is_a_dot(tmp_path):
    losses = [4.0, math.nan, 3.0, math.inf, 2.0, 1.0]
    svg = charts(page_of(make_workdir(tmp_path, *train_lines(losses))))["Loss", "steps"]
    (path,) = [p.get("d") for p in svg.iter("path") if "curve" in p.get("class")]
    pieces = [piece for piece in path.split("M") if piece]
    assert [("h0" in piece, piece.count("L")) for piece in pieces] == [(True, 0), (True, 0), (False, 1)]
    (gaps,) = svg.findall("path[@class='gaps']")
    assert gaps.get("d").count("M") == 2
    assert_drawn(svg, [10, 30, 50, 60], [4, 3, 2, 1])


def test_no_text_from_outside_becomes_a_tag(tmp_path):
    lines = [
        *train_lines([3.0, 2.0]),
        ("skip", 15, {"reason": NASTY, "leaf": NASTY}),
        ("sample", 20, {"text": "the " + NASTY}),
    ]
    text = page_of(
        make_workdir(tmp_path, *lines, name=NASTY.translate(dict.fromkeys([0, 0xD800])), sampling__prompt="the ")
    )
    harmless = page_of(make_workdir(tmp_path, *train_lines([3.0, 2.0])))
    parsed = Parsed(text)
    kinds = {tag for tag, _ in parsed.tags}
    assert "img" not in kinds
    assert [tag for tag, _ in parsed.tags].count("script") == [tag for tag, _ in Parsed(harmless).tags].count("script")
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert parsed.text.count("<script>alert(1)</script>") >= 4  # title, headline, skip and sample show it as it is
    text.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f]", text)


def test_nothing_refers_to_the_network_and_the_browser_is_told_so(tmp_path):
    text = page_of(make_workdir(tmp_path, *train_lines([3.0, 2.0])))
    parsed = Parsed(text)
    addresses = ("src", "href", "xlink:href", "action", "data", "srcset", "poster")
    assert [attributes for _, attributes in parsed.tags if attributes.keys() & {*addresses}] == []
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|WebSocket", text)
    (policy,) = [a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(parsed.scripts.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_several_runs_lie_over_each_other_in_their_own_colours(tmp_path):
    folders = [
        make_workdir(tmp_path / name / "run", *train_lines(losses), optimizer__learning_rate=rate)
        for name, losses, rate in [("a", [3.0, 2.0], 1e-2), ("b", [4.0, 2.5, 1.5], 5e-2)]
    ]
    text = page_of(*folders)
    svg = charts(text)["Loss", "steps"]
    assert_drawn(svg, [10, 20], [3, 2], str(folders[0]))  # two folders of one name: the paths tell them apart
    assert_drawn(svg, [10, 20, 30], [4, 2.5, 1.5], str(folders[1]))
    colours = [p.get("class").split()[-1] for p in svg.iter("path") if "curve" in p.get("class")]
    assert colours == ["c0", "c1"]
    assert [row[0] for row in re.findall(r"<code>optimizer.learning_rate</code>.*?</tr>", text)] != []
    (row,) = re.findall(r"<code>optimizer.learning_rate</code>.*?</tr>", text)
    assert re.findall(r'<td class="own">([^<]*)</td>', row) == ["0.01", "0.05"]


def test_the_configuration_shows_what_differs_apart_from_what_does_not(tmp_path):
    text = page_of(make_workdir(tmp_path, *train_lines([1.0]), model__hidden_dim=16))
    changed, others = text.split("<details>")
    assert "<code>model.hidden_dim</code>" in changed
    assert "<code>model.hidden_dim</code>" not in others
    assert "<code>optimizer.b1</code>" in others
    assert "<code>optimizer.b1</code>" not in changed


def test_samples_go_from_the_first_to_the_newest(tmp_path):
    lines = [("sample", step, {"text": f"the sample {step}"}) for step in range(10, 210, 10)]
    text = Parsed(page_of(make_workdir(tmp_path, *lines))).text
    shown = [int(step) for step in re.findall(r"the sample (\d+)", text)]
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (10, 200)
    assert len(shown) == 6


def test_parameters_are_those_of_the_model():
    typed = config(model__vocab_size=7, model__num_layers=3)
    assert Run("", typed, TOKENIZER, {}).parameters == count_parameters(abstract_model(typed.model).params)


def test_a_run_that_has_only_begun_says_so(tmp_path):
    text = Parsed(page_of(make_workdir(tmp_path))).text
    assert "Nothing has been recorded yet." in text
    assert "No sample has been recorded." in text
    assert "step 0 of 12" in text


def test_a_run_of_an_older_version_says_what_it_lacks(tmp_path):
    lines = [("train", 10 * i, {"loss": 4.0 - i, "residual": 1e-7 * i, "norm_drift": 2e-7}) for i in range(1, 4)]
    text = page_of(make_workdir(tmp_path, *lines))
    assert "The version of sem_jax that trained this run did not record it." in Parsed(text).text
    assert_drawn(charts(text)["Residual of the solve", "steps"], [10, 20, 30], [1e-7, 2e-7, 3e-7], "worst layer")


def test_values_of_any_kind_are_left_out(tmp_path):
    make_workdir(tmp_path)
    lines = [
        '{"split": "train", "step": 1}',
        '{"split": "train", "step": 2, "loss": "low", "tokens_per_s": [], "lr": {}, "residual": 1' + "0" * 400 + "}",
        '{"split": "train", "step": 3, "loss": true, "seconds": "late", "grad_norm": -1e308}',
        '{"split": "skip", "step": 3, "reason": 7, "leaf": ["x"]}',
        '{"split": "health", "step": 4, "residual": [1e-7, "x", null, [2]], "norm_drift": 3, "h_lambda_bound": []}',
        '{"split": "health", "step": 2, "residual": [0]}',
        '{"split": "validation", "step": 4, "nll": null, "coherence_mixers": [null]}',
        '{"split": "sample", "step": 4, "text": 5}',
        '{"split": "something new", "step": 9223372036854775807}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    text = page_of(tmp_path)
    assert "No value of it is a finite number." in Parsed(text).text
    assert len(charts(text)) >= 1


def test_a_large_run_is_drawn_in_a_small_file_with_its_peaks(tmp_path):
    rng = np.random.default_rng(0)
    steps, depth = np.arange(10, 1_000_010, 10), 32
    losses = 2 + rng.exponential(size=len(steps))
    losses[77_777] = 29.5
    train = [
        {
            "split": "train",
            "step": s,
            "loss": x,
            "lr": 1e-3,
            "lr_scale": 1.0,
            "grad_norm": x,
            "tokens_per_s": 1e4,
            "seconds": s / 3,
        }
        for s, x in zip(steps.tolist(), losses.tolist(), strict=True)
    ]
    values = rng.uniform(1e-7, 2e-7, (2000, depth)).tolist()
    health = [
        {"split": "health", "step": 500 * i, "residual": row, "norm_drift": row, "h_lambda_bound": row}
        for i, row in enumerate(values)
    ]
    skips = [{"split": "skip", "step": 37 * i, "reason": "loss", "lr_scale": 0.5} for i in range(5000)]
    lines = {"train": train, "health": health, "skip": skips}
    typed = config(model__vocab_size=TOKENIZER.vocab_size, model__num_layers=depth, training__max_steps=1_000_000)
    text = page([Run("large", typed, TOKENIZER, lines)])
    assert len(text.encode()) < 2e6
    x, y = curve(charts(text)["Loss", "steps"])
    assert y.max() == pytest.approx(29.5, abs=0.01)
    assert x[y.argmax()] == pytest.approx(777_780, abs=100)


def test_a_live_page_that_cannot_be_written_is_told_of_once(tmp_path):
    make_workdir(tmp_path, *train_lines([3.0]))
    (tmp_path / "report.html").mkdir()
    said = []
    watched = LivePage(tmp_path, said.append)
    before = {path.name for path in tmp_path.iterdir()}
    watched.update()
    watched.update(last=True)
    (line,) = said
    assert line.startswith("warning: report.html is not written, and the run goes on: cannot write ")
    assert {path.name for path in tmp_path.iterdir()} == before  # and nothing half written is left


def test_a_live_page_takes_no_more_than_its_share_of_the_time(tmp_path, monkeypatch):
    now, written = [100.0], []

    def write(workdirs, output, live):
        now[0] += 2.0
        written.append(live)

    monkeypatch.setattr(live, "write_page", write)
    monkeypatch.setattr(live.time, "perf_counter", lambda: now[0])
    watched = LivePage(tmp_path, print)
    watched.update()
    for wait in (1.0, 38.0):
        now[0] += wait
        watched.update()
    assert written == [True]
    now[0] += 1.5
    watched.update()
    assert written == [True, True]
    watched.update(last=True)
    assert written == [True, True, False]


def test_a_live_page_says_so_and_a_written_one_does_not(tmp_path):
    make_workdir(tmp_path / "run", *train_lines([3.0]))
    for is_live in (True, False):
        output = tmp_path / "elsewhere" / "page.html"
        write_page([tmp_path / "run"], output, live=is_live)
        (body,) = [a for tag, a in Parsed(output.read_text(encoding="utf-8")).tags if tag == "body"]
        assert ("data-live" in body) == is_live
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_page_tells_where_the_time_went(tmp_path):
    time = ("time", 10, {"step_s": 30.0, "compile_s": 10.0})
    told = Parsed(page(read_runs([make_workdir(tmp_path / "told", *train_lines([2.0]), time)]))).text
    assert "training steps30.075.0%tracing and compiling10.025.0%" in "".join(told.split("\n"))
    silent = page(read_runs([make_workdir(tmp_path / "silent", *train_lines([2.0]))]))
    assert "No line of metrics tells where the time went." in silent
