"""A desk that is served, and headless Chromium that looks at it."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worlds.projects import ROOT, environment

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The page has a heading, its script has been done for half a second (between two runs it is done for less), and no
# element's code is still being fetched: a button that is not there yet takes no key.
QUIET = """() => {
    const state = document.querySelector("[data-testid=stApp]")?.dataset.testScriptState;
    const fetching = document.querySelector("[data-testid=stSkeleton]");
    if (state !== "notRunning" || fetching || !document.querySelector("h2")) window.quietSince = null;
    else window.quietSince ??= performance.now();
    return window.quietSince !== null && performance.now() - window.quietSince > 500;
}"""


@dataclass
class Desk:
    """A desk that is served, and a browser that looks at it."""

    root: Path
    url: str
    browser: Any
    errors: list[str] = field(default_factory=list)  # of the browser's console
    foreign: list[str] = field(default_factory=list)  # requests to anywhere else

    def open(self, page: str, *, width: int = 1280, height: int = 1400, dark: bool = False, **state: str) -> Any:
        """Return a page of the desk once it is drawn."""
        colours = "dark" if dark else "light"
        look = self.browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
        look.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        look.on("pageerror", lambda error: self.errors.append(str(error)))
        look.on("dialog", lambda dialog: self.errors.append(f"a dialog: {dialog.message}"))
        look.on("request", lambda asked: self.foreign.append(asked.url) if is_foreign(asked.url, self.url) else None)
        asked = "&".join(f"{name}={value}" for name, value in {"page": page, **state}.items())
        look.goto(f"{self.url}/?{asked}")
        settle(look)
        return look


def is_foreign(url: str, own: str) -> bool:
    """Return whether a request goes elsewhere."""
    return not url.startswith((own, own.replace("http", "ws"), "data:", "blob:"))


def settle(look: Any) -> None:
    """Wait until a page is drawn and its script is done."""
    look.evaluate("window.quietSince = null")
    look.wait_for_function(QUIET, timeout=60_000)


@contextmanager
def served(root: Path) -> Iterator[Desk]:
    """Serve a project by `tamis desk`, and start a browser."""
    from playwright.sync_api import sync_playwright

    with serving(root) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Desk(root, url, browser)
        browser.close()


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Serve a project by `tamis desk`; yields the desk's address."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "flows.cli", "desk", "--no-browser", "--port", str(port)]
    env = environment(PYTHONPATH=str(ROOT), PYTHONSAFEPATH="1")  # a project may hold other code
    with (
        open(root / "desk.log", "w") as log,
        subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log) as server,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_healthy(f"{url}/_stcore/health", root / "desk.log")
            yield url
        finally:
            server.kill()


def wait_until_healthy(url: str, log: Path) -> None:
    """Wait for the server's answer.

    Raises:
        AssertionError: it does not come within a minute; with what the server said.
    """
    for _ in range(600):
        try:
            assert urllib.request.urlopen(url).read() == b"ok"
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())
