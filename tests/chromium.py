"""A headless Chromium, through its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

START_S, PAGE_S = 60, 120

T = TypeVar("T")


def program() -> str | None:
    """Its path, if it is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@dataclass(slots=True)
class Browser:
    """One page of a running browser."""

    loop: asyncio.AbstractEventLoop
    socket: aiohttp.ClientWebSocketResponse
    session: str = ""
    errors: list[str] = field(default_factory=list)
    """What the pages have written to the console as errors, and exceptions."""
    _last: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        return self._run(self._call(method, parameters))

    def open(self, url: str, *texts: str) -> None:
        """Open a page and wait until it shows some texts."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        until = time.monotonic() + PAGE_S
        while True:
            shown = self.evaluate("document.body ? document.body.innerText : ''")
            missing = [text for text in texts if text not in shown]
            if not missing:
                return
            assert time.monotonic() < until, f"{url} does not show {missing}, but: {shown[:3000]}"
            time.sleep(0.2)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        until = time.monotonic() + PAGE_S
        while not self.evaluate(condition):
            assert time.monotonic() < until, condition
            time.sleep(0.2)

    def screenshot(self, path: Path) -> None:
        """Store what is visible as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        number = self._last
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        await self.socket.send_str(json.dumps(message))
        while True:
            answer = json.loads(await self.socket.receive_str(timeout=PAGE_S))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._keep_error(answer)

    def _keep_error(self, event: dict[str, Any]) -> None:
        details = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(details["exceptionDetails"])[:500])
        elif event.get("method") == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
        elif event.get("method") == "Runtime.consoleAPICalled" and details["type"] == "error":
            values = [str(a.get("value", a.get("description"))) for a in details["args"]]
            self.errors.append(" ".join(values)[:500])

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)


@contextlib.contextmanager
def chromium(profile: Path, width: int = 1400, height: int = 1000) -> Iterator[Browser]:
    """A browser with one empty page; its files are in ``profile``."""
    path = program()
    assert path
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    options += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
    process = subprocess.Popen(
        [path, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    loop = asyncio.new_event_loop()
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        port_file = profile / "DevToolsActivePort"
        until = time.monotonic() + START_S
        while not port_file.exists() or len(port_file.read_text().splitlines()) < 2:
            assert process.poll() is None, "the browser has ended"
            assert time.monotonic() < until, "the browser does not start"
            time.sleep(0.1)
        port, endpoint = port_file.read_text().splitlines()
        client = loop.run_until_complete(_new_client())
        stack.callback(lambda: loop.run_until_complete(client.close()))
        url = f"ws://127.0.0.1:{port}{endpoint}"
        socket = loop.run_until_complete(client.ws_connect(url, max_msg_size=0))
        browser = Browser(loop, socket)
        target = browser.call("Target.createTarget", url="about:blank")
        attached = browser.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        browser.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            browser.call(f"{domain}.enable")
        yield browser


async def _new_client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()
