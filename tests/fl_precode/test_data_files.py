"""Published sets through their own loaders, and people's own files."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import threading
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from fl_precode.data import DataUnavailableError, load_data
from fl_precode.data.downloaded import _library, load_cifar


@pytest.fixture(scope="module")
def photos():
    return load_data("photos")


def as_pictures(images):
    return images.numpy().transpose(0, 2, 3, 1)


def test_npz_round_trip(photos, tmp_path):
    images, labels = as_pictures(photos.train.images[:100]), photos.train.labels[:100].numpy()
    np.savez(tmp_path / "own.npz", images=images, labels=labels[:, None])
    data = load_data(f"npz:{tmp_path / 'own.npz'}")
    assert (len(data.train), len(data.test)) == (80, 20)
    assert torch.equal(data.train.images[0], photos.train.images[0])
    np.savez(tmp_path / "both.npz", images=images, labels=labels, test_images=images[:7], test_labels=labels[:7])
    assert len(load_data(f"npz:{tmp_path / 'both.npz'}").test) == 7


def test_grey_npz(tmp_path):
    digits = load_data("digits")
    np.savez(tmp_path / "grey.npz", images=digits.test.images[:, 0].numpy(), labels=digits.test.labels.numpy())
    assert load_data(f"npz:{tmp_path / 'grey.npz'}").inputs.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "expected arrays 'images' and 'labels', found \\['images'\\]"),
        ({"images": np.zeros((4, 8, 8)), "labels": np.zeros(4, int)}, "uint8"),
        ({"images": np.zeros((4, 8), np.uint8), "labels": np.zeros(4, int)}, "shape \\(4, 8\\)"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "4 whole numbers"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(4)}, "whole numbers"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.full(4, -1)}, "whole numbers from 0"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.zeros(4, int)}, "Move them"),
        ({"images": np.zeros((9, 8, 8), np.uint8), "labels": np.zeros(9, int)}, "at least 2 classes"),
        ({"images": np.array([{}, {}]), "labels": np.zeros(2, int)}, "would run code"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(1, 5)}, "return_inverse"),
        ({"images": np.zeros((4, 8, 8, 2), np.uint8), "labels": np.arange(4)}, "channels"),
        (
            {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(4), "test_labels": np.arange(4)},
            "test_images",
        ),
    ],
)
def test_unfit_npz_files_say_what_is_wrong(tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        load_data(f"npz:{tmp_path / 'bad.npz'}")


def test_truncated_and_foreign_npz_files(tmp_path):
    np.savez(tmp_path / "whole.npz", images=np.zeros((10, 8, 8), np.uint8), labels=np.arange(10))
    content = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "plain.npy", np.zeros(3))
    plain = (tmp_path / "plain.npy").read_bytes()
    halved = content[: len(content) // 2]
    for name, spoilt in (("a.npz", halved), ("b.npz", b"not an archive"), ("c.npz", b""), ("d.npz", plain)):
        (tmp_path / name).write_bytes(spoilt)
        with pytest.raises(ValueError, match="cannot be read"):
            load_data(f"npz:{tmp_path / name}")
    with pytest.raises(DataUnavailableError, match="there is no file"):
        load_data(f"npz:{tmp_path / 'nowhere.npz'}")


def save_pictures(folder, photos, ending=".png"):
    for index in range(40):
        place = folder / photos.train.class_names[int(photos.train.labels[index])]
        place.mkdir(exist_ok=True, parents=True)
        Image.fromarray(as_pictures(photos.train.images[index : index + 1])[0]).save(place / f"{index:04}{ending}")


def test_folder_round_trip(photos, tmp_path):
    save_pictures(tmp_path / "own", photos)
    data = load_data(f"folder:{tmp_path / 'own'}")
    assert data.inputs.shape == (3, 32, 32)
    assert data.train.class_names == tuple(sorted(photos.train.class_names))
    first = data.train.class_names.index("astronaut")
    assert torch.equal(data.train.images[data.train.labels == first][0], photos.train.images[0])


def test_a_folder_of_grey_pictures_is_grey_and_a_mixed_one_is_coloured(photos, tmp_path):
    save_pictures(tmp_path / "own", photos)
    for file in (tmp_path / "own").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert load_data(f"folder:{tmp_path / 'own'}").inputs.channels == 1
    Image.open(file).convert("RGB").save(file)
    assert load_data(f"folder:{tmp_path / 'own'}").inputs.channels == 3


def test_unfit_folders_name_the_file(photos, tmp_path):
    with pytest.raises(DataUnavailableError, match="there is no folder"):
        load_data(f"folder:{tmp_path / 'own'}")
    (tmp_path / "own" / "one").mkdir(parents=True)
    with pytest.raises(ValueError, match="at least two class folders"):
        load_data(f"folder:{tmp_path / 'own'}")
    save_pictures(tmp_path / "own", photos)
    with pytest.raises(ValueError, match="one holds no pictures"):
        load_data(f"folder:{tmp_path / 'own'}")
    Image.new("RGB", (31, 32)).save(tmp_path / "own" / "one" / "odd.png")
    with pytest.raises(ValueError, match="odd.png is 31x32"):
        load_data(f"folder:{tmp_path / 'own'}")
    Image.fromarray(np.full((32, 32), 40000, np.uint16)).save(tmp_path / "own" / "one" / "odd.png")
    with pytest.raises(ValueError, match="odd.png has Pillow mode I.*8-bit"):
        load_data(f"folder:{tmp_path / 'own'}")
    Image.new("RGBA", (32, 32)).save(tmp_path / "own" / "one" / "odd.png")
    with pytest.raises(ValueError, match="odd.png.*RGBA"):
        load_data(f"folder:{tmp_path / 'own'}")
    (tmp_path / "own" / "one" / "odd.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="odd.png cannot be read"):
        load_data(f"folder:{tmp_path / 'own'}")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "counts", "shape", "classes"),
    [
        ("breastmnist", (546, 156), (1, 28, 28), 2),
        ("pneumoniamnist", (4708, 624), (1, 28, 28), 2),
        ("retinamnist", (1080, 400), (3, 28, 28), 5),
    ],
)
def test_medmnist_through_its_own_loader(shared_data, name, counts, shape, classes):
    data = load_data(name, shared_data / "medmnist")
    assert (len(data.train), len(data.test)) == counts
    assert (data.inputs.shape, data.inputs.classes) == (shape, classes)


@pytest.mark.parametrize("name", ["bloodmnist", "cifar10", "cifar100"])
def test_a_failed_download_names_the_file_and_the_folder(tmp_path, name, monkeypatch, capsys):
    # Nobody answers on this port of this machine: the loaders' real download code fails at once, with a network or not.
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxies of its first use
    files = {"bloodmnist": "bloodmnist.npz", "cifar10": "cifar-10-python", "cifar100": "cifar-100-python"}
    with pytest.raises(DataUnavailableError, match=f"{files[name]}.*md5.*put it into {tmp_path}"):
        load_data(name, tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.realdata
def test_an_altered_file_is_refused_and_left_as_it_is(shared_data, tmp_path):
    content = bytearray((shared_data / "medmnist" / "breastmnist.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "breastmnist.npz").write_bytes(content)
    with pytest.raises(DataUnavailableError, match="incomplete or altered.*750601b1f35ba3300ea97c75c52ff8f6"):
        load_data("breastmnist", tmp_path)
    assert (tmp_path / "breastmnist.npz").read_bytes() == content
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"mine")
    with pytest.raises(DataUnavailableError, match="c58f30108f718f92721af3b95e74349a"):
        load_data("cifar10", tmp_path)
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == b"mine"


class Served(http.server.SimpleHTTPRequestHandler):
    """A local server of one folder; it breaks off in the middle while ``broken``."""

    broken = False

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(1000) if self.broken else source.read())

    def log_message(self, *_):
        """Says nothing."""


@pytest.mark.realdata
def test_a_download_that_breaks_off_leaves_nothing_and_the_next_one_succeeds(shared_data, tmp_path, monkeypatch):
    medmnist = pytest.importorskip("medmnist")
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    handler = functools.partial(Served, directory=str(shared_data / "medmnist"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/breastmnist.npz"
        monkeypatch.setitem(medmnist.INFO["breastmnist"], "url", address)
        monkeypatch.setattr(Served, "broken", True)
        with pytest.raises(DataUnavailableError, match="could not be downloaded"):
            load_data("breastmnist", tmp_path)
        assert list(tmp_path.iterdir()) == []
        monkeypatch.setattr(Served, "broken", False)
        assert len(load_data("breastmnist", tmp_path).train) == 546
        assert [file.name for file in tmp_path.iterdir()] == ["breastmnist.npz"]
        server.shutdown()


def test_a_folder_of_data_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataUnavailableError, match="bloodmnist is not in"):
        load_data("bloodmnist", tmp_path / "file" / "data")


def test_a_missing_library_says_how_to_install_it():
    with pytest.raises(DataUnavailableError, match="fl-precode\\[datasets\\]"):
        _library("no_such_library")


@pytest.mark.realdata
def test_cifar10_through_torchvisions_loader(shared_data, tmp_path):
    """torchvision's own reading code, on a small copy in the official layout; only the checksums are the copy's."""
    from torchvision.datasets import CIFAR10

    with np.load(shared_data / "cifar10" / "cifar10_lossless_subset.npz") as archive:
        images, labels = archive["train_images"][:60], archive["train_labels"][:60]
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def written(name, content):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    rows = images.transpose(0, 3, 1, 2).reshape(60, -1)

    def batch(name, start):
        return written(name, {"data": rows[start : start + 10], "labels": labels[start : start + 10].tolist()})

    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    checksum = written("batches.meta", {"label_names": names})[1]

    class SmallCopy(CIFAR10):
        train_list = tuple(batch(f"data_batch_{i + 1}", 10 * i) for i in range(5))
        test_list = (batch("test_batch", 50),)
        meta = {"filename": "batches.meta", "key": "label_names", "md5": checksum}

    data = load_cifar("cifar10", tmp_path, loader=SmallCopy)
    assert (len(data.train), len(data.test)) == (50, 10)
    assert np.array_equal(as_pictures(data.train.images), images[:50])
    assert data.train.class_names[3] == "cat"
    assert data.inputs.mean == (0.49147, 0.48226, 0.44677)
