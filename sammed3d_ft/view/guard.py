"""Access control of the viewer's server, and the security headers of its responses.

The server listens on 127.0.0.1, where other programs and every web page in the user's browser can reach it. A request
is refused unless its host is this server (against DNS rebinding), it comes from the viewer's page (against cross-site
requests), it carries the token of the link (against other users and programs), and it is small.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 4096
_BODY_SECONDS = 5.0
TOKEN_HEADER = "x-viewer-token"

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Refused(Exception):
    """A refused request; the text is the error message of the response."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Guard:
    """ASGI middleware that refuses requests from anything but the viewer's page and adds the security headers.

    Args:
        app: the application.
        port: port of the server.
        token: the token that the page sends in `TOKEN_HEADER`.
        open_paths: paths served without the token: the page's own files, which contain no patient data.
    """

    def __init__(self, app: ASGIApp, port: int, token: str, open_paths: Iterable[str]) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}
        self._token = token.encode()
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no websocket, no lifespan
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        try:
            body = await _small_body(receive)  # read first: a response sent before it may be lost with the connection
            self._check(scope)
            await self._app(scope, _replay(body, receive), guarded)
        except Refused as refused:
            if not started:
                await _answer(guarded, refused.status, str(refused))

    def _check(self, scope: Scope) -> None:
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if len(headers.get("host", [])) != 1 or headers["host"][0] not in self._hosts:
            raise Refused(421, "wrong host: open the link that the viewer printed")
        if any(origin not in self._origins for origin in headers.get("origin", [])):
            raise Refused(403, "requests from other pages are refused")
        opens_page = (
            scope["method"] == "GET"
            and scope["path"] == "/"
            and headers.get("sec-fetch-mode") == ["navigate"]
            and headers.get("sec-fetch-dest") == ["document"]
        )
        sites = headers.get("sec-fetch-site", [])
        if not opens_page and any(site not in ("same-origin", "none") for site in sites):
            raise Refused(403, "requests from other sites are refused")
        if scope["method"] not in ("GET", "POST"):
            raise Refused(405, "GET and POST only")
        if scope["path"] in self._open and scope["method"] == "GET":
            return
        given = headers.get(TOKEN_HEADER, [])
        if len(given) != 1 or not secrets.compare_digest(given[0].encode("latin-1"), self._token):
            raise Refused(403, "wrong or missing token; open the link that the viewer printed")


async def _small_body(receive: Receive) -> bytes:
    """Read the body of a request; a large body (without reading all of it) or a slow one is refused."""
    body = b""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "connection closed")
                body += message.get("body", b"")
                if len(body) > MOST_BODY_BYTES:
                    raise Refused(413, f"request body too large; at most {MOST_BODY_BYTES} bytes")
                if not message.get("more_body"):
                    return body
    except TimeoutError:
        raise Refused(408, "timeout while reading the request body") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return the body that was already read, then the further messages of the connection."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, status: int, text: str) -> None:
    content = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
