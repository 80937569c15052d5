"""The watch page in a real browser, while a tape grows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacker.growing import GrowingTape
from tests.attacker.html_page import HOSTILE
from tests.attacker.taped_federation import tape_federation
from tests.browser import chromium, open_page, serious_findings

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def watched(tmp_path):
    growing = GrowingTape(tape_federation(tmp_path / "whole", rounds=2, nodes=(HOSTILE, "7")), tmp_path / "run")
    growing.tape.parent.mkdir()
    growing.tell_truth()
    command = [Path(sys.executable).parent / "fl-precode", "watch", growing.tape]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield growing, process.stdout.readline().partition(" ")[2].strip(), process
        process.kill()


def test_the_page_follows_the_run(browser, watched):
    growing, address, process = watched
    page, seen = open_page(browser, address)
    page.set_default_timeout(60_000)
    headline = page.locator("#headline")
    page.get_by_text("is not a folder").wait_for()
    assert headline.inner_text() == "Waiting for the tape"
    growing.grow(1)
    page.locator("#headline", has_text="Round 1: 2 updates received, 0 not attacked yet").wait_for()
    assert page.locator("#newest li").count() == 2
    growing.grow(2)
    page.locator("#headline", has_text="Round 2: 4 updates received, 0 not attacked yet").wait_for()
    places = page.locator("#newest li > p:first-child").all_inner_texts()
    assert [one.partition(",")[0] for one in places] == ["Round 2", "Round 2", "Round 1", "Round 1"]
    assert {one.partition("client ")[2] for one in places} == {"<scri…ipt>", "7"}
    assert page.get_by_text(re.compile(r"^SSIM 1\.00.*, came back")).count() == 4
    assert page.locator("#chart circle").count() == 4
    assert page.locator("#chart").get_attribute("aria-label").endswith("median of round 2: 1.00")
    assert [one for one in seen.requests if not one.startswith(("data:", address.partition("?")[0]))] == []
    assert seen.messages == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious_findings(page) == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    process.kill()
    page.locator("#headline", has_text="The watch has ended").wait_for()
    page.context.close()


def test_without_the_token_there_is_no_page(browser, watched):
    page, _ = open_page(browser, watched[1].partition("?")[0])
    assert "needs the address" in page.locator("body").inner_text()
    assert page.locator("script").count() == 0
    page.context.close()
