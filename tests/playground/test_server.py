"""The server of the page answers its page, and refuses the rest: foreign names, long bodies, wrong values, a crowd."""

import base64
import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest
from small import config

from sem_jax.config import ConfigError
from sem_jax.data.tokenizers.char import CharTokenizer
from sem_jax.errors import SemJaxError
from sem_jax.inference.language_model import LanguageModel
from sem_jax.modules.model import init_model
from sem_jax.playground import turns
from sem_jax.playground.guard import HEADERS
from sem_jax.playground.server import MOST_CONNECTIONS, PlayServer
from sem_jax.playground.session import LONGEST_PROMPT, Session, packed

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXT = "the wave turns"


@pytest.fixture(scope="module")
def model(quick_compilation):
    tokenizer = CharTokenizer.train([TEXT])
    typed = config(model__vocab_size=tokenizer.vocab_size, model__num_layers=2, sampling__max_tokens=8)
    return LanguageModel(typed, tokenizer, init_model(typed.model, seed=0), step=7)


class EndlessSession(Session):
    """Writes until nobody listens; `running` counts the texts that are being written."""

    def __init__(self, model):
        super().__init__("endless", model)
        self.running, self.most = 0, 0

    def lines(self, values):
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            while True:
                time.sleep(0.01)
                yield {"text": "x"}
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def endless(model):
    return EndlessSession(model)


@pytest.fixture(scope="module")
def server(model, endless):
    server = PlayServer(0)
    server.sessions += [Session("runs/a", model), endless]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.stop()
    thread.join()


def connect(server):
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=20)


def head(server, method="POST", path="/generate", **headers):
    """The first lines of a request; a header that is None is left out, of a list each value is sent."""
    given = {"Host": f"127.0.0.1:{server.server_port}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1"]
    for name, values in given.items():
        for value in values if isinstance(values, list) else [values]:
            lines += [] if value is None else [f"{name}: {value}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def response(connection):
    """(status, headers by lower-case name, body) of all that a server sends."""
    data = b""
    while more := connection.recv(2**16):
        data += more
    top, _, body = data.partition(b"\r\n\r\n")
    status, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    return int(status.split()[1]), headers, body


def unchunked(body):
    whole = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if int(size, 16) == 0:
            return whole
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]


def ask(server, method="GET", path="/", body=b"", **headers):
    if method == "POST":
        headers = {"Content_Length": str(len(body))} | headers
    with connect(server) as connection:
        connection.sendall(head(server, method, path, **headers) + body)
        return response(connection)


def generate(server, values, **headers):
    return ask(server, "POST", "/generate", json.dumps(values).encode(), **headers)


def error_of(answer):
    return json.loads(answer[2])["error"]


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/wave.js", "/icon.svg", "/models"])
def test_every_answer_forbids_the_browser_all_that_is_not_ours(server, path):
    status, headers, body = ask(server, path=path)
    assert status == 200
    assert body
    assert {name: headers.get(name.lower()) for name in HEADERS} == HEADERS
    assert "default-src 'none'; script-src 'self';" in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert "access-control-allow-origin" not in headers


def test_the_page_refers_to_nothing_but_its_own_addresses(server):
    for path in ("/", "/page.css", "/page.js", "/wave.js"):
        text = ask(server, path=path)[2].decode()
        assert "http:" not in text
        assert "https:" not in text
        assert "innerHTML" not in text
        assert "insertAdjacentHTML" not in text


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}"],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_foreign_name_is_refused(server, host, method):
    named = host and host.format(port=server.server_port)
    answer = ask(server, method, "/models" if method == "GET" else "/generate", b"{}" * (method == "POST"), Host=named)
    assert answer[0] == 403
    assert "answers to the name" in error_of(answer)


