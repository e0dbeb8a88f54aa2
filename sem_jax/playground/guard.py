"""Which requests are answered: those of the page itself, from a browser on this machine."""

from __future__ import annotations

from email.message import Message
from http import HTTPStatus

MOST_BYTES = 2**16  # of the body of a request
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is not answered.

    Attributes:
      status: of the response.
      headers: further ones of the response.
    """

    def __init__(self, status: HTTPStatus, message: str, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def own_names(port: int) -> list[str]:
    """What a browser on this machine may call a server at this port."""
    hosts = ["127.0.0.1", "localhost", "[::1]"]
    return [f"{host}:{port}" for host in hosts] + (hosts if port == 80 else [])


def check_caller(headers: Message, port: int) -> None:
    """Refuses what another page sends, or what a foreign name that points to this machine has led here.

    Raises:
      Refused: the Host or the Origin is not ours.
    """
    names = own_names(port)
    hosts = headers.get_all("Host", [])
    if len(hosts) != 1 or hosts[0].lower() not in names:
        raise Refused(HTTPStatus.FORBIDDEN, f"this server answers to the name {names[0]} only")
    origins = [origin.lower() for origin in headers.get_all("Origin", [])]
    if any(origin != f"http://{hosts[0].lower()}" for origin in origins):
        raise Refused(HTTPStatus.FORBIDDEN, "this server answers to its own page only")


def body_length(headers: Message) -> int:
    """The number of bytes of a JSON body, known before one of them is read.

    Raises:
      Refused: it is not JSON, of unknown length or too long.
    """
    if headers.get_content_type() != "application/json":
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be of type application/json")
    lengths = headers.get_all("Content-Length", [])
    if "Transfer-Encoding" in headers or not lengths:
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request must say how long its body is")
    if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
        raise Refused(HTTPStatus.BAD_REQUEST, "the length of the body is no number")
    # Python refuses to read numbers of thousands of digits, so the digits are counted first.
    if len(lengths[0]) > 18 or int(lengths[0]) > MOST_BYTES:
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request may have {MOST_BYTES:,} bytes at most")
    return int(lengths[0])
