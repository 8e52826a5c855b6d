"""A headless Chromium driven by its own protocol: opens pages, runs scripts in them, moves the mouse, takes pictures.

Tests that need one take :func:`chromium_or_skip`; no package beside viser's own is needed.
"""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--use-angle=swiftshader"),
    *("--enable-unsafe-swiftshader", "--remote-debugging-port=0", "--hide-scrollbars", "--mute-audio"),
)
WAIT_SECONDS = 150.0  # the machine may be busy


def chromium_or_skip() -> str:
    """The program; skips the test where it, or what talks to it, is absent."""
    pytest.importorskip("websockets.sync.client", reason="the websockets package of the extra `view` is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


class Chromium:
    """One page in a new browser; use as a context manager."""

    def __init__(self, program: str, profile: Path, width: int = 1280, height: int = 800) -> None:
        """``profile`` is a folder that does not exist yet."""
        self.errors: list[str] = []  # of the console, and exceptions
        self.requests: list[str] = []  # addresses that were asked for
        self._numbers = count(1)
        self._profile = profile
        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._socket = self._connect()
        except BaseException:
            self._process.kill()
            raise
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait_for(self, what: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
        """The first true value of ``what``, asked now and then."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, self.errors or "it did not happen"
            self.listen(0.05)
        return found

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 12) -> None:
        """Move the mouse with its left button held."""
        self._mouse("mousePressed", *start)
        for step in range(1, steps + 1):
            x, y = (round(a + (b - a) * step / steps) for a, b in zip(start, end, strict=True))
            self._mouse("mouseMoved", x, y)
            self.listen(0.03)
        self._mouse("mouseReleased", *end)

    def click(self, x: int, y: int) -> None:
        """Press and release the left button."""
        self._mouse("mouseMoved", x, y)
        self._mouse("mousePressed", x, y)
        self.listen(0.05)
        self._mouse("mouseReleased", x, y)

    def screenshot(self, file: Path) -> Path:
        """Write what the page shows as a PNG."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return file

    def processes(self) -> list[psutil.Process]:
        """All processes of the browser."""
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)]

    def listen(self, seconds: float) -> None:
        """Take in what the browser reports."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                self._note(json.loads(self._socket.recv(timeout=left)))
            except TimeoutError:
                return

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            message = json.loads(self._socket.recv(timeout=WAIT_SECONDS))
            if message.get("id") == number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)
        raise AssertionError(f"{method} has no answer")

    def _mouse(self, kind: str, x: int, y: int) -> None:
        pressed = {"button": "left", "buttons": 0 if kind == "mouseReleased" else 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def _note(self, message: dict[str, Any]) -> None:
        method, what = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and what["type"] == "error":
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in what["args"]))
        elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.errors.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])

    def _connect(self) -> Any:
        from websockets.sync.client import connect

        file = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + WAIT_SECONDS
        while not (file.is_file() and file.read_text().count("\n") >= 1):
            assert self._process.poll() is None and time.monotonic() < deadline, "the browser does not start"
            time.sleep(0.05)
        port = file.read_text().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        return connect(page["webSocketDebuggerUrl"], max_size=None)
