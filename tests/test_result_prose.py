"""Every number in the prose under Results is in a generated table of its section, or is a named setting."""

from __future__ import annotations

import pytest

from benchmarks.result_prose import complaints, figures, same, settings
from benchmarks.result_tables import RESULTS

PAGES = sorted(RESULTS.glob("*.md"))
MADE_UP = """# Results: a page

In short: 3.14 dB by `resnet:width=16`, on 3 May 2026 and with ResNet20-4 ([more](scale.md#2)).

## One

{prose}

<!-- table -->
*Measured on 2026-05-03*: `python -m benchmarks.none --images 77`

| model | PSNR, dB |
| --- | ---: |
| LeNet | 3.14 |
| MLP | 1200 |
<!-- end of table -->

## Another

{elsewhere}
"""


@pytest.fixture
def made_up(tmp_path):
    def write(prose="Nothing.", elsewhere="Nothing."):
        path = tmp_path / "made-up.md"
        path.write_text(MADE_UP.format(prose=prose, elsewhere=elsewhere))
        return path

    return write


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_number_in_prose_is_traced(page):
    assert complaints(page, settings().get(page.stem, {})) == []


def test_settings_are_named_for_pages_that_are_there_and_in_two_words_or_more():
    assert set(settings()) <= {page.stem for page in PAGES}
    for named in settings().values():
        assert all(len(what.split()) > 1 for what in named.values()), named


def test_a_new_number_is_refused_with_what_where_and_what_to_do(made_up):
    (said,) = complaints(made_up("It reached\n84 % of them."), {})
    assert said.startswith("made-up.md:8: expected '84 %' in a generated table")
    for part in ("recorded/made-up.json", "benchmarks.result_tables made-up", "'made-up' in settings-in-prose.json"):
        assert part in said


@pytest.mark.parametrize("prose", ["It reached 3.14 dB.", "It reached 3.1 dB.", "It took 1,200 steps."])
def test_a_number_of_a_table_beside_it_is_traced(made_up, prose):
    assert complaints(made_up(prose), {}) == []


@pytest.mark.parametrize("number", ["3.2", "3", "77", "1,300", ".84", "3x3", "1e-3"])
def test_a_number_that_the_table_does_not_show_is_refused(made_up, number):
    assert len(complaints(made_up(f"It reached {number} here."), {})) == 1


@pytest.mark.parametrize(
    "place", ["## It reached 84", "* It reached 84.", "**84**", "[84](scale.md)", "| 84 |\n| --- |"]
)
def test_a_number_is_seen_wherever_prose_stands(made_up, place):
    assert len(complaints(made_up(place), {})) == 1


def test_a_table_of_another_section_shows_nothing_here(made_up):
    assert len(complaints(made_up(elsewhere="It reached 3.14 dB."), {})) == 1


def test_a_setting_is_named_with_its_unit(made_up):
    page = made_up("It had 90 s.")
    assert complaints(page, {"90 s": "budget of the audit"}) == []
    refused, stale = complaints(page, {"90": "number of images"})
    assert "'90 s'" in refused
    assert "names '90' (number of images), which is not in the page's prose: remove the entry" in stale


def test_dates_names_code_and_addresses_hold_no_figure(made_up):
    prose = (
        "On 2 and 3 May\n2026, 2026-05-04: CIFAR-100, ViT-B/32, `width=8`, [x](a2.md), ![y](b3.png).\n\n```\n99\n```"
    )
    assert [figure.text for figure in figures(made_up(prose))] == ["3.14 dB"]


def test_rounding_needs_two_digits():
    assert same("94", "93.6")
    assert not same("9", "8.6")
    assert not same("95", "93.6")
    assert not same("93.6", "94")
