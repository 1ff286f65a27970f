"""A headless Chromium that is told what to do over a pipe, in the DevTools protocol."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")


class Browser:
    """One page. `requests`, `errors` and `log` collect what happens in it.

    Args:
        dark: whether the page is asked for its dark colours.
    """

    def __init__(self, width: int = 1300, height: int = 900, dark: bool = False) -> None:
        assert CHROMIUM is not None
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._n_sent = 0
        self._unread = b""
        self.requests: list[str] = []
        self.errors: list[str] = []
        to_read, self._to_write = os.pipe()
        self._to_read, to_write = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; ours may have these numbers.
        far = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_read, to_write)]

        def hand_over() -> None:
            for number, end in enumerate(far, start=3):
                os.dup2(end, number)

        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        # So that a sandboxed frame can be reached through the page that it is in.
        flags += ["--disable-features=IsolateSandboxedIframes"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self._folder.name}", "about:blank"]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [CHROMIUM, *flags]
        self._process = subprocess.Popen(command, preexec_fn=hand_over, close_fds=False, **silent)
        for end in (to_read, to_write, *far):
            os.close(end)
        self._session: str | None = None
        self._context: dict[str, int] = {}
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.show_in(width, height, dark)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)
        os.close(self._to_write)
        os.close(self._to_read)
        self._folder.cleanup()

    def send(self, method: str, timeout: float = 30, **params: Any) -> Any:
        """The answer to a command of the protocol."""
        self._n_sent += 1
        message = {"id": self._n_sent, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to_write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            got = self._receive(deadline - time.monotonic())
            if got.get("id") == self._n_sent:
                assert "error" not in got, got["error"]
                return got["result"]

    def show_in(self, width: int, height: int = 900, dark: bool = False) -> None:
        """A window of another size or colours, in which the page stays."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str, shown: str = "document.body?.dataset.shown !== undefined") -> None:
        """Go to a page, from an empty one, so that it is loaded anew, and wait until a JavaScript condition holds."""
        self.send("Page.navigate", url="about:blank")
        self.evaluate("1")
        self.requests.clear()
        self.send("Page.navigate", url=url)
        self.wait(shown)

    def evaluate(self, expression: str, timeout: float = 30) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        found = self.send(
            "Runtime.evaluate",
            timeout,
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
            **self._context,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, timeout: float = 20) -> None:
        """Until a JavaScript condition holds."""
        deadline = time.monotonic() + timeout
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, f"{condition} does not come true; {self.errors}"
            time.sleep(0.02)

    @contextmanager
    def frame(self) -> Iterator["Browser"]:
        """Within it, expressions are those of the page's only frame."""
        (child,) = self.send("Page.getFrameTree")["frameTree"]["childFrames"]
        world = self.send("Page.createIsolatedWorld", frameId=child["frame"]["id"])
        self._context = {"contextId": world["executionContextId"]}
        yield self
        self._context = {}

    def press(self, key: str) -> None:
        """A key of the keyboard, such as "j" or "Enter"."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"Enter": 13, "Escape": 27}.get(key, ord(key[0].upper()))
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the left button down."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self, path: str | Path, whole: bool = False) -> None:
        """What is in sight, or the whole page."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def _receive(self, timeout: float) -> dict[str, Any]:
        """The next message, after what is an event has been noted."""
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._to_read], [], [], max(0.0, timeout))
            assert ready, "Chromium does not answer"
            self._unread += os.read(self._to_read, 2**20)
        raw, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.errors.append(str(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.errors.append(params["entry"]["text"])
            case _:
                pass
        return message