def test_two_names_are_refused(server):
    own = f"127.0.0.1:{server.server_port}"
    assert ask(server, Host=[own, "evil.example"])[0] == 403


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "[::1]"])
def test_the_other_names_of_this_machine_are_its_own(server, name):
    own = f"{name}:{server.server_port}"
    assert ask(server, Host=own, Origin=f"http://{own.lower()}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_a_foreign_page_is_refused(server, origin):
    answer = generate(server, {"prompt": "the"}, Origin=origin.format(port=server.server_port))
    assert answer[0] == 403
    assert "its own page only" in error_of(answer)


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_form_of_a_foreign_page_could_send_is_refused(server, kind):
    assert generate(server, {"prompt": "the"}, Content_Type=kind)[0] == 415


@pytest.mark.parametrize("length", ["10000000", "9" * 5000])
def test_a_long_body_is_refused_before_it_is_read(server, length):
    with connect(server) as connection:
        connection.sendall(head(server, Content_Length=length))  # and no byte of the body
        status, _, body = response(connection)
    assert status == 413
    assert "65,536 bytes" in json.loads(body)["error"]


def test_a_prompt_of_ten_million_characters_is_refused(server):
    body = json.dumps({"prompt": "x" * 10_000_000}).encode()
    with connect(server) as connection:
        with contextlib.suppress(OSError):  # the server stops reading
            connection.sendall(head(server, Content_Length=len(body)) + body)
        assert connection.recv(12) == b"HTTP/1.1 413"
    assert ask(server)[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Length": None}, 411),
        ({"Content_Length": None, "Transfer_Encoding": "chunked"}, 411),
        ({"Content_Length": "2", "Transfer_Encoding": "chunked"}, 411),
        ({"Content_Length": "-1"}, 400),
        ({"Content_Length": "+2"}, 400),
        ({"Content_Length": "²"}, 400),
        ({"Content_Length": ["2", "3"]}, 400),
    ],
    ids=str,
)
def test_a_body_of_unclear_length_is_refused(server, headers, status):
    assert ask(server, "POST", "/generate", b"{}", **headers)[0] == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'"x"',
        b"\xff\xfe\xff",
        b"[" * 60_000,
        b'{"nothing": 1}',
        b'{"seed": %b}' % (b"9" * 6000),
    ],
)
def test_a_body_that_the_page_would_not_send_is_refused(server, body):
    answer = ask(server, "POST", "/generate", body)
    assert answer[0] == 400
    assert len(error_of(answer)) < 300


@pytest.mark.parametrize(
    "path", ["/../setup.cfg", "/%2e%2e/setup.cfg", "//etc/passwd", "/page.html", "/server.py", "/models/", "/?x", "*"]
)
def test_only_fixed_addresses_are_served(server, path):
    assert ask(server, path=path)[0] == 404
    assert ask(server, "POST", path, b"{}")[0] == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "XYZ"])
