"""Columns of groups: beside the arrays of an .npz file, or in a table beside the pictures of a folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fl_precode.data import load_data

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
IMAGES[:, 0, 0] = range(20)
LABELS = np.array([0, 1] * 10)


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "own.npz", **({"images": IMAGES, "labels": LABELS} | arrays))
    return f"npz:{tmp_path / 'own.npz'}"


def test_a_column_follows_its_images_into_the_training_set(tmp_path):
    places = np.arange(20)
    data = load_data(saved(tmp_path, group_place=places, group_sex=np.array(["f", "m"] * 10), group_old=places > 9))
    assert [int(place) for place in data.train.groups["place"]] == data.train.images[:, 0, 0, 0].tolist()
    assert data.train.groups["sex"] == tuple("fm"[label] for label in data.train.labels)
    assert set(data.train.groups["old"]) == {"True", "False"}


def test_files_of_medmnist_s_form_may_name_the_part_or_not(tmp_path):
    parts = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS}
    np.savez(tmp_path / "own.npz", **parts, train_group_sex=LABELS, group_site=LABELS.astype(float)[:, None])
    data = load_data(f"npz:{tmp_path / 'own.npz'}")
    assert data.train.groups == {"sex": ("0", "1") * 10, "site": ("0", "1") * 10}
    assert data.test.groups == {}


def test_a_group_that_is_not_known_is_empty(tmp_path):
    ages = np.array([float("nan")] * 10 + [60.0] * 10)
    groups = load_data(saved(tmp_path, group_age=ages, group_sex=np.array([b"f", b""] * 10))).train.groups
    assert set(groups["age"]) == {"", "60"}
    assert set(groups["sex"]) == {"", "f"}


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (np.zeros(19, int), "expected 'group_sex' as 20 groups, one for each image .*got shape \\(19,\\)"),
        (np.zeros((20, 2), int), "got shape \\(20, 2\\)"),
        (np.linspace(0, 1, 20), "got fractions.*numpy.digitize"),
        (np.zeros(20, complex), "expected 'group_sex' as text or whole numbers, got complex128"),
        (np.array(["x" * 101] * 20), "at most 100 characters, got one of 101"),
    ],
)
def test_unfit_columns_say_what_is_wrong(tmp_path, column, words):
    with pytest.raises(ValueError, match=words):
        load_data(saved(tmp_path, group_sex=column))


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.fromarray(IMAGES[number]).save(tmp_path / name / f"{number}.png")
    return tmp_path


def table(folder, head="file,sex", *lines, rest="f"):
    named = [line.partition(",")[0] for line in lines]
    every = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)]
    text = "\n".join([head, *lines, *(f"{path},{rest}" for path in every if path not in named)])
    (folder / "groups.csv").write_text(f"{text}\n")
    return f"folder:{folder}"


def test_a_table_beside_the_class_folders_says_the_groups_of_pictures(folder):
    data = load_data(table(folder, "file,sex", "dog/0.png,m", "cat/1.png,"))
    assert data.train.groups["sex"] == ("f", "", "f", "f", "m", "f", "f", "f")  # the fifth of each class is for testing
    assert data.test.groups["sex"] == ("f", "f")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("file,sex", "dog/9.png,m"), "1 line of no picture, such as 'dog/9.png'.*such as 'cat/0.png'"),
        (("file;sex", "dog/0.png;m"), "expected a first line of 'file'.*got 'file;sex'"),
        (("file,sex,sex", "dog/0.png,m,m"), "different names"),
        (("file,sex", "dog/0.png"), "expected 2 cells in each line, got 1 in line 2"),
        (("file,sex", "dog/0.png,m", "dog/0.png,f"), "two lines of 'dog/0.png'"),
    ],
)
def test_unfit_tables_say_what_is_wrong(folder, lines, words):
    with pytest.raises(ValueError, match=words):
        load_data(table(folder, *lines))


def test_a_table_without_all_pictures_names_one(folder):
    (folder / "groups.csv").write_text("file,sex\ncat/0.png,f\n")
    with pytest.raises(ValueError, match="no line of 9 pictures, such as 'cat/1.png'; give each picture a line"):
        load_data(f"folder:{folder}")
    (folder / "groups.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as a table"):
        load_data(f"folder:{folder}")
