"""The report in a real browser."""

from __future__ import annotations

import pytest

from attacker.report.page import write_report
from tests.attacker.html_page import HOSTILE
from tests.attacker.rich_records import rich_record
from tests.browser import chromium, open_page, serious_findings

pytestmark = pytest.mark.browser
NODES = (HOSTILE, "8", "9", '"><img src=x onerror=alert(2)>')


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich")
    record = rich_record(folder, victims=30, nodes=NODES)
    return record, f"file://{write_report(record, folder=folder, out=folder / 'report')}"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Every part of the page, with few images: axe-core looks at each element."""
    folder = tmp_path_factory.mktemp("few")
    record = rich_record(folder, victims=4, nodes=NODES)
    return f"file://{write_report(record, folder=folder, out=folder / 'report')}"


@pytest.fixture
def page(browser, found):
    page, seen = open_page(browser, found[1])
    yield page
    assert [one for one in seen.requests if not one.startswith("data:")] == [found[1]]
    assert seen.messages == []
    page.context.close()


def rows(page, name="ssim"):
    """One attribute of the rows that are to be seen, in their order."""
    shown = page.locator("#victims > li:not([hidden]):not(.later)")
    return shown.evaluate_all(f"rows => rows.map(row => row.dataset.{name})")


def choose(page, label, value):
    page.get_by_label(label, exact=True).select_option(value)


def status(page):
    return page.locator("#filter [role=status]").inner_text()


def test_the_gallery_sorts_by_similarity(page):
    assert status(page) == "48 of 60 matching images shown; 60 in all."
    choose(page, "Sort by", "ssim-down")
    down = [float(one) for one in rows(page)]
    assert len(down) == 48
    assert down == sorted(down, reverse=True)
    choose(page, "Sort by", "ssim-up")
    up = [float(one) for one in rows(page)]
    assert up == sorted(up)
    assert up[0] < down[-1]
    choose(page, "Sort by", "round")
    assert rows(page, "round") == sorted(rows(page, "round"))
    choose(page, "Sort by", "")
    assert rows(page, "federation") == ["f1"] * 30 + ["f2"] * 18


def test_the_gallery_filters_by_each_property_and_by_all_together(page, found):
    record, _ = found
    choose(page, "Defence", "f2")
    assert set(rows(page, "federation")) == {"f2"}
    assert len(rows(page)) == 30
    choose(page, "Round", "2")
    wanted = [one for one in record.victims if one.federation == "f2" and one.round == 2]
    assert len(rows(page)) == len(wanted)
    choose(page, "Client", HOSTILE)
    assert rows(page, "node") == [HOSTILE] * sum(one.node == HOSTILE for one in wanted)
    page.get_by_role("button", name="Reset").click()
    assert status(page) == "48 of 60 matching images shown; 60 in all."
    page.get_by_label("SSIM from").fill("0.5")
    page.get_by_label("SSIM to").fill("0.7")
    best = [max(r.ssim for r in record.results if r.victim_id == v.id) for v in record.victims if v.federation != "f3"]
    within = [one for one in best if 0.5 <= one <= 0.7]
    assert 0 < len(within) < 48
    assert len(rows(page)) == len(within)
    page.get_by_label("SSIM from").fill("0.99")
    assert rows(page) == []
    assert status(page) == "0 of 0 matching images shown; 60 in all."


def test_an_attack_can_be_looked_at_alone(page, found):
    choose(page, "Attack", "dlg")
    choose(page, "Defence", "f2")
    first = page.locator("#victims > li:not([hidden])").first
    titles = first.locator("figure:visible > p").all_inner_texts()
    assert sorted(titles) == ["Best guess", "DLG", "True image", "Without defence"]
    choose(page, "Sort by", "ssim-down")
    assert rows(page, "federation") == ["f2"] * 30
    shown = page.locator("#victims > li:not([hidden]) figure[data-attack=dlg]")
    values = [float(one) for one in shown.evaluate_all("all => all.map(one => one.dataset.ssim)")]
    own = [one.ssim for one in found[0].results if one.federation == "f2" and one.attack == "dlg"]
    assert values == sorted(own, reverse=True)
    choose(page, "Attack", "through-bottleneck")
    choose(page, "Defence", "")
    assert set(rows(page, "federation")) == {"f2"}


def test_every_control_is_reached_and_worked_by_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_label("Sort by").focus()
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("Sort by").input_value() == "ssim-down"
    reached = ["sort"]
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name"))
    assert reached == ["sort", "federation", "node", "round", "attack", "from", "to"]
    page.keyboard.type("0.6")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Reset"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.get_by_label("SSIM to").input_value() == ""
    page.locator("#victims summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#victims details[open]").count() == 1


def test_more_images_are_shown_and_the_focus_goes_to_them(page):
    more = page.get_by_role("button", name="Show more images")
    more.press("Enter")
    assert status(page) == "60 of 60 matching images shown; 60 in all."
    assert not more.is_visible()
    place = "[...document.activeElement.parentNode.children].indexOf(document.activeElement)"
    assert page.evaluate(place) == 48


def test_hostile_names_neither_run_nor_break_the_page(page):
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
    choose(page, "Client", NODES[3])
    assert set(rows(page, "node")) == {NODES[3]}
    assert page.locator("img[src=x]").count() == 0
    assert dialogs == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_window(browser, few, width, dark):
    page, _ = open_page(browser, few, width=width, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for details in [
        *page.locator("details").all()[:3],
        *page.locator("section[aria-labelledby=leakage] details").all(),
    ]:
        details.evaluate("one => { one.open = true }")
    assert serious_findings(page) == []
    page.evaluate("document.querySelector('#victims img').removeAttribute('alt')")
    assert [one.partition(":")[0] for one in serious_findings(page)] == ["image-alt"]
    page.context.close()


def test_without_script_the_page_is_whole(browser, found):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(found[1])
    assert page.locator("#victims > li:visible").count() == 60
    assert not page.locator("#filter").is_visible()
    context.close()


def test_paper_shows_every_image_and_every_flag(browser, found):
    page, _ = open_page(browser, found[1])
    choose(page, "Defence", "f2")
    page.get_by_role("button", name="Reset").click()
    page.emulate_media(media="print")
    assert page.locator("#victims > li:visible").count() == 60
    assert not page.locator("#filter").is_visible()
    assert page.locator(".flags details li").first.is_visible()
    assert page.get_by_text("c(M) =").is_visible()
    assert len(page.pdf(format="A4")) > 50_000
    page.context.close()


def test_motion_is_reduced_on_request(browser, found):
    page, _ = open_page(browser, found[1])
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(behaviour) == "smooth"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(behaviour) == "auto"
    page.context.close()
