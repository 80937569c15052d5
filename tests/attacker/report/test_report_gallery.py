from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from attacker.audit.record.schema import AuditRecord
from attacker.report.gallery import MOST_ROWS, make_gallery
from attacker.report.page import LIMIT, render_page
from attacker.report.pictures import ENCODINGS, Album, blurred
from tests.attacker.html_page import Page
from tests.attacker.rich_records import ADAPTIVE, PLAIN, rich_record

TITLES = {"f1": "open", "f2": "defended"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich")
    return folder, rich_record(folder)


def pixels(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_row_has_the_truth_the_closest_attacks_and_a_baseline(made):
    folder, record = made
    gallery = make_gallery(record, TITLES, Album(folder), LIMIT)
    assert len(gallery.rows) == 24
    assert {row.federation for row in gallery.rows} == {"f1", "f2"}
    row = next(row for row in gallery.rows if row.federation == "f2")
    attacked = ["True image", "Plain attack", "Adaptive attack"]
    assert [tile.title for tile in row.tiles] == [*attacked, "Without defence", "Best guess"]
    own = [one for one in record.results if one.victim_id == "f2-v0"]
    for tile, specs in ((row.tiles[1], PLAIN), (row.tiles[2], ADAPTIVE)):
        assert tile.ssim == max(one.ssim for one in own if one.attack in specs)
    assert row.ssim == max(one.ssim for one in own)
    control = max((one for one in record.results if one.victim_id == "f3-v0"), key=lambda one: one.ssim)
    assert row.tiles[3].path == control.reconstruction
    assert sorted(tile.attack for tile in (*row.tiles, *row.others) if tile.attack) == sorted(PLAIN + ADAPTIVE)
    undefended = next(row for row in gallery.rows if row.federation == "f1")
    assert [tile.title for tile in undefended.tiles] == ["True image", "Plain attack", "Best guess"]
    assert undefended.tiles[2].caption == ("mean image", "SSIM 0.10")


def test_images_that_small_tiles_cannot_show_have_rows_of_their_own(made):
    folder, record = made
    sizes = {"f1": (3, 224, 224), "f2": (3, 32, 32)}
    grown = [one.model_copy(update={"shape": sizes.get(one.id, one.shape)}) for one in record.federations]
    gallery = make_gallery(record.model_copy(update={"federations": grown}), TITLES, Album(folder), LIMIT)
    assert {row.federation: row.detailed for row in gallery.rows} == {"f1": True, "f2": False}


def test_what_a_guess_reaches_as_well_is_shown_beside_it_and_named(made):
    folder, record = made
    (first,) = [one for one in record.victims if one.id == "f1-v0"]
    guessed = first.model_copy(
        update={"guess": first.truth, "guess_ssim": 0.7, "guess_name": "another image of its class"}
    )
    more = {"ssim": 0.72, "guess_ssim": 0.71, "guess": "the same attack on another update"}
    grown = record.model_copy(
        update={
            "victims": [guessed if one.id == first.id else one for one in record.victims],
            "results": [one.model_copy(update=more) if one.victim_id == first.id else one for one in record.results],
        }
    )
    row = make_gallery(grown, TITLES, Album(folder), LIMIT).rows[0]
    _, attack, guess = row.tiles
    assert attack.counted is False
    assert attack.caption[-1] == "no better than a guess: the same attack on another update, SSIM 0.71"
    assert (guess.path, guess.caption) == (first.truth, ("another image of its class", "SSIM 0.70"))


def test_exact_pictures_are_the_files(made):
    folder, record = made
    row = make_gallery(record, TITLES, Album(folder), LIMIT).rows[0]
    assert base64.b64decode(row.tiles[0].uri.partition(",")[2]) == (folder / row.tiles[0].path).read_bytes()


@pytest.mark.parametrize("level", range(1, len(ENCODINGS)))
def test_pictures_get_coarser_step_by_step_until_they_fit(made, level):
    folder, record = made
    paths = [one.truth for one in record.victims]
    sizes = []
    for encoding in ENCODINGS:
        one = Album(folder)
        uris = [one._encode(path, encoding) for path in paths]
        sizes.append(sum(map(len, uris)))
    assert sizes == sorted(sizes, reverse=True)
    album = Album(folder)
    left = album.admit(paths, sizes[level])
    # Pictures smaller than two encodings' limits are the same in both: the first is taken.
    assert album.encoding == ENCODINGS[sizes.index(sizes[level])]
    assert left == 0
    assert len({path for path in paths if album.uri(path)}) == len(set(paths))
    seen = pixels(album.uri(paths[0])).astype(float)
    exact = np.asarray(Image.open(folder / paths[0]).convert("RGB"), dtype=float)
    assert np.sqrt(((seen - exact) ** 2).mean()) < 25


def test_what_does_not_fit_at_all_is_left_out_and_the_rest_is_there(made):
    folder, record = made
    paths = [one.truth for one in record.victims]
    album = Album(folder)
    assert album.admit(paths, 2000) == 0
    there = [path for path in paths if album.uri(path)]
    assert 0 < len(there) < len(paths)
    assert sum(len(album.uri(path)) for path in there) <= 2000


def test_two_hundred_victims_stay_below_five_megabytes(tmp_path):
    record = rich_record(tmp_path, victims=200, rounds=8)
    text = render_page(record, tmp_path)
    assert len(text.encode()) < 5_000_000
    page = Page(text)
    assert "To fit on one page they are WebP copies of quality 90" in page.words
    pictures = [one for one in page.images if one["class"].startswith("shot")]
    # Those of the first screen, first tiles, and those of the other attacks.
    assert len(pictures) == 6 + 200 * 3 + 200 * 5 + 200 * 2 + 200 * 3


def test_more_images_than_a_page_holds_are_counted(made):
    folder, record = made
    many = record.victims[:12] * (MOST_ROWS // 12)
    grown = record.model_copy(update={"victims": [one.model_copy(update={"federation": "f1"}) for one in many]})
    gallery = make_gallery(grown, TITLES, Album(folder), LIMIT)
    assert len(gallery.rows) == MOST_ROWS // 2
    assert gallery.hidden == len(many) - MOST_ROWS // 2
    assert f"{gallery.hidden} more attacked images are in the folder" in Page(render_page(grown, folder)).words


def test_blurring_leaves_nothing_but_a_few_averages():
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 200, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.int64)
    # A pattern whose mean over each of the 4 x 4 fields is zero, and which a person would read.
    pattern = np.where((np.arange(32)[:, None] // 2 + np.arange(32)[None, :] // 2) % 2 == 0, 39, -39)[:, :, None]
    plain, written = (Image.fromarray((coarse + p).astype(np.uint8)) for p in (0 * pattern, pattern))
    assert np.abs(np.asarray(plain).astype(int) - np.asarray(written).astype(int)).mean() == 39
    assert np.array_equal(np.asarray(blurred(plain)), np.asarray(blurred(written)))
    assert blurred(Image.new("L", (8, 8))).size == (8, 8)
    small = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
    assert blurred(small).resize((2, 2), Image.Resampling.BOX).getextrema()[0] > 0


def test_a_redacted_page_has_the_numbers_and_no_picture(made):
    folder, record = made
    sharp, redacted = (render_page(record, folder, redact=one) for one in (False, True))
    sources = {base64.b64encode((folder / path).read_bytes()).decode() for path in _paths(record)}
    assert any(source in sharp for source in sources)
    assert not any(source in redacted for source in sources)
    for uri in re.findall(r'src="(data:[^"]*)"', redacted):
        seen = pixels(uri).astype(float)
        again = np.asarray(blurred(Image.fromarray(seen.astype(np.uint8))), dtype=float)
        # A sharp picture changes by far more when it is blurred.
        assert np.abs(seen - again).mean() < 12
    assert "Redacted: every picture on this page is blurred" in redacted
    figures = [re.findall(r"SSIM \d\.\d\d|\d+ of \d+|\d+ to \d+.%|PSNR [^<]*", text) for text in (sharp, redacted)]
    assert len(figures[0]) > 100
    assert figures[0] == figures[1]


def _paths(record: AuditRecord) -> set[str]:
    found = {one.reconstruction for one in record.results} | {one.truth for one in record.victims}
    return {one for one in found if one is not None}


def test_without_truth_rows_have_no_similarity_and_still_a_picture(made):
    folder, record = made
    blind = {"ssim": None, "psnr": None, "mse": None, "baseline_ssim": None}
    unknown = record.model_copy(
        update={
            "results": [one.model_copy(update=blind) for one in record.results],
            "victims": [one.model_copy(update={"truth": None, "baseline": None}) for one in record.victims],
        }
    )
    row = make_gallery(unknown, TITLES, Album(folder), LIMIT).rows[0]
    assert [tile.title for tile in row.tiles] == ["True image", "Plain attack"]
    assert row.ssim is None
    assert row.tiles[0].uri is None
    assert row.tiles[0].placeholder == "not known"
    assert row.tiles[1].attack == PLAIN[0]
    assert row.tiles[1].caption[-1] == "matching loss 0.100"
    assert row.tiles[1].counted is None
