"""An HTTP server for pages of segx: named files and functions, on loopback unless asked."""

from __future__ import annotations

import contextlib
import http.server
import io
import ipaddress
import json
import logging
import os
import shutil
import socket
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import NamedTuple, Self

from segx.errors import SegxError, UsageError

logger = logging.getLogger(__name__)

# What the pages need: WebAssembly with threads works only where a page is isolated from other origins (COOP, COEP).
HEADERS: Mapping[str, str] = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# Those of the system may be wrong or missing, and a browser refuses a module of another type.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_BYTES = "application/octet-stream"
_CHUNK = 1 << 16
_MAX_LENGTH_DIGITS = 20
# Bodies are held in memory: so many at once, each as long as its client goes on sending, then reading.
_BODIES_AT_ONCE = 4
_TURN_TIMEOUT_S = 30.0
# Of reading a request, of sending a chunk, and between requests of one connection.
_TRANSFER_TIMEOUT_S = 30.0


class Request(NamedTuple):
    """What a route is called with.

    Attributes:
        query: the parameters in the URL.
        body: empty for a GET.
        wait_until_gone: blocks until the client closes the connection.
    """

    query: Mapping[str, str]
    body: bytes
    wait_until_gone: Callable[[], None]


class Response(NamedTuple):
    """What a route answers."""

    body: bytes = b""
    content_type: str = _BYTES
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = MappingProxyType({})


def json_response(data: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Answer with data as JSON."""
    return Response(json.dumps(data).encode(), _TYPES[".json"], status)


class Route(NamedTuple):
    """A function of the server, in a thread of its own for each request; one that takes no body is for GET.

    An error of segx is answered with status 422 and its message and hint as JSON.
    """

    call: Callable[[Request], Response]
    max_body_bytes: int = 0
    waits: bool = False  # for as long as its page is open: it is not counted among the bodies at once


class Server:
    """A running server; leave the context to stop it."""

    def __init__(
        self,
        files: Mapping[str, Path | bytes],
        routes: Mapping[str, Route] = MappingProxyType({}),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Serve ``files``, or their content, and ``routes`` by their path in the URL, on a free port if it is 0.

        A path that ends in ``/`` is a page. Both may be added to later.

        Raises:
            UsageError: the address cannot be bound.
        """
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: a label is too long
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(
                f"cannot serve on {host}, port {port}: {reason}",
                hint="choose another --port or --host, or leave them out",
            ) from error
        self._server.files, self._server.routes, self._server.named = files, routes, host
        # The interval is what closing the server may take.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        """Return the port in use."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Return the address of the page on this machine."""
        host = self._server.named
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return _url(host, self.port)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    files: Mapping[str, Path | bytes]
    routes: Mapping[str, Route]
    named: str

    def __init__(self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.bodies = threading.BoundedSemaphore(_BODIES_AT_ONCE)
        super().__init__(address, handler)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "segx", ""
    timeout = _TRANSFER_TIMEOUT_S  # TimeoutError closes the connection
    server: _Server

    def do_GET(self) -> None:
        """Answer with a file, or by a route without a body."""
        if not (url := self._own_url()):
            return
        route = self.server.routes.get(url.path)
        if file := self.server.files.get(url.path):
            suffix = ".html" if url.path.endswith("/") else PurePosixPath(url.path).suffix
            self._send_file(file, _TYPES.get(suffix, _BYTES))
        elif route and not route.max_body_bytes:
            self._call(route, url.query, b"")
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Answer by a route with a body."""
        if not (url := self._own_url()):
            return
        route = self.server.routes.get(url.path)
        length = self.headers.get("Content-Length", "")
        if not route or not route.max_body_bytes:
            self._refuse(HTTPStatus.NOT_FOUND)
        elif not (length.isascii() and length.isdecimal()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        elif len(length) > _MAX_LENGTH_DIGITS or int(length) > route.max_body_bytes:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif route.waits:
            self._call(route, url.query, self.rfile.read(int(length)))
        elif self.server.bodies.acquire(timeout=_TURN_TIMEOUT_S):
            try:
                if len(body := self.rfile.read(int(length))) == int(length):
                    self._call(route, url.query, body)
            finally:
                self.server.bodies.release()
        else:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    def _own_url(self) -> urllib.parse.SplitResult | None:
        """Return what a request of a page of this server asks for; refuse any other and return None."""
        try:
            url, is_ours = urllib.parse.urlsplit(self.path), self._is_ours()
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return None
        if is_ours:
            return url
        address, port = self.connection.getsockname()[:2]
        self._refuse(HTTPStatus.FORBIDDEN, f"Open {_url(address, port)} instead, or name this host by --host.\n")
        return None

    def _is_ours(self) -> bool:
        """Return whether a request comes from a page of this server, or from no page.

        A foreign page can have its own name resolve to this machine, but then ``Host`` is that name.
        """
        origin = self.headers.get("Origin")
        host = self.headers.get("Host", "")
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        return (name in ("localhost", self.server.named.lower()) or _is_address(name)) and origin in (
            None,
            f"http://{host}",
        )

    def _call(self, route: Route, query: str, body: bytes) -> None:
        def wait_until_gone() -> None:
            self.connection.settimeout(None)
            with contextlib.suppress(OSError):
                self.connection.recv(1, socket.MSG_PEEK)

        try:
            response = route.call(Request(dict(urllib.parse.parse_qsl(query)), body, wait_until_gone))
        except SegxError as error:
            response = json_response({"error": error.message, "hint": error.hint}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except Exception:
            logger.debug("%s failed", self.path, exc_info=True)
            response = Response(status=HTTPStatus.INTERNAL_SERVER_ERROR)
        self._send_head(response.status, response.content_type, len(response.body), response.headers)
        self.wfile.write(response.body)

    def _send_file(self, file: Path | bytes, content_type: str) -> None:
        try:
            stream = io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with stream:
            self._send_head(HTTPStatus.OK, content_type, stream.seek(0, os.SEEK_END))
            stream.seek(0)
            shutil.copyfileobj(stream, self.wfile, _CHUNK)

    def _refuse(self, status: HTTPStatus, reason: str = "") -> None:
        """Answer with a status and a reason, and close the connection: a body may be left unread."""
        self.close_connection = True
        self._send_head(status, "text/plain", len(reason))
        self.wfile.write(reason.encode())

    def _send_head(
        self, status: HTTPStatus, content_type: str, length: int, others: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.send_response(status)
        headers = {**HEADERS, **others, "Content-Type": content_type, "Content-Length": str(length)}
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def handle(self) -> None:
        """Answer requests until the client is gone, which is no error."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Log for debugging only."""
        logger.debug("%s", format % args)


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
