"""The section "By group": tables, what is uneven in a sentence, and the most disclosed images."""

from __future__ import annotations

import pytest

from attacker.audit.record.schema import VictimImage
from attacker.audit.verdict.finish import finish_record
from attacker.report.by_group import MOST_IMAGES, MOST_ROWS, by_group
from attacker.report.page import render_page
from attacker.report.panels import model_groups
from tests.attacker.audit.test_groups import CLASSES, NINE_OF_TEN, audited
from tests.attacker.html_page import HOSTILE, Page
from tests.attacker.records import PLAIN, federation, record, rows, summary


def section(found, **changes):
    """What the section says of the only federation."""
    (one,) = by_group(found, [panel for group in model_groups(found) for panel in group.panels], **changes)
    return one


def test_what_is_uneven_is_a_sentence_and_the_rest_a_click_away(tmp_path):
    found = finish_record(audited(NINE_OF_TEN, labels=CLASSES, columns={"site": [HOSTILE] * 10 + ["b"] * 30}))
    text = render_page(found, tmp_path)
    words = Page(text).words.replace("\u00a0", " ")
    part = words[words.index("By group This section") :].split("Against the rest:")[0]
    assert (
        "Images of class 3 were reconstructed more often than the rest: 9 of 10 against 4 of 30 (p < 0.001, corrected "
        "for 10 classes)." in part
    )
    assert "By class: 10 classes, 40 images" in part
    assert "Class 3 9 of 10 55 to 100 % more often (p < 0.001)" in part
    assert HOSTILE in part  # as text
    assert '<a href="#by-group">By group</a>' in text
    assert "Identified" not in part


def test_a_group_that_is_spared_is_told_from_one_that_is_hit():
    (by_client, by_sex) = section(audited(NINE_OF_TEN, columns={"sex": ["f"] * 10 + ["m"] * 30})).tables
    assert [row.against for row in by_sex.rows] == ["more often (p < 0.001)", "less often (p < 0.001)"]
    assert {row.against for row in by_client.rows} == {"not tested: one trial"}


def test_a_record_from_before_is_counted_for_the_page():
    made = audited(NINE_OF_TEN, labels=CLASSES)
    assert made.group_disclosures == []
    assert len(section(made).uneven) == 1


def test_even_groups_and_groups_that_cannot_be_tested_are_told_apart():
    even = section(audited([True, False] * 20, labels=[0, 0, 1, 1] * 10))
    assert even.uneven == ()
    assert even.otherwise.startswith("No class was disclosed more often than the rest by more than chance")
    alone = section(audited([True] * 4, labels=[7] * 4))
    assert alone.otherwise.startswith("No group can be compared with the rest")
    assert [table.notes for table in alone.tables][0] == ("By class: all 4 images are of class 7.",)
    assert alone.tables[0].rows == ()


def test_tables_show_the_first_groups_and_say_how_many_more_there_are():
    count = MOST_ROWS + 5
    (table, _) = section(audited([True] * count, labels=list(range(count)))).tables
    assert len(table.rows) == MOST_ROWS
    assert table.notes == ("5 more, which were disclosed less, are not shown.",)
    assert {row.against for row in table.rows} == {"not tested: one trial"}


def test_the_most_disclosed_images_come_first_and_once():
    found = rows("f1", PLAIN, 14, ssim=[0.2, 0.95, *[0.5] * 9, 0.7, 0.95, None], node=[str(n) for n in range(14)])
    found += rows("f1", "first-layer", 14, ssim=[0.99, *[0.1] * 13], node=[str(n) for n in range(14)], rank=3,
                  candidates=1001, identified=[n == 5 for n in range(14)])  # fmt: skip
    victims = [
        VictimImage(
            id=row.victim_id, federation="f1", round=1, node=row.node, image=0, label=2, label_name="2", truth=None,
            same_as="f1-u1-i0" if place == 12 else None, groups={"sex": "f"},
        )
        for place, row in enumerate(found[:14])
    ]  # fmt: skip
    done = [summary("f1", PLAIN, 3, 14), summary("f1", "first-layer", 1, 14)]
    made = record([federation("f1")], done, results=found, victims=victims)
    images = section(made).images
    assert len(images) == MOST_IMAGES
    assert [image.client for image in images[:4]] == ["0", "1", "11", "5"]  # the last one identified
    assert [image.reconstructed for image in images[:4]] == [True, True, True, False]
    assert images[0].attack == "First-layer inversion"
    assert images[0].groups == ("class 2", "sex = f")
    assert images[3].rank == "3 of 1,001, identified"
    assert section(made, redact=True).images[0].groups == ("class 2",)


@pytest.mark.parametrize("redact", [False, True])
def test_a_group_of_one_image_has_no_name_on_a_redacted_page(redact):
    table = section(audited([True] * 3, columns={"patient": ["ann", "bob", "bob"]}), redact=redact).tables[-1]
    assert [row.name for row in table.rows] == ["bob", "a group of one image" if redact else "ann"]
