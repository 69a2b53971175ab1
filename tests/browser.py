"""A Chromium without a window, driven over its DevTools protocol: enough of it to use a page as a person does."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from subprocess import DEVNULL
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
        self.context: dict[str, Any] = {}

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

    async def wheel(self, by: int, *, x: int = 300, y: int = 200) -> None:
        """Turn the mouse's wheel over a place."""
        await self.tell("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    @asynccontextmanager
    async def in_background(self) -> AsyncIterator[None]:
        """Put another tab before this one, and take it away again."""
        tab = await self.tell("Target.createTarget", url="about:blank", **self.context)
        await self.wait_for("document.visibilityState === 'hidden'")
        yield
        await self.tell("Target.closeTarget", **tab)
        await self.tell("Page.bringToFront")
        await self.wait_for("document.visibilityState === 'visible'")

    async def close(self) -> None:
        """Close the tab."""
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


@contextmanager
def running_browser(profile: Path) -> Iterator[str]:
    """Start a browser with an empty profile in a folder of its own; yields the address of its DevTools."""
    assert PROGRAM is not None
    command = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)  # noqa: S603, the one that was found
    try:
        yield f"http://127.0.0.1:{_port(process, profile / 'DevToolsActivePort')}"
    finally:
        _end(process)


@asynccontextmanager
async def open_page(devtools: str) -> AsyncIterator[Page]:
    """Open a tab that knows nothing of those before it, and close it afterwards."""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{devtools}/json/version") as response:
            url = (await response.json())["webSocketDebuggerUrl"]
        async with _connected(session, url) as browser:
            context = await browser.tell("Target.createBrowserContext", disposeOnDetach=True)
            tab = await browser.tell("Target.createTarget", url="about:blank", **context)
            async with _connected(session, f"{url.partition('/devtools/')[0]}/devtools/page/{tab['targetId']}") as page:
                page.context = context
                for domain in ("Page", "Runtime", "Log"):
                    await page.tell(f"{domain}.enable")
                yield page
            await browser.tell("Target.disposeBrowserContext", **context)


@asynccontextmanager
async def _connected(session: aiohttp.ClientSession, url: str) -> AsyncIterator[Page]:
    async with session.ws_connect(url, max_msg_size=0) as socket:
        page = Page(socket)
        listening = asyncio.create_task(page.listen())
        yield page
    await listening


def _port(process: subprocess.Popen[bytes], file: Path) -> int:
    """Wait for the file in which the browser notes where it listens."""
    due_at_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < due_at_s and process.poll() is None:
        with suppress(FileNotFoundError):
            lines = file.read_text().splitlines()
            if len(lines) > 1:
                return int(lines[0])
        time.sleep(_LOOK_S)
    raise BrowserError("chromium did not start")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
