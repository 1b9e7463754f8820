"""Who may talk to the viewer's server, and what every answer says to the browser.

The server listens on 127.0.0.1, but other programs and every web page open in the user's browser can reach it there.
A request is refused unless it names this server as its host (DNS rebinding), comes from its own page (cross-site
requests), carries the token of the link (other users and programs) and is small.
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
    """A request that is not served; the text is for whoever reads the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Guard:
    """ASGI middleware: refuses what is not the viewer's own page, and adds the security headers.

    Args:
        app: the application.
        port: where the server listens.
        token: what the page sends in `TOKEN_HEADER`.
        open_paths: paths served without the token: the page's own files, which hold nothing of a patient.
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
            body = await _small_body(receive)  # first: an answer before it may be lost with the connection
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
            raise Refused(421, "this server answers to its own address only")
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
    """The body of a request, refused when it is large, without reading it all, or slow."""
    body = b""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "connection closed")
                body += message.get("body", b"")
                if len(body) > MOST_BODY_BYTES:
                    raise Refused(413, f"a request's body may have {MOST_BODY_BYTES} bytes")
                if not message.get("more_body"):
                    return body
    except TimeoutError:
        raise Refused(408, "the request's body did not arrive") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, then what the connection says."""
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
