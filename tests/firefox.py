"""A Firefox without a window, driven over WebDriver BiDi: as much of it as ``tests.browser`` has of a Chromium."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Final

import aiohttp

from tests.browser import PATIENCE_S, BrowserError

PROGRAM: Final = shutil.which("firefox-esr") or shutil.which("firefox")
WHY_NOT: Final = "" if PROGRAM else "no firefox on the path"

_LOOK_S: Final = 0.02
_SETTINGS: Final = (
    "app.update.disabledForTesting",
    "browser.aboutwelcome.enabled:false",
    "browser.shell.checkDefaultBrowser:false",
    "datareporting.policy.dataSubmissionEnabled:false",
    "network.captive-portal-service.enabled:false",
    "network.connectivity-service.enabled:false",
)
_KEYS: Final = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004"}
_SHIFT: Final = "\ue008"


class FirefoxPage:
    """A tab. What its console complained of is in ``complaints``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.context = ""
        self.complaints: list[str] = []

    async def open(self, url: str) -> None:
        """Go to an address and wait until the page and its scripts are loaded."""
        await self.tell("browsingContext.navigate", context=self.context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """Return what a JavaScript expression comes to; a promise is awaited. Raises ``BrowserError``."""
        answer = await self.tell(
            "script.evaluate",
            expression=f"(async () => JSON.stringify([await ({expression})]))()",
            target={"context": self.context},
            awaitPromise=True,
        )
        if answer["type"] == "exception":
            raise BrowserError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])[0]

    async def wait_for(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true; returns its value."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(BrowserError):  # between two pages there is nothing to evaluate in
                    value = await self.evaluate(expression)
                    if value:
                        return value
                await asyncio.sleep(_LOOK_S)

    async def write(self, selector: str, text: str) -> None:
        """Put the cursor into a field and replace what is in it, key by key."""
        await self.evaluate(f"(field => {{ field.focus(); field.select(); }})(document.querySelector('{selector}'))")
        await self._act(*(change for key in text for change in _pressed(key)))

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key and let it go."""
        pressed = _pressed(_KEYS[key])
        down, up = _pressed(_SHIFT)
        await self._act(*((down, *pressed, up) if shift else pressed))

    async def click(self, selector: str) -> None:
        """Click into the middle of an element."""
        find = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = await self.evaluate(f"(box => [box.x + box.width / 2, box.y + box.height / 2].map(Math.round))({find})")
        steps = [
            {"type": "pointerMove", "x": x, "y": y},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": steps}
        await self.tell("input.performActions", context=self.context, actions=[mouse])

    @asynccontextmanager
    async def in_background(self) -> AsyncIterator[None]:
        """Put another tab before this one, and take it away again."""
        tab = await self.tell("browsingContext.create", type="tab")
        await self.wait_for("document.visibilityState === 'hidden'")
        yield
        await self.tell("browsingContext.close", **tab)
        await self.tell("browsingContext.activate", context=self.context)
        await self.wait_for("document.visibilityState === 'visible'")

    async def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; raises ``BrowserError``."""
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(PATIENCE_S):
            answer = await future
        if answer["type"] == "error":
            raise BrowserError(f"{method}: {answer['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    async def listen(self) -> None:
        """Take what the browser says until it hangs up."""
        async for message in self._socket:
            said = json.loads(message.data)
            future = self._answers.pop(said.get("id") or 0, None)
            if future is not None and not future.done():
                future.set_result(said)
            if said.get("method") == "log.entryAdded" and said["params"]["level"] in ("error", "warn"):
                self.complaints.append(str(said["params"]["text"]))

    async def _act(self, *steps: dict[str, str]) -> None:
        keys = {"type": "key", "id": "keys", "actions": steps}
        await self.tell("input.performActions", context=self.context, actions=[keys])


def _pressed(key: str) -> tuple[dict[str, str], dict[str, str]]:
    return {"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}


@contextmanager
def running_firefox(profile: Path) -> Iterator[str]:
    """Start a browser with an empty profile in a folder of its own; yields the address of its session."""
    assert PROGRAM is not None
    profile.mkdir(parents=True)
    lines = [f'user_pref("{name}", {value or "true"});' for name, _, value in (one.partition(":") for one in _SETTINGS)]
    (profile / "user.js").write_text("\n".join(lines))
    command = [PROGRAM, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port=0"]
    process = subprocess.Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)  # noqa: S603, the one that was found
    try:
        yield f"ws://127.0.0.1:{_port(process, profile / 'WebDriverBiDiServer.json')}/session"
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def open_firefox_page(url: str) -> AsyncIterator[FirefoxPage]:
    """Open a session with a tab that knows nothing of those before it, and close it afterwards."""
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url, max_msg_size=0) as socket:
            page = FirefoxPage(socket)
            listening = asyncio.create_task(page.listen())
            await page.tell("session.new", capabilities={})
            try:
                user = await page.tell("browser.createUserContext")
                tab = await page.tell("browsingContext.create", type="tab", userContext=user["userContext"])
                page.context = tab["context"]
                await page.tell("session.subscribe", events=["log.entryAdded"])
                yield page
                await page.tell("browser.removeUserContext", **user)
            finally:  # there can be only one: who fails is not to take the browser from all others
                await page.tell("session.end")
        await listening


def _port(process: subprocess.Popen[bytes], file: Path) -> int:
    """Wait for the file in which the browser notes where it listens."""
    due_at_s = time.monotonic() + 2 * PATIENCE_S
    while time.monotonic() < due_at_s and process.poll() is None:
        with suppress(FileNotFoundError, ValueError):
            return int(json.loads(file.read_text())["ws_port"])
        time.sleep(_LOOK_S)
    raise BrowserError("firefox did not start")
