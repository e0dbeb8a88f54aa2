"""The server of the page: five fixed addresses, on this machine only."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import select
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sem_jax.config import ConfigError
from sem_jax.data.files import parse_json
from sem_jax.errors import SemJaxError
from sem_jax.playground.guard import HEADERS, Refused, body_length, check_caller
from sem_jax.playground.session import Session, answer

HOST = "127.0.0.1"
MOST_CONNECTIONS = 32
_PATIENCE = 20.0  # seconds that a client may neither send nor take anything
_LAST_TOKEN = 5.0  # seconds that a generation may take to notice that the server stops
_LAST_BYTES = 2**18  # of a refused body that are read, so that the client does not miss the answer
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/wave.js": ("wave.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class PlayServer(ThreadingHTTPServer):
    """Serves the page of some models; `serve_forever` runs it, `stop` ends it.

    Args:
      port: 0 takes any free one.

    Raises:
      ConfigError: the port cannot be used.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int):
        self.sessions: list[Session] = []
        self.stopping = threading.Event()
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(f"--port={port} cannot be used: {error.strerror}; choose another one") from error

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HOST}:{self.server_port}/"

    def stop(self) -> None:
        """Ends the generations that run, and gives the port back."""
        self.stopping.set()
        self.server_close()
        for session in self.sessions:  # a process must not end under a computation
            session.turns.close(_LAST_TOKEN)

    def server_bind(self) -> None:
        """Takes the port, without asking a name server for our name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each connection, up to a number; more are closed at once."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What a thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line, or none if the client has gone away."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"error: a request failed: {type(error).__name__}: {error}", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    server: PlayServer
    server_version = "sem_jax"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """The page, its parts, and what it tells of the models."""
        with self._refusals():
            check_caller(self.headers, self.server.server_port)
            if self.path == "/models":
                described = [session.description() for session in self.server.sessions]
                self._send(HTTPStatus.OK, json.dumps(described).encode(), "application/json")
            elif self.path in _FILES:
                name, kind = _FILES[self.path]
                self._send(HTTPStatus.OK, importlib.resources.files(__package__).joinpath(name).read_bytes(), kind)
            else:
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def do_POST(self) -> None:
        """A text, line by line."""
        with self._refusals():
            check_caller(self.headers, self.server.server_port)
            if self.path != "/generate":
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing at this address")
            body = self.rfile.read(body_length(self.headers))
            try:
                values = parse_json(body)
            except ValueError as error:
                raise Refused(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from error
            session, lines = answer(self.server.sessions, values)
            with session.turns.turn(self._is_gone):
                self._stream(lines)

    def _stream(self, lines: Iterator[dict[str, Any]]) -> None:
        """Sends lines as chunks until they end or the server stops; to a client that has gone nothing can be sent."""
        self._start(HTTPStatus.OK, "application/x-ndjson", {"Transfer-Encoding": "chunked"})
        try:
            for line in lines:
                self._chunk(line)
                if self.server.stopping.is_set():
                    return
        except OSError:
            raise
        except Exception as error:  # such as memory that does not suffice: the page shall tell it
            known = isinstance(error, SemJaxError)
            self._chunk({"error": str(error) if known else f"{type(error).__name__}: {error}"})
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Answers with the reason where a request is refused."""
        try:
            yield
        except Refused as refused:
            data = json.dumps({"error": str(refused)}).encode()
            self._send(refused.status, data, "application/json", refused.headers)
            self._drain()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses, such as another method, in the form of our own refusals."""
        del explain
        status = HTTPStatus(code)
        self._send(status, json.dumps({"error": message or status.phrase}).encode(), "application/json")

    def _send(self, status: HTTPStatus, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self._start(status, kind, {"Content-Length": str(len(data)), **(headers or {})})
        self.wfile.write(data)

    def _start(self, status: HTTPStatus, kind: str, headers: dict[str, str]) -> None:
        self.close_connection = True  # what a refused client goes on to send must not be read as a request
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers, **HEADERS, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _drain(self) -> None:
        """Reads a little of what is still coming: a connection closed before that may lose the answer."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(0.5)
            for _ in range(_LAST_BYTES // 2**14):
                if not self.connection.recv(2**14):
                    return

    def _is_gone(self) -> bool:
        """Whether the client has closed its end; the page sends nothing after its request."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to errors."""
