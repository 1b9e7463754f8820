"""The viewer's server: its routes, how it starts, and how it ends."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sammed3d_ft.errors import InputError
from sammed3d_ft.view.guard import Guard, Refused

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.types import ASGIApp

    from sammed3d_ft.recipes.predict import LoadedModel
    from sammed3d_ft.view.cases import ViewedCase
    from sammed3d_ft.view.session import Session

PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE_FILES = {f"/{file.name}": file for file in sorted(PAGE.iterdir()) if file.suffix in _TYPES}
_AFTER_FAILURE_SECONDS = 5.0  # time for the page to fetch the error before the program exits
_LARGEST_LESION = 2**31 - 1
_PART_BYTES = 1 << 22


class Viewer:
    """The cases, and the session of the open one.

    Args:
        cases: at least one.
        load: loads the model; called once, on first use.
        annotated: for a cohort, the manifest of saved cases, which is kept up to date.
        failed: called if the only scan cannot be opened.
    """

    def __init__(
        self,
        cases: Sequence[ViewedCase],
        load: Callable[[], LoadedModel],
        annotated: Path | None = None,
        failed: Callable[[str], None] | None = None,
    ) -> None:
        from sammed3d_ft.view.shown_lesions import SharedModel

        self.cases = list(cases)
        self._annotated = annotated
        self._failed = failed
        self._model = SharedModel(load)
        self._turning = threading.Lock()
        self.done = [case.saved for case in self.cases]
        self.current = next((n for n, done in enumerate(self.done) if not done), 0)
        self.session = self._opened()

    def _opened(self) -> Session:
        from sammed3d_ft.view.session import Session

        session = Session(self.cases[self.current], self._model)

        def run() -> None:
            session.open()
            if session.phase == "failed" and len(self.cases) == 1 and self._failed is not None:
                self._failed(session.error)

        threading.Thread(target=run, name="open", daemon=True).start()
        return session

    def turn(self, number: int) -> None:
        """Open another case."""
        if not 0 <= number < len(self.cases):
            raise InputError(f"there are {len(self.cases)} cases")
        with self._turning:
            self.session.close()
            self.done[self.current] = self.cases[self.current].saved
            self.current = number
            self.session = self._opened()

    def save(self) -> dict[str, Any]:
        """Save the open case, and the manifest of a cohort."""
        from sammed3d_ft.view.cases import write_annotated

        session, number = self.session, self.current
        found = session.save()
        self.done[number] = True
        if self._annotated is not None:
            write_annotated(self.cases, self._annotated)
            found["manifest"] = str(self._annotated)
        return found

    def state(self) -> dict[str, Any]:
        """Everything the page shows, except voxels."""
        session, case = self.session, self.cases[self.current]
        scan = session.scan if session.phase == "ready" else None
        found: dict[str, Any] = {
            "phase": session.phase,
            "error": session.error,
            "busy": session.busy,
            "name": case.image.name,
            "current": self.current,
            "cases": [
                {"id": one.id, "done": done} for one, done in zip(self.cases, self.done, strict=True)
            ] if self._annotated is not None else [],
        }  # fmt: skip
        if scan is not None:
            found |= session.news(None)
            found |= {"patient": scan.patient, "notes": scan.notes, "not_suv": scan.not_suv, "folder": str(case.folder)}
            found["modality"] = scan.modality
            found["ct_expected"] = scan.ct is not None
            found["volumes"] = {
                modality: {"shape": list(volume.array.shape), "affine": volume.affine.tolist()}
                for modality, volume in scan.volumes.items()
            }
        return found


def application(viewer: Viewer, port: int, token: str) -> ASGIApp:
    """The guarded application."""
    return Guard(_routes(viewer), port, token, ["/", *PAGE_FILES])


def _routes(viewer: Viewer) -> Starlette:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    def page(request: Request) -> Response:
        path = "/index.html" if request.url.path == "/" else request.url.path
        file = PAGE_FILES[path]  # routes exist only for these names
        return FileResponse(file, media_type=_TYPES[file.suffix])

    def state(request: Request) -> Response:
        return JSONResponse(viewer.state())

    def volume(request: Request) -> Response:
        from sammed3d_ft.view.scan import voxel_bytes

        session, modality = viewer.session, request.path_params["modality"]
        found = {} if session.scan is None or session.phase != "ready" else session.scan.volumes
        if modality not in found:
            raise InputError("this image is not loaded yet")
        content = voxel_bytes(modality, found[modality])
        return StreamingResponse(
            _parts(content, session.image_seen.set),
            media_type="application/octet-stream",
            headers={"content-length": str(len(content))},
        )

    def labels(request: Request) -> Response:
        return _framed(*viewer.session.labels(None))

    def table(request: Request) -> Response:
        return JSONResponse(viewer.session.table())

    def act(work: Callable[[dict[str, Any]], Response], *names: str) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            from starlette.concurrency import run_in_threadpool

            return await run_in_threadpool(work, _asked(await request.body(), names))

        return endpoint

    def changed(news: dict[str, Any]) -> Response:
        box = news["box"]
        return _framed(news, viewer.session.labels(box)[1] if box else b"")

    def click(asked: dict[str, Any]) -> Response:
        session = viewer.session
        if session.scan is None:
            raise InputError("the scan is still being read")
        voxel = _voxel(asked["voxel"], session.scan.volume.array.shape)
        label = _whole(asked["label"], 0, 1, "label")
        lesion = _whole(asked["lesion"], 1, _LARGEST_LESION, "lesion")
        if not isinstance(asked["anyway"], bool):
            raise Refused(400, "anyway must be true or false")
        return changed(session.click(voxel, label, lesion, asked["anyway"]))

    def on_lesion(name: str) -> Callable[[dict[str, Any]], Response]:
        def work(asked: dict[str, Any]) -> Response:
            lesion = _whole(asked["lesion"], 1, _LARGEST_LESION, "lesion")
            return changed(getattr(viewer.session, name)(lesion))

        return work

    def turn(asked: dict[str, Any]) -> Response:
        viewer.turn(_whole(asked["case"], 0, len(viewer.cases) - 1, "case"))
        return JSONResponse(viewer.state())

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return JSONResponse({"error": str(error)}, error.status)

    def wrong(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    def post(path: str, work: Callable[[dict[str, Any]], Response], *names: str) -> Route:
        return Route(path, act(work, *names), methods=["POST"])

    routes = [
        *(Route(path, page) for path in ("/", *PAGE_FILES)),
        Route("/state", state),
        Route("/volume/{modality:str}", volume),
        Route("/labels", labels),
        Route("/table", table),
        post("/click", click, "voxel", "label", "lesion", "anyway"),
        post("/undo", lambda asked: changed(viewer.session.undo())),
        post("/reset", on_lesion("reset"), "lesion"),
        post("/remove", on_lesion("remove"), "lesion"),
        post("/propose", lambda asked: JSONResponse({"proposals": viewer.session.propose()})),
        post("/save", lambda asked: JSONResponse(viewer.save())),
        post("/case", turn, "case"),
    ]
    return Starlette(routes=routes, exception_handlers={Refused: refused, InputError: wrong})


def _asked(body: bytes, names: Sequence[str]) -> dict[str, Any]:
    """The request's JSON object, which must have exactly these names and only finite numbers."""

    def refuse(text: str) -> Any:
        raise ValueError(text)

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    try:
        asked = json.loads(body or b"{}", parse_constant=refuse, parse_float=number)
    except (ValueError, RecursionError):
        raise Refused(400, "the request's body must be JSON with finite numbers") from None
    if not isinstance(asked, dict) or asked.keys() != set(names):
        raise Refused(400, f"expected an object with {', '.join(names) or 'nothing'}")
    return asked


