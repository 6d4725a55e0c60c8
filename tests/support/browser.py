"""A headless Chromium that is driven as a person would: keys, and what then stands on the page.

By the DevTools protocol over two pipes (`--remote-debugging-pipe`): messages of JSON that end with a zero byte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_CODES = {"Tab": 9, "Enter": 13}
_SECONDS = 20.0
# The browser reads at descriptor 3 and writes at 4.
_PLACED = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 10) for descriptor in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@dataclass
class Tab:
    """One page of a browser."""

    _to: IO[bytes]
    _from: IO[bytes]
    _session: str = ""
    _count: int = 0
    complaints: list[str] = field(default_factory=list)  # errors of scripts, and what the console was told

    def ask(self, method: str, **parameters: Any) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._read()
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(answer["params"]))
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def press(self, key: str, *, control: bool = False) -> None:
        held = {"key": key, "code": key, "windowsVirtualKeyCode": _CODES[key], "modifiers": 2 if control else 0}
        if key == "Enter":
            held["text"] = "\r"
        self.ask("Input.dispatchKeyEvent", type="keyDown", **held)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **held)

    def press_until(self, key: str, expression: str) -> None:
        """Press a key until the expression is true, which it must be soon."""
        for _ in range(30):
            if self.value(expression):
                return
            self.press(key)
        raise AssertionError(f"never true by {key}: {expression}")

    def write(self, text: str) -> None:
        self.ask("Input.insertText", text=text)

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression: str) -> Any:
        """What the expression gives once it gives something true."""
        until = time.monotonic() + _SECONDS
        while not (found := self.value(expression)):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.05)
        return found

    def _read(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser is gone"
            content += byte
        found: dict[str, Any] = json.loads(content)
        return found


@contextmanager
def opened(browser: str, url: str, home: Path, *, width: int, height: int) -> Iterator[Tab]:
    """A tab of a new browser, at `url`."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank",
    ]  # fmt: skip

    process = subprocess.Popen(
        [sys.executable, "-c", _PLACED, str(to_read), str(from_write), *command],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(home)},
    )
    os.close(to_read)
    os.close(from_write)
    try:
        with os.fdopen(to_write, "wb") as to, os.fdopen(from_read, "rb", buffering=0) as source:
            tab = Tab(to, source)
            target = tab.ask("Target.createTarget", url="about:blank")["targetId"]
            tab._session = tab.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Runtime", "Log", "Page"):
                tab.ask(f"{domain}.enable")
            size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            tab.ask("Emulation.setDeviceMetricsOverride", **size)
            tab.ask("Page.navigate", url=url)
            yield tab
    finally:
        process.kill()
        process.wait()
