"""Attacks on the viewer's server: each is refused, and nothing is written."""

from __future__ import annotations

import json
import socket

import pytest

from sammed3d_ft.view.cases import single_case
from sammed3d_ft.view.server import PAGE_FILES
from sammed3d_ft.view.session import MOST_LESIONS
from tests.support.viewers import Client, serving, tree, write_pet

CLICK = {"voxel": [12, 14, 10], "label": 1, "lesion": 1, "anyway": False}
POSTS = ("/click", "/undo", "/reset", "/remove", "/propose", "/save", "/case")
GETS = ("/state", "/volume/PT", "/labels", "/table")


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guard")
    with serving(single_case(write_pet(folder / "pet.nii.gz"), None)) as (client, server):
        yield client, server, folder


@pytest.fixture(autouse=True)
def nothing_is_written(viewer):
    before = tree(viewer[2])
    yield
    assert tree(viewer[2]) == before


def refused(client: Client, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> int:
    status, content, _ = client.raw(method, path, body, headers)
    assert status >= 400
    assert set(json.loads(content)) == {"error"}
    return status


@pytest.mark.parametrize(("method", "path"), [("GET", p) for p in (*GETS, "/")] + [("POST", p) for p in POSTS])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Host": "127.0.0.1:1"}, {"Host": "localhost.evil.example"},
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ],
    ids=lambda headers: "=".join(*headers.items()),
)  # fmt: skip
def test_foreign_host_origin_or_site(viewer, method, path, headers) -> None:
    body = json.dumps(CLICK).encode() if method == "POST" else None
    assert refused(viewer[0], method, path, body, headers) in (403, 421)


@pytest.mark.parametrize(("method", "path"), [("GET", p) for p in GETS] + [("POST", p) for p in POSTS])
def test_wrong_token(viewer, method, path) -> None:
    _, server, _ = viewer
    for token in ("", "0" * 64, server.token[:-1], server.token + "0", "é"):
        status = refused(Client(server.port, token), method, path, json.dumps(CLICK).encode(), {})
        assert status == 403
    link = socket.create_connection(("127.0.0.1", server.port))
    link.sendall(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 0\r\n\r\n".encode())
    assert link.recv(4096).startswith(b"HTTP/1.1 403")
    link.close()


def test_a_link_may_open_the_page_but_not_read_from_it(viewer) -> None:
    client, _, _ = viewer
    navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.raw("GET", "/", None, navigation)[0] == 200
    assert refused(client, "GET", "/state", None, navigation) == 403
    embedded = navigation | {"Sec-Fetch-Dest": "iframe"}
    assert refused(client, "GET", "/", None, embedded) == 403


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "/volume/..%2f..%2fpet", "/volume//etc/passwd", "/volume/label",
     "/style.css/../session.py", "/%2e%2e/server.py", "/server.py", "//etc/passwd", "/volume/PT%00"],
)  # fmt: skip
def test_paths_name_no_file(viewer, path) -> None:
    client, _, _ = viewer
    status, content, _ = client.raw("GET", path)
    assert status in (403, 404, 422)
    assert b"root:" not in content
    assert b"import" not in content


def test_only_the_page_needs_no_token(viewer) -> None:
    stranger = Client(viewer[1].port, "")
    for path in ("/", *PAGE_FILES):
        status, content, _ = stranger.raw("GET", path)
        assert status == 200
        assert content == (PAGE_FILES["/index.html"] if path == "/" else PAGE_FILES[path]).read_bytes()


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/state"), ("GET", "/no"), ("PUT", "/click")])
def test_every_answer_has_the_security_headers(viewer, method, path) -> None:
    _, _, headers = viewer[0].raw(method, path)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["access-control-allow-origin"] is None
    assert headers["server"] is None


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods(viewer, method) -> None:
    assert viewer[0].raw(method, "/click", b"{}")[0] == 405


def test_oversized_bodies(viewer) -> None:
    client, server, _ = viewer
    assert refused(client, "POST", "/click", b" " * 4097, {}) == 413
    link = socket.create_connection(("127.0.0.1", server.port), timeout=10)  # endless, without a length
    head = f"POST /click HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nx-viewer-token: {server.token}\r\n"
    link.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    answer = b""
    try:
        for _ in range(64):
            link.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        answer = link.recv(4096)
    except OSError:
        pass  # hung up on
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    link.close()