def _whole(value: Any, low: int, high: int, name: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise Refused(400, f"{name} must be a whole number from {low} to {high}")
    return value


def _voxel(value: Any, shape: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3:
        raise Refused(400, "voxel must be three whole numbers")
    x, y, z = (_whole(c, 0, n - 1, "each of voxel") for c, n in zip(value, shape, strict=True))
    return x, y, z


def _framed(head: dict[str, Any], content: bytes) -> Any:
    """JSON and raw bytes in one response: the length of the JSON (uint32, little-endian), the JSON, the bytes."""
    from starlette.responses import Response

    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 4)  # aligns the bytes that follow
    return Response(len(text).to_bytes(4, "little") + text + content, media_type="application/octet-stream")


def _parts(content: memoryview, sent: Callable[[], None]) -> Iterator[bytes]:
    """Parts of a large response, so that it is not copied as a whole; ``sent`` is called at the end."""
    for at in range(0, len(content), _PART_BYTES):
        yield bytes(content[at : at + _PART_BYTES])
    sent()


class RunningServer:
    """A server on a free port of the loopback interface, with its token.

    Args:
        make: creates the viewer; its argument is a function to call if the scan cannot be opened.
    """

    def __init__(self, make: Callable[[Callable[[str], None]], Viewer]) -> None:
        self.failure = ""
        self.token = secrets.token_hex(32)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.port = self.address[1]
        self.viewer = make(self._fail)

        import uvicorn  # imported while the scan is being read

        config = uvicorn.Config(
            application(self.viewer, self.port, self.token),
            access_log=False, log_level="warning", lifespan="off", server_header=False, ws="none",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

    @property
    def link(self) -> str:
        """The link with the token in its fragment, which browsers do not send to servers."""
        return f"http://127.0.0.1:{self.port}/#{self.token}"

    def run(self) -> None:
        """Serve until stopped, or until the scan turns out to be unreadable."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        self.viewer.session.close()
        self._server.should_exit = True

    def _fail(self, error: str) -> None:
        self.failure = error
        timer = threading.Timer(_AFTER_FAILURE_SECONDS, self.stop)
        timer.daemon = True
        timer.start()


def serve(
    cases: Sequence[ViewedCase],
    load: Callable[[], LoadedModel],
    lock: Path,
    annotated: Path | None = None,
    browser: bool = True,
) -> None:
    """Serve the viewer until Ctrl+C.

    Args:
        cases, load, annotated: see `Viewer`.
        lock: folder of the results, which only one viewer may use at a time.
        browser: open the page in the user's browser.

    Raises:
        InputError: the scan cannot be read, or another viewer uses the folder.
    """
    from sammed3d_ft.training.run_lock import RunHeldError, locked_run

    logging.getLogger("uvicorn.error").addFilter(lambda record: "Invalid HTTP request" not in record.getMessage())
    try:
        with locked_run(lock, ".viewer.lock"):
            server = RunningServer(lambda failed: Viewer(cases, load, annotated, failed))
            print(
                f"Viewer: {server.link}\nKeep this link to yourself. Ctrl+C ends the viewer; all clicks are saved.",
                flush=True,
            )
            if browser:
                _open_browser(server.link)
            with contextlib.suppress(KeyboardInterrupt):  # the usual way to end
                server.run()
    except RunHeldError as error:
        raise InputError(f"{lock}: another viewer has this folder open; close it first ({error})") from None
    if server.failure:
        raise InputError(server.failure)


def _open_browser(link: str) -> None:
    """Open the link through a private file, because a command line with the token would be visible to all users."""
    folder = Path(tempfile.mkdtemp(prefix="sammed3d-view-"))  # for this user alone
    file = folder / "open.html"
    file.write_text(f'<!doctype html><meta http-equiv="refresh" content="0;url={link}"><title>Viewer</title>\n')

    def forget() -> None:
        file.unlink(missing_ok=True)
        folder.rmdir()

    timer = threading.Timer(30, forget)
    timer.daemon = True
    timer.start()
    if not webbrowser.open(file.as_uri()):
        print("No browser found: open the link in a browser on this machine.", file=sys.stderr)
