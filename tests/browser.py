"""A Chromium without a window, driven over its DevTools protocol: enough of it to use a page as a person does."""

import asyncio
import base64
import json
import shutil
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp

PROGRAM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WHY_NOT: Final = "" if PROGRAM else "no chromium on the path"

PATIENCE_S: Final = 30.0
_LOOK_S: Final = 0.02
_FLAGS: Final = (
    "--headless",
    "--no-sandbox",  # which does not run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
    "--window-size=1000,900",
)
_KEYS: Final = {"Enter": 13, "Escape": 27, "Tab": 9}
_SHIFT: Final = 8


class BrowserError(Exception):
    """The browser, or a script that ran in it, failed."""


class Page:
    """A tab. What its console complained of is in ``complaints``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []

    async def open(self, url: str) -> None:
        """Go to an address and wait until the page and its scripts are loaded."""
        await self.tell("Page.navigate", url=url)
        await self.wait_for(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return what a JavaScript expression comes to; a promise is awaited. Raises ``BrowserError``."""
        answer = await self.tell("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    async def wait_for(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true; returns its value. Raises ``BrowserError`` if it never is."""
        async with asyncio.timeout(PATIENCE_S) as deadline:
            while True:
                with suppress(BrowserError):  # between two pages there is nothing to evaluate in
                    value = await self.evaluate(expression)
                    if value:
                        return value
                if deadline.expired():
                    raise BrowserError(f"never true: {expression}")
                await asyncio.sleep(_LOOK_S)

    async def write(self, selector: str, text: str) -> None:
        """Put the cursor into a field and replace what is in it, as if by keyboard."""
        await self.evaluate(
            f"(field => (field.focus(), field.select()))(document.querySelector({json.dumps(selector)}))"
        )
        await self.tell("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key and let it go."""
        text = {"text": "\r"} if key == "Enter" else {}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": _SHIFT if shift else 0}
        await self.tell("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        await self.tell("Input.dispatchKeyEvent", type="keyUp", **about)

    async def click(self, selector: str) -> None:
        """Click into the middle of an element."""
        find = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        at = await self.evaluate(f"(box => ({{x: box.x + box.width / 2, y: box.y + box.height / 2}}))({find})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.tell("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    async def look(self, *, scheme: Literal["light", "dark"] = "light", width: int = 1000, height: int = 900) -> None:
        """Set the colour scheme that the page is asked for, and the size of its window."""
        await self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def close(self) -> None:
        """Close the tab, and as it is the only one, the browser."""
        with suppress(BrowserError):  # it may hang up without an answer
            await self.tell("Page.close")

    async def screenshot(self, path: Path) -> None:
        """Write a picture of the page as PNG."""
        picture = await self.tell("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(picture["data"]))

    async def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result; raises ``BrowserError``."""
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE_S):
            answer = await future
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer.get("result", {})
        return result

    async def listen(self) -> None:
        """Take what the browser says until it hangs up."""
        async for message in self._socket:
            said = json.loads(message.data)
            future = self._answers.pop(said.get("id", 0), None)
            if future is not None and not future.done():
                future.set_result(said)
            self._note(said)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(BrowserError("the browser has hung up"))

    def _note(self, said: dict[str, Any]) -> None:
        match said:
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.complaints.append(str(details.get("exception", {}).get("description") or details["text"]))
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error" | "warning", "text": text}}}:
                self.complaints.append(str(text))


@asynccontextmanager
async def open_page(profile: Path) -> AsyncIterator[Page]:
    """Start a browser with an empty profile in a folder of its own, open a tab, and end the browser afterwards."""
    assert PROGRAM is not None
    process = await asyncio.create_subprocess_exec(
        PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank", stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        origin = f"http://127.0.0.1:{await _port(process, profile / 'DevToolsActivePort')}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{origin}/json/list") as response:
                tabs = [tab for tab in await response.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Page", "Runtime", "Log"):
                    await page.tell(f"{domain}.enable")
                yield page
            await listening
    finally:
        await _end(process)


async def _port(process: Process, file: Path) -> int:
    """Wait for the file in which the browser notes where it listens."""
    due_at_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < due_at_s and process.returncode is None:
        with suppress(FileNotFoundError):
            lines = (await asyncio.to_thread(file.read_text)).splitlines()
            if len(lines) > 1:
                return int(lines[0])
        await asyncio.sleep(_LOOK_S)
    raise BrowserError("chromium did not start")


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
