"""The command from its start to Ctrl-C, and its page in a real browser: a prompt in, text and colours out."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from browser import CHROMIUM, browser
from commands import run_module
from small import config, quick_environment

from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.modules.model import init_model
from sem_jax.training.state import start_state
from sem_jax.training.workdir import create_workdir

ROOT = pathlib.Path(__file__).parents[2]
MARKUP = "<b>&amp;</b><img src=x onerror='document.title=1'>"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose text is full of markup."""
    folder = tmp_path_factory.mktemp("play") / "run"
    tokenizer = CharTokenizer.train([MARKUP])
    typed = config(model__vocab_size=tokenizer.vocab_size, model__num_layers=2, sampling__prompt=MARKUP)
    create_workdir(folder, typed, tokenizer, start_state(typed, init_model(typed.model, 0)))
    return folder


def contents(folder):
    """Every path below a folder with its size and the time of its last change, and the folder's own."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


@pytest.fixture(scope="module")
def playing(workdir, tmp_path_factory):
    """The process of the command, whose page is ready, and its address."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | quick_environment() | {"SEM_JAX_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "sem_jax", "play", f"--workdir={workdir},{workdir}", "--port=0"]
    # A shell that runs the suite in the background has it ignore Ctrl-C, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    signal.signal(signal.SIGINT, before)
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[2].startswith("open http://127.0.0.1:"), (lines, process.stderr.read())
    yield process, lines[2].split()[1]
    process.kill()
    process.communicate()


TEXT_OF = "document.querySelectorAll('.text')[{}].textContent"
READY = "document.querySelector('#write')?.disabled === false"


def fill(page, **values):
    for name, value in values.items():
        page.value(f"document.getElementById('{name}').value = {json.dumps(value)}")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's package chromium")
def test_a_prompt_goes_in_and_text_and_colours_come_out(playing, tmp_path):
    with browser(tmp_path / "profile") as page:
        page.call("Page.navigate", url=playing[1])
        page.until(READY)
        assert page.value("document.querySelector('#prompt').value") == MARKUP
        fill(page, max_tokens=40, temperature=1.0, top_k=0, top_p=1.0, seed=1)
        page.value("document.querySelector('#write').click()")
        page.until(READY)
        first, second = (page.value(TEXT_OF.format(i)) for i in (0, 1))
        assert first.startswith(MARKUP)
        assert len(first) == len(MARKUP) + 40
        assert first == second  # the same model and the same seed
        assert set(first[len(MARKUP) :]) & set("<>&")  # markup was drawn, too, and none of it became an element
        assert page.value("new Set([...document.querySelectorAll('.text *')].map((e) => e.tagName)).size") == 1
        assert page.value("document.querySelectorAll('article img, article b').length") == 0
        values = "[...document.querySelectorAll('article:first-child .value')].map((e) => parseFloat(e.textContent))"
        bars = page.value(values)
        assert 10 <= len(bars) <= 20
        assert bars == sorted(bars, reverse=True)
        assert page.value("document.querySelectorAll('article:first-child .drawn').length") == 1
        pixels = "((c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)"
        colours = f"new Set(new Uint32Array({pixels}(document.querySelectorAll('.{{}}')[{{}}]))).size"
        for side in ("profile", "history"):
            for canvas in range(4):  # two layers, before and after
                assert page.value(colours.format(side, canvas)) > 8

        # A point at a token shows its own distribution; the arrows move from there.
        page.value("document.querySelector('.text .token').dispatchEvent(new Event('pointerover', {bubbles: true}))")
        page.until("document.querySelector('.lead').textContent === 'token 1 of 40'")
        page.value("document.querySelector('.text').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
        page.until("document.querySelector('.lead').textContent === 'token 2 of 40'")

        # What the server refuses is told, and a long text can be stopped.
        page.value("document.querySelector('#prompt').value = 'unknown'; document.querySelector('#write').click()")
        assert "character 'k'" in page.until("document.querySelector('#problem').textContent")
        page.until(READY)
        assert [e for e in page.complaints if "400 (Bad Request)" not in e] == []
        page.complaints.clear()
        fill(page, prompt=MARKUP, max_tokens=2000)
        page.value("document.querySelector('#write').click()")
        page.until("document.querySelectorAll('.token').length > 4")
        page.value("document.querySelector('#stop').click()")
        page.until(READY)
        assert page.value("document.querySelectorAll('.text')[0].querySelectorAll('.token').length") < 2000
        assert "stopped" in page.value("document.querySelector('.state').textContent")
        assert page.complaints == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's package chromium")
def test_hue_is_the_phase_and_brightness_the_amplitude(playing, tmp_path):
    script = """(async () => {
        const { drawHistory, drawProfile } = await import("/wave.js");
        const draw = (action, wave, scale) => {
            const canvas = document.createElement("canvas");
            canvas.height = 4;
            action(canvas, wave, scale);
            return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, 4).data];
        };
        return [
            draw(drawHistory, [Float32Array.of(2, 0, 0, 2, -2, 0, 0, -2, 1, 0, 0, 0, 8, 0)], 2).slice(0, 28),
            draw(drawProfile, Float32Array.of(2, 0, 1, 0, 0, 0), 2),
        ];
    })()"""
    with browser(tmp_path / "profile") as page:
        page.call("Page.navigate", url=playing[1])
        page.until(READY)
        history, profile = page.value(script)
    right, up, left, down, half, zero, more = (tuple(history[i : i + 3]) for i in range(0, 28, 4))
    assert len({right, up, left, down}) == 4
    assert zero == (0, 0, 0)
    assert more == right  # full brightness is the most there is
    assert all(0.3 < h / r < 0.95 for h, r in zip(half, right, strict=True))
    # Red, green and blue weigh so in the luminance of a colour, in linear light: hues are equally light.
    weights = (0.21, 0.72, 0.07)
    light = [sum(w * (c / 255) ** 2.2 for w, c in zip(weights, x, strict=True)) for x in (right, up, left, down)]
    assert max(light) < 1.35 * min(light)
    columns = [[profile[4 * (3 * y + x) + 3] for y in range(4)] for x in range(3)]  # which pixels are drawn
    assert [[alpha > 0 for alpha in column] for column in columns] == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_ctrl_c_ends_it_with_one_line_and_the_workdir_is_as_it_was(playing, workdir):
    before = contents(workdir)
    process, address = playing
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert (process.returncode, printed, errors) == (0, "stopped\n", ""), address
    assert contents(workdir) == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--workdir=nowhere", "nowhere"), ("--workdir=a,b,c", "names 3 folders; give one or two")],
)
def test_what_cannot_be_played_is_said_in_one_line(tmp_path, flag, message):
    done = run_module("sem_jax.play", flag, "--port=0", folder=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not list(tmp_path.iterdir())