def test_other_methods_are_refused(server, method):
    status, headers, _ = ask(server, method, "/generate", Origin="http://evil.example")
    assert status == 501
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 2**40},
        {"top_p": 0},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"seed": -1},
        {"seed": 2**32},
        {"prompt": "THE"},
        {"prompt": ""},
    ],
    ids=str,
)
def test_impossible_values_are_refused_with_the_words_of_generate(server, model, values):
    with pytest.raises(SemJaxError) as error:
        model.generate(**{"prompt": "the"} | values)
    answer = generate(server, {"prompt": "the"} | values)
    assert answer[0] == 400
    assert error_of(answer) == str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 2001}, "max_tokens = 2001 must be at most 2000"),
        ({"seed": 1.5}, "seed = 1.5 must be a whole number"),
        ({"seed": None}, "must be a whole number"),
        ({"prompt": "t" * (LONGEST_PROMPT + 1)}, "at most 10,000 characters"),
        ({"prompt": ["the"]}, "must be a text"),
        ({"model": 2}, "model = 2 must be a number below 2"),
        ({"model": -1}, "model = -1"),
        ({"model": "a"}, "model = 'a'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_page_alone_bounds_is_refused(server, values, message):
    answer = generate(server, {"prompt": "the"} | values)
    assert answer[0] == 400
    assert message in error_of(answer)


def test_a_text_comes_token_by_token_with_its_waves(server, model):
    options = {"max_tokens": 20, "seed": 5, "temperature": 1.5, "top_k": 0, "top_p": 0.9}
    status, headers, body = generate(server, {"prompt": "the", **options})
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    *lines, last = map(json.loads, body.splitlines())
    moments = list(model.watch("the", **options))
    text = model.tokenizer.decode([moment.token for moment in moments])
    assert "".join(line["text"] for line in [*lines, last]) == text
    assert last["done"] == ""
    for line, moment in zip(lines, moments, strict=True):
        assert line["token"] == moment.token
        assert line["label"] == line["text"]
        assert [token for token, *_ in line["likeliest"]] == moment.likeliest.tolist()
        for name in ("before", "after"):
            parts = np.frombuffer(base64.b64decode(line[name]["parts"]), "<i2").reshape(2, 16, 2)
            unit = np.array(line[name]["largest"])[:, None] / 32767
            wave = unit * (parts[..., 0] + 1j * parts[..., 1])
            # Half a unit in either part.
            assert (np.abs(wave - getattr(moment, name)) <= 0.5001 * np.sqrt(2) * unit).all()


def test_a_wave_that_is_not_finite_or_zero_can_be_sent():
    sent = packed(np.array([[np.nan + 1j, 2.0], [0, 0], [np.inf, 1]], np.complex64))
    assert sent["largest"] == [2.0, 0.0, 1.0]
    parts = np.frombuffer(base64.b64decode(sent["parts"]), "<i2").reshape(3, 2, 2)
    assert parts.tolist() == [[[0, 16384], [32767, 0]], [[0, 0], [0, 0]], [[0, 0], [32767, 0]]]


def test_a_crowd_waits_in_a_short_queue_and_whoever_leaves_is_forgotten(server, endless):
    request, places = head(server, Content_Length=12) + b'{"model": 1}', endless.turns._places
    first, *waiting = [connect(server) for _ in range(1 + turns.MOST_WAITING)]
    first.sendall(request)
    until(lambda: endless.running == 1)
    for connection in waiting:
        connection.sendall(request)
    until(lambda: places._value == 0)
    answer = generate(server, {"model": 1})
    assert answer[0] == 503
    assert int(answer[1]["retry-after"]) > 0
    assert "try again" in error_of(answer)
    assert generate(server, {"prompt": "the", "max_tokens": 1})[0] == 200  # the other model is free
    waiting[0].close()
    until(lambda: places._value == 1)  # while the first is still writing
    assert endless.running == 1
    for connection in (first, *waiting):
        connection.close()
    until(lambda: endless.running == 0 and places._value == 1 + len(waiting))
    assert endless.most == 1


def test_waiting_ends_with_a_refusal(server, endless, monkeypatch):
    monkeypatch.setattr(turns, "LONGEST_WAIT", 0.2)
    with connect(server) as first:
        first.sendall(head(server, Content_Length=12) + b'{"model": 1}')
        until(lambda: endless.running == 1)
        answer = generate(server, {"model": 1})
        assert answer[0] == 503
        assert "still writing" in error_of(answer)
    until(lambda: endless.running == 0)


def test_more_connections_than_the_server_holds_are_closed(server):
    idle = [connect(server) for _ in range(MOST_CONNECTIONS)]
    until(lambda: not server._free._value)
    with connect(server) as late:
        assert late.recv(1) == b""
    for connection in idle:
        connection.close()
    until(lambda: server._free._value == MOST_CONNECTIONS)
    assert ask(server)[0] == 200


def test_a_failure_within_a_text_is_told_and_frees_the_model(server, model, monkeypatch):
    (moment,) = model.watch("the", max_tokens=1)

    def watch(*_args, **_options):
        yield moment
        raise MemoryError("no room")

    monkeypatch.setattr(LanguageModel, "watch", watch)
    last = json.loads(generate(server, {"prompt": "the"})[2].splitlines()[-1])
    assert last == {"error": "MemoryError: no room"}
    monkeypatch.undo()
    assert generate(server, {"prompt": "the", "max_tokens": 1})[0] == 200


def test_a_port_in_use_is_one_clear_error(server):
    with pytest.raises(ConfigError, match=r"--port=\d+ cannot be used: Address already in use; choose another"):
        PlayServer(server.server_port)