@pytest.mark.parametrize(
    "body",
    [b'{"voxel": [NaN, 1, 1], "label": 1, "lesion": 1, "anyway": false}',
     b'{"voxel": [1e999, 1, 1], "label": 1, "lesion": 1, "anyway": false}',
     b'{"voxel": [-Infinity, 1, 1], "label": 1, "lesion": 1, "anyway": false}',
     b'{"voxel": [1.5, 1, 1], "label": 1, "lesion": 1, "anyway": false}',
     b'{"voxel": [-1, 1, 1], "label": 1, "lesion": 1, "anyway": false}',
     b'{"voxel": [40, 1, 1], "label": 1, "lesion": 1, "anyway": false}',
     b'{"voxel": [true, 1, 1], "label": 1, "lesion": 1, "anyway": false}',
     b'{"voxel": [1, 1], "label": 1, "lesion": 1, "anyway": false}',
     b'{"voxel": [1, 1, 1], "label": 2, "lesion": 1, "anyway": false}',
     b'{"voxel": [1, 1, 1], "label": 1, "lesion": 0, "anyway": false}',
     b'{"voxel": [1, 1, 1], "label": 1, "lesion": 2147483648, "anyway": false}',
     b'{"voxel": [1, 1, 1], "label": 1, "lesion": "../x", "anyway": false}',
     b'{"voxel": [1, 1, 1], "label": 1, "lesion": 1, "anyway": 1}',
     b'{"voxel": [1, 1, 1], "label": 1, "lesion": 1, "anyway": false, "out": "/tmp/x"}',
     b"[" * 4000, b'"click"', b"", b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_click(viewer, body) -> None:
    assert refused(viewer[0], "POST", "/click", body, {}) == 400


def test_a_port_scan_learns_nothing_and_stops_nothing(viewer) -> None:
    client, server, _ = viewer
    probes = [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.0\r\n\r\n", b"SSH-2.0-scan\r\n", b"\x00" * 2000,
              b"GET /state HTTP/1.1\r\nHost: x\r\n\r\n", b"GET " + b"a" * 70000]  # fmt: skip
    for probe in probes * 3:
        link = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        link.sendall(probe)
        link.shutdown(socket.SHUT_WR)
        try:
            answer = link.recv(65536)
        except OSError:
            answer = b""
        assert answer == b"" or answer.split()[1] in (b"400", b"421")
        assert server.token.encode() not in answer
        link.close()
    assert client.get("/state")["phase"] == "ready"


def test_it_listens_on_loopback_only(viewer) -> None:
    assert viewer[1].address == ("127.0.0.1", viewer[1].port)


def test_ten_thousand_lesions(tmp_path) -> None:
    from sammed3d_ft.view import session as sessions

    case = single_case(write_pet(tmp_path / "pet.nii.gz"), tmp_path / "out")
    with serving(case) as (client, server):
        session = server.viewer.session
        clicks = [sessions.Click((3.0, 3.0, 4.0), 1, n) for n in range(1, MOST_LESIONS + 1)]
        session._change(sessions._State(tuple(clicks)))
        before = tree(tmp_path)
        for lesion in (MOST_LESIONS + 1, 10_000):
            status, content, _ = client.raw("POST", "/click", json.dumps(CLICK | {"lesion": lesion}).encode())
            assert status == 422
            assert json.loads(content) == {"error": f"at most {MOST_LESIONS} lesions"}
        assert tree(tmp_path) == before


def test_nothing_is_logged_of_tokens_and_names(tmp_path, capfd) -> None:
    case = single_case(write_pet(tmp_path / "Doe_Jane.nii.gz"), tmp_path / "out")
    with serving(case) as (client, server):
        client.click((12, 14, 10))
        client.raw("GET", f"/state?{server.token}")
        Client(server.port, "wrong").raw("GET", "/state")
    out, err = capfd.readouterr()
    assert "Doe" not in out + err
    assert server.token not in out + err
