from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segx.errors import InferenceError, UsageError
from segx.web import static_files
from segx.web.server import HEADERS, Request, Response, Route, Server, _Handler, json_response

_GONE = threading.Event()


def _wait(request: Request) -> Response:
    request.wait_until_gone()
    _GONE.set()
    return Response()


def _fail(_: Request) -> Response:
    raise InferenceError("it broke", hint="mend it")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    for name in ("page.mjs", "engine.wasm", "model.onnx", "gone.js"):
        (tmp_path / name).write_text(name)
    routes = {
        "/echo": Route(lambda request: Response(request.query["as"].encode() + request.body), max_body_bytes=10),
        "/facts": Route(lambda _: json_response({"threads": 2})),
        "/fails": Route(_fail),
        "/raises": Route(lambda request: Response(request.query["missing"].encode())),
        "/waits": Route(_wait),
    }
    with Server({f"/{path.name}": path for path in tmp_path.iterdir()}, routes) as running:
        (tmp_path / "gone.js").unlink()
        yield running


def _ask(
    server: Server, path: str, body: bytes | None = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET" if body is None else "POST", path, body, headers)
    response = connection.getresponse()
    return response, response.read()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/page.mjs", "text/javascript; charset=utf-8"),
        ("/engine.wasm", "application/wasm"),
        ("/model.onnx", "application/octet-stream"),
    ],
)
def test_files_have_the_type_and_the_headers_that_threads_and_modules_need(
    server: Server, path: str, kind: str
) -> None:
    response, body = _ask(server, path)
    assert (response.status, body.decode()) == (200, path[1:])
    assert dict(response.getheaders()).items() >= {**HEADERS, "Content-Type": kind}.items()
    assert response.getheader("Cross-Origin-Opener-Policy") == "same-origin"
    assert response.getheader("Cross-Origin-Embedder-Policy") == "require-corp"
    assert "script-src 'self' 'wasm-unsafe-eval';" in str(response.getheader("Content-Security-Policy"))


def test_files_may_be_given_by_their_content_and_answers_may_have_headers() -> None:
    headers = {"Server-Timing": "run;dur=1.5"}
    routes = {"/timed": Route(lambda _: Response(b"done", headers=headers))}
    with Server({"/": b"<!doctype html>", "/model.json": b"{}"}, routes) as server:
        for path, kind, body in [
            ("/", "text/html; charset=utf-8", b"<!doctype html>"),
            ("/model.json", "application/json", b"{}"),
        ]:
            response, answer = _ask(server, path)
            assert (response.getheader("Content-Type"), answer) == (kind, body)
        response, answer = _ask(server, "/timed")
        assert (response.getheader("Server-Timing"), answer) == ("run;dur=1.5", b"done")


def test_routes_answer_with_what_their_functions_return(server: Server) -> None:
    assert _ask(server, "/echo?as=x%2By", b"abc")[1] == b"x+yabc"
    assert json.loads(_ask(server, "/facts")[1]) == {"threads": 2}
    response, body = _ask(server, "/fails")
    assert (response.status, json.loads(body)) == (422, {"error": "it broke", "hint": "mend it"})


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/", None, 404),
        ("/gone.js", None, 404),
        ("/../../../etc/passwd", None, 404),
        ("/%2e%2e/%2e%2e/etc/passwd", None, 404),
        ("/echo", None, 404),
        ("/facts", b"a body", 404),
        ("/echo?as=x", b"more than ten bytes", 413),
    ],
)
def test_what_is_not_served_is_refused(server: Server, path: str, body: bytes | None, status: int) -> None:
    response, answer = _ask(server, path, body)
    assert (response.status, answer) == (status, b"")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},  # a name that resolves to this machine
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1"},
    ],
)
def test_requests_of_foreign_pages_are_refused(server: Server, headers: dict[str, str]) -> None:
    assert _ask(server, "/page.mjs", **headers)[0].status == 403
    assert _ask(server, "/echo?as=x", b"abc", **headers)[0].status == 403


