"""A headless Chromium for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips the test where playwright or Chromium is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    # Chromium's own sandbox does not start as root, which is who runs containers.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """What a page did: addresses that it asked for, and whatever it wrote to the console."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


def open_page(browser: Any, address: str, *, width: int = 1440, dark: bool = False) -> tuple[Any, Watched]:
    """A page in its own context, and what it does from the first moment on."""
    scheme = "dark" if dark else "light"
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.set_default_timeout(60_000)
    seen = Watched()
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.messages.append(f"error: {error}"))
    page.goto(address)
    return page, seen


def serious_findings(page: Any) -> list[str]:
    """What axe-core finds to be serious or critical on the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']} ({len(one['nodes'])}, such as {one['nodes'][0]['html'][:200]} "
        f"{one['nodes'][0]['any'][:1]})"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
