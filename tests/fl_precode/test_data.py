"""Image sets that come without a download."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fl_precode.data import DATASETS, ImageDataset, check_dataset, load_data
from fl_precode.data.dataset import image_data, stratified_split
from fl_precode.data.embedded import LARGE_PATCH, PATCH, PHOTOS, _file, _picture, large_corners, patch_corners

EMBEDDED = {"faces": (200, (1, 25, 25), 2), "photos": (4950, (3, 32, 32), 10), "digits": (1797, (1, 8, 8), 10)}


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets(name):
    data = load_data(name)
    count, shape, classes = EMBEDDED[name]
    assert len(data.train) + len(data.test) == count
    assert data.inputs.shape == shape == tuple(data.train.images.shape[1:])
    assert data.inputs.classes == classes == len(data.train.class_names)
    for part in (data.train, data.test):
        assert set(part.labels.tolist()) == set(range(classes))
        assert (part.images.float().flatten(1).std(dim=1) > 5).float().mean() > 0.9, "few are a flat colour"
    again = load_data(name)
    assert torch.equal(data.train.images, again.train.images)
    assert torch.equal(data.test.labels, again.test.labels)


@pytest.mark.parametrize("name", EMBEDDED)
def test_normalised_training_images_have_mean_zero_and_std_one(name):
    data = load_data(name)
    normal = data.inputs.normalise(data.train.images.double() / 255)
    assert normal.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (normal.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-4


def test_faces_are_faces():
    """Faces resemble their mean; the other patches do not."""
    data = load_data("faces")
    images = data.train.images.float().flatten(1)
    images = (images - images.mean(dim=1, keepdim=True)) / (images.std(dim=1, keepdim=True) + 1)
    mean = images[data.train.labels == 1].mean(dim=0)
    likeness = images @ mean / mean.norm()
    right = (likeness > likeness.median()) == (data.train.labels == 1)
    assert right.float().mean() > 0.85


@pytest.mark.parametrize(("cut", "side", "least"), [(patch_corners, PATCH, 50), (large_corners, LARGE_PATCH, 1)])
@pytest.mark.parametrize("name", PHOTOS)
def test_no_pixel_of_a_photograph_is_in_both_regions(name, cut, side, least):
    picture = _picture(_file(*PHOTOS[name]))
    seen = {part: np.zeros(picture.shape[:2], dtype=bool) for part in ("train", "test")}
    for part, corners in cut(picture).items():
        assert len(corners) >= least
        assert len(set(corners)) == len(corners)
        for y, x in corners:
            patch = np.s_[y : y + side, x : x + side]
            assert picture[patch].shape == (side, side, 3)
            seen[part][patch] = True
    assert not (seen["train"] & seen["test"]).any()


def test_the_first_photos_show_different_photographs():
    assert load_data("photos").train.labels[:10].tolist() == list(range(10))


def test_datasets_are_torch_datasets():
    data = load_data("digits")
    loader = torch.utils.data.DataLoader(data.train, batch_size=4)
    images, labels = next(iter(loader))
    expected, expected_labels = data.train.batch(range(4))
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)
    assert 0 <= images.min() < images.max() <= 1


def test_names():
    for name in DATASETS:
        check_dataset(name)
    check_dataset("npz:/data/own.npz")
    with pytest.raises(ValueError, match="did you mean pneumoniamnist"):
        check_dataset("pneumonia-mnist")
    with pytest.raises(ValueError, match="expected one of faces"):
        check_dataset("xyz")
    with pytest.raises(ValueError, match="absolute path"):
        load_data("folder:pictures")
    with pytest.raises(ValueError, match="several labels per image"):
        check_dataset("chestmnist")


def test_unfit_images_and_labels_are_refused():
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match="uint8"):
        ImageDataset(images.float(), labels, ("a", "b"))
    with pytest.raises(ValueError, match="one label for each"):
        ImageDataset(images, labels[:3], ("a", "b"))
    with pytest.raises(ValueError, match="labels from 0 to 0"):
        ImageDataset(images, labels, ("a",))
    whole = ImageDataset(images, labels, ("a", "b"))
    with pytest.raises(ValueError, match="one shape"):
        image_data("x", whole, ImageDataset(images[..., :4], labels, ("a", "b")))
    with pytest.raises(ValueError, match="training and test images"):
        image_data("x", whole, ImageDataset(images[:0], labels[:0], ("a", "b")))


def test_the_split_keeps_the_classes_in_proportion():
    labels = np.array([0] * 50 + [1] * 10)
    train, test = stratified_split(labels, every=5)
    assert (np.bincount(labels[test]) == [10, 2]).all()
    assert sorted([*train, *test]) == list(range(60))
    assert [part.tolist() for part in stratified_split(np.array([0, 0, 1]), every=5)] == [[0, 2], [1]]


def test_importing_the_package_imports_no_image_library():
    code = (
        "import sys, fl_precode.data; "
        "print([m for m in ('torchvision', 'medmnist', 'skimage', 'sklearn', 'PIL') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