def test_requests_of_its_own_pages_are_answered(server: Server) -> None:
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}"):
        assert _ask(server, "/echo?as=x", b"abc", Host=host, Origin=f"http://{host}")[0].status == 200


@pytest.mark.parametrize(
    ("target", "host", "length", "status"),
    [
        *[("/echo?as=x", "localhost", length, 411) for length in ("", "-1", "1e3", "²")],
        ("/echo?as=x", "localhost", "9" * 5000, 413),
        ("/echo?as=x", "[", "3", 400),
        ("http://[", "localhost", "3", 400),
    ],
)
def test_a_malformed_request_is_refused_and_nothing_is_printed(
    server: Server, target: str, host: str, length: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(f"POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode())
        assert client.recv(100).startswith(f"HTTP/1.1 {status}".encode())
    assert capfd.readouterr() == ("", "")


def test_an_error_in_a_route_is_status_500_and_nothing_is_printed(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _ask(server, "/raises")[0].status == 500
    assert capfd.readouterr() == ("", "")


def test_bodies_are_limited_in_number_and_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segx.web.server._TURN_TIMEOUT_S", 0.1)
    monkeypatch.setattr("segx.web.server._Handler.timeout", 1.0)
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(5)]
    for client in clients:
        client.sendall(b"POST /echo?as=x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n")
    answers = [client.recv(12) for client in clients]
    assert sorted(answers) == [b""] * 4 + [b"HTTP/1.1 503"]
    for client in clients:
        client.close()
    assert _ask(server, "/echo?as=x", b"abc")[1] == b"xabc"


@pytest.mark.parametrize("begun", [b"", b"GET /page.mjs HT", b"GET /page.mjs HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_request_that_is_not_finished_is_not_waited_for(
    server: Server, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    assert _Handler.timeout, "by default it would wait for ever"
    monkeypatch.setattr(_Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(begun)
        assert client.recv(1) == b""


def test_a_client_that_does_not_read_its_answer_gives_its_turn_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segx.web.server._Handler.timeout", 0.5)
    routes = {"/long": Route(lambda _: Response(bytes(64 << 20)), max_body_bytes=10)}
    with Server({}, routes) as server, contextlib.ExitStack() as clients:
        for _ in range(4):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            client.sendall(b"POST /long HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
        assert len(_ask(server, "/long", b"x")[1]) == 64 << 20


def test_the_host_named_is_answered_whatever_its_case_and_another_is_told_the_address(server: Server) -> None:
    server._server.named = "MyBox.local"
    host = f"MyBox.local:{server.port}"
    assert _ask(server, "/page.mjs", Host=host, Origin=f"http://{host}")[0].status == 200
    response, body = _ask(server, "/page.mjs", Host="other.local")
    assert (response.status, f"http://127.0.0.1:{server.port}/" in body.decode()) == (403, True)


def test_a_route_learns_that_the_page_is_gone(server: Server) -> None:
    _GONE.clear()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"GET /waits HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not _GONE.wait(0.1)
    assert _GONE.wait(20)


def test_an_address_that_cannot_be_bound_is_a_clear_error(server: Server) -> None:
    for host, port in [("127.0.0.1", server.port), ("127.0.0.1", 70_000), ("x" * 64, 0)]:
        with pytest.raises(UsageError, match=f"{host}, port {port}"):
            Server({}, host=host, port=port)


def test_pages_hold_nothing_that_their_own_policy_forbids() -> None:
    """No script or style inline, and nothing from elsewhere."""
    for path in static_files().values():
        text = path.read_text()
        assert "http://" not in text.replace("http://www.w3.org/", "")
        assert "https://" not in text
        if path.suffix == ".html":
            assert all("src=" in tag.partition(">")[0] for tag in text.split("<script")[1:])
            policy = re.search(r'content="(default-src[^"]*)"', text)
            assert not policy or {*policy[1].split("; ")} <= {*HEADERS["Content-Security-Policy"].split("; ")}
            assert "<style" not in text
            assert "style=" not in text
            assert not any(f" on{event}=" in text for event in ("click", "load", "error", "input", "change"))
