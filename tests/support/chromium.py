"""Headless Chromium for tests, driven over HTTP through chromedriver (https://www.w3.org/TR/webdriver2/)."""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class SessionError(Exception):
    """The driver runs and cannot start the browser, for one of another version."""


class Chromium:
    """A browser with an empty profile; `close` ends it."""

    def __init__(self, profile: Path) -> None:
        self._driver = subprocess.Popen(
            [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        started = next(line for line in self._driver.stdout if "started successfully on port" in line)
        self._session = f"http://127.0.0.1:{started.rstrip().rstrip('.').rpartition(' ')[2]}/session"
        options = {"binary": BROWSER, "args": [*_QUIET, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            session = self._send("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except AssertionError as error:
            self._end()
            raise SessionError(str(error)) from None
        self._session += f"/{session}"

    def open(self, page: Path, width: int = 1280, height: int = 900, **media: str) -> None:
        """Load a page from disk; `media` are features such as prefers_color_scheme="dark"."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self._tell("Emulation.setEmulatedMedia", features=features)
        self._tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._send("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script: str, *arguments: Any) -> None:
        """Wait for a script to return something true."""
        end = time.monotonic() + 10
        while not self.run(script, *arguments):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """A real click on the first element, at its centre."""
        self._send("POST", f"/element/{self._find(selector)}/click", {})

    def press(self, keys: str) -> None:
        """Keys to whatever has the focus; special ones as in the standard, such as TAB below."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def errors(self) -> list[str]:
        """What the console reported since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """The window as a PNG file."""
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def close(self) -> None:
        try:
            self._send("DELETE", "")
        finally:
            self._end()

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.wait()
        assert self._driver.stdout is not None
        self._driver.stdout.close()

    def _tell(self, command: str, **parameters: Any) -> None:
        self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _find(self, selector: str) -> str:
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        return str(next(iter(found.values())))

    def _send(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            self._session + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with _OPENER.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()) from None


TAB, ENTER = "\ue004", "\ue007"
