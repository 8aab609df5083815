"""The report in headless Chromium, opened from disk, for tests of its pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from time import monotonic

import pytest

FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@contextmanager
def chromium() -> Iterator:
    """Headless Chromium of the system; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium: playwright is not installed")
    path = which("chromium") or which("chromium-browser") or which("google-chrome")
    if path is None:
        pytest.skip("no Chromium: install it (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        opened.close()


def until(page, expression: str, seconds: float = 30) -> None:
    """Wait until an expression holds in a page.

    Playwright's `wait_for_function` asks again from inside the page, by `eval`, which the report's policy forbids.
    """
    end = monotonic() + seconds
    while not page.evaluate(expression):
        assert monotonic() < end, f"not after {seconds} s: {expression}"
        page.wait_for_timeout(20)


@dataclass
class Seen:
    """A page with what it asked for and complained about."""

    page: object
    folder: Path
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def go(self, route: str) -> None:
        """To a place of the report, as a deep link: with nothing loaded before."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.folder.as_uri()}/index.html#{route}")
        self.page.wait_for_selector("h1")

    def drawn(self) -> None:
        """Wait until the maps of an example are there."""
        self.page.wait_for_selector(".example[data-drawn]", state="attached")

    def params(self) -> dict[str, str]:
        """The parameters in the address."""
        return self.page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.split('?')[1]))")

    def ids(self) -> list[str]:
        """The examples that the gallery shows."""
        return self.page.locator(".card-id").all_text_contents()  # inner text is empty where nothing was laid out


@contextmanager
def looking(browser) -> Iterator:
    """Open reports in a page of a width and colour scheme; at the end nothing has left it and no error was logged."""
    opened: list[tuple[Seen, object]] = []

    def look_at(folder: Path, width: int = 1440, scheme: str = "light", complaints: int = 0) -> Seen:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        seen = Seen(page, folder.resolve())
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        opened.append((seen, context))
        return seen

    yield look_at
    for seen, context in opened:
        context.close()
        inside = (f"{seen.folder.as_uri()}/", "about:blank", "blob:", "data:")
        assert [url for url in seen.requests if not url.startswith(inside)] == []
        assert seen.complaints == []
