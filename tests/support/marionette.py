"""A minimal client of Firefox's Marionette protocol: the stock browser, without a driver program."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any


class Firefox:
    """A headless Firefox with a profile of its own. Messages are ``length:JSON`` over TCP."""

    def __init__(self, executable: Path, profile: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (profile / "user.js").write_text(
            f'user_pref("marionette.port", {port});\n'
            'user_pref("app.update.enabled", false);\nuser_pref("datareporting.policy.dataSubmissionEnabled", false);\n'
            'user_pref("network.captive-portal-service.enabled", false);\n'
            'user_pref("network.connectivity-service.enabled", false);\n'
        )
        words = [str(executable), "--headless", "--marionette", "--no-remote", "--profile", str(profile)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 40
        while True:
            try:
                self._link = socket.create_connection(("127.0.0.1", port), timeout=60)
                break
            except OSError:
                if time.monotonic() > end:
                    self.close()
                    raise
                time.sleep(0.1)
        self._read = self._link.makefile("rb")
        self._number = 0
        self._message()  # its greeting
        self.ask("WebDriver:NewSession")
        self.ask("WebDriver:SetWindowRect", width=1280, height=860)

    def _message(self) -> Any:
        digits = b""
        while (one := self._read.read(1)) != b":":
            assert one, "Firefox closed the connection"
            digits += one
        return json.loads(self._read.read(int(digits)))

    def ask(self, name: str, **values: Any) -> Any:
        self._number += 1
        text = json.dumps([0, self._number, name, values]).encode()
        self._link.sendall(str(len(text)).encode() + b":" + text)
        _, _, error, result = self._message()
        assert error is None, error
        return result

    def open(self, link: str) -> None:
        self.ask("WebDriver:Navigate", url=link)

    def script(self, text: str) -> Any:
        """The value of a JavaScript expression."""
        return self.ask("WebDriver:ExecuteScript", script=f"return {text}", args=[])["value"]

    def wait(self, expression: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.script(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def canvas(self, selector: str) -> bytes:
        """The PNG of a canvas."""
        url = self.script(f"document.querySelector({json.dumps(selector)}).toDataURL()")
        return base64.b64decode(url.split(",")[1])

    def click(self, selector: str, at: tuple[float, float], button: int = 0) -> None:
        """Presses and releases a button at a point of an element, counted from its upper left corner."""
        place = f"(box => [box.left, box.top])(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        left, top = self.script(place)
        moves = [
            {"type": "pointerMove", "x": round(left + at[0]), "y": round(top + at[1]), "duration": 0},
            {"type": "pointerDown", "button": button},
            {"type": "pointerUp", "button": button},
        ]
        self.ask("WebDriver:PerformActions", actions=[{"type": "pointer", "id": "mouse", "actions": moves}])

    def press(self, key: str) -> None:
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.ask("WebDriver:PerformActions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
