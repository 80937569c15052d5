"""An image counts beyond what can be guessed without its update, and an exact reconstruction always counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from attacker.attacks.base import Outcome, Reconstruction
from attacker.audit.execution.attack_job import run_chunk
from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.audit.planning.plan import plan_audit
from attacker.audit.record.counting import beats
from attacker.audit.scheduler import cut
from attacker.audit.scoring.assemble import count_others
from attacker.audit.scoring.placebos import FEWEST_COMPARED, MOST_COMPARED, placebo_ssim, same_images, updates_of_others
from attacker.audit.scoring.shuffled import DRAWS, _tried, attack_shuffled, shuffled
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD
from attacker.audit.settings import AuditSettings
from attacker.audit.truth.base import Truth, chosen_by_class
from attacker.audit.truth.best_guess import FEWEST_AVERAGED, Guesses, are_copies, first_of_each
from attacker.audit.truth.federation import TrainingImages
from attacker.metrics import similarity
from fl_precode.data import ImageDataset, load_data
from tests.attacker.audits import audit_tape
from tests.attacker.taped_federation import tape_federation


@dataclass(frozen=True)
class Known:
    """Somebody who knows these images."""

    images: Tensor
    mean_image: Tensor | None = None

    def of_class(self, label):
        return self.images


def noise(count, *, size=8, channels=1, seed=0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def stored(folder, images, labels) -> str:
    """The images as a data set of an own file."""
    np.savez(folder / "own.npz", images=images, labels=labels)
    return f"npz:{folder / 'own.npz'}"


class Place(NamedTuple):
    node: str
    round: int


def medmnist(folder, name):
    """Training images (n, channels, height, width) as bytes, and their labels."""
    with np.load(folder / f"medmnist/{name}.npz") as arrays:
        pixels = torch.from_numpy(arrays["train_images"])
        labels = torch.from_numpy(arrays["train_labels"]).long().flatten()
    return (pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)), labels


def faded(count=240):
    """Photographs without contrast, (n, height, width, channels), and their labels."""
    photos = load_data("photos").train
    place = torch.cat([(photos.labels == label).nonzero().flatten()[: count // 2] for label in (0, 1)])
    pixels = (128 + 0.08 * (photos.images[place].float() - 128)).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy(), photos.labels[place].numpy()


def test_plain_images_have_the_similarity_of_images_of_one_level():
    truth, levels = noise(3, size=9, channels=2), torch.tensor([0.0, 0.3, 1.0])
    found = similarity.plain_ssim(truth, levels)
    for place, level in enumerate(levels.tolist()):
        for channel in range(2):
            own = truth[:, channel : channel + 1]
            expected = similarity.ssim(torch.full_like(own, level), own)
            torch.testing.assert_close(found[:, channel, place], expected)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["pneumoniamnist", "breastmnist", "retinamnist"])
def test_no_guess_counts_as_a_reconstructed_scan_and_every_scan_does(shared_data, name):
    pixels, labels = medmnist(shared_data, name)
    known = TrainingImages(ImageDataset(pixels, labels, tuple(map(str, range(int(labels.max()) + 1)))))
    place = torch.arange(0, len(pixels), len(pixels) // 40)
    truth, own = pixels[place].float() / 255, labels[place]
    best = Guesses(known).at(truth, own)
    averages = torch.stack([known.of_class(int(label)).mean(dim=0) for label in own])
    others = torch.stack([known.of_class(int(label))[:101][-1] for label in own])
    blank = truth.mean(dim=(2, 3), keepdim=True).expand_as(truth)
    for guess in (known.mean_image.expand_as(truth), averages, others, blank, 0 * truth, 0 * truth + 1):
        values = similarity.ssim(guess, truth).tolist()
        assert not any(beats(one, of.ssim, SUCCESS_THRESHOLD) for one, of in zip(values, best, strict=True))
    assert all(beats(1.0, of.ssim, SUCCESS_THRESHOLD) for of in best)


@pytest.mark.realdata
def test_the_mean_eye_passes_the_threshold_on_most_and_counts_on_none(shared_data):
    pixels, labels = medmnist(shared_data, "retinamnist")
    known = TrainingImages(ImageDataset(pixels, labels, tuple("01234")))
    truth = pixels[:16].float() / 255
    mean = similarity.ssim(known.mean_image.expand_as(truth), truth).tolist()
    assert sum(value >= SUCCESS_THRESHOLD for value in mean) >= 10, "as a plain threshold would count"
    best = Guesses(known).at(truth, labels[:16])
    assert not any(beats(value, of.ssim, SUCCESS_THRESHOLD) for value, of in zip(mean, best, strict=True))


@pytest.mark.realdata
def test_a_grey_square_passes_the_threshold_on_scans_and_counts_on_none(shared_data):
    """The scan whose best plain square is most like it, of each class: DP-SGD was called broken by such squares."""
    with np.load(shared_data / "medical_mnist/medical_mnist_6x1000.npz") as arrays:
        pixels, labels = torch.from_numpy(arrays["images"])[:, None], torch.from_numpy(arrays["labels"]).long()
    known = TrainingImages(ImageDataset(pixels, labels, tuple("012345")))
    place = torch.arange(0, len(pixels), 60)
    truth, own = pixels[place].float() / 255, labels[place]
    levels = torch.linspace(0, 1, 21)
    squares = similarity.plain_ssim(truth, levels)[:, 0]
    passing = (squares >= SUCCESS_THRESHOLD).any(dim=1)
    assert bool(passing.any()), "as a plain threshold would count"
    best = Guesses(known).at(truth[passing], own[passing])
    for of, values in zip(best, squares[passing].tolist(), strict=True):
        assert not any(beats(value, of.ssim, SUCCESS_THRESHOLD) for value in values)
        assert beats(1.0, of.ssim, SUCCESS_THRESHOLD)


def test_the_clients_other_images_are_guessed_by():
    """A client whose images of a class are all but alike: what resembles them shows nothing of its update."""
    base = noise(1, seed=3)[0]
    alike = (base + 0.3 * (noise(20, seed=4) - 0.5)).clamp(0, 1)
    image = (base + 0.3 * (noise(1, seed=5)[0] - 0.5)).clamp(0, 1)
    others = noise(FEWEST_AVERAGED, seed=6)
    (without,) = Guesses(Known(others)).at(image[None], torch.tensor([0]))
    (found,) = Guesses(Known(others)).at(image[None], torch.tensor([0]), Known(alike))
    assert (found.name, without.name) == ("mean of the client's class", "another image of its class")
    assert found.ssim > without.ssim + 0.2
    (few,) = Guesses(Known(others)).at(image[None], torch.tensor([0]), Known(alike[: FEWEST_AVERAGED - 1]))
    assert few.name != found.name, "the mean of few images shows each of them"


def test_a_clients_other_images_are_its_partition_without_the_update(tmp_path):
    taped = tape_federation(tmp_path, batch_size=4)
    truth = open_subject(TapeSource(tape=taped.tape)).truth
    own = Place(node="9007199254740901", round=1)
    used, labels = taped.used[own.node, own.round]
    mine = truth.client_images(own)
    for label in labels.unique().tolist():
        held = mine.of_class(label)
        assert len(held)
        assert not any(torch.equal(image, other) for image in used for other in held)
    assert sum(len(mine.of_class(label)) for label in range(10)) + len(labels) == len(truth._federation.partitions[0])
    assert mine.of_class(77).shape[0] == 0


def test_a_copy_of_an_image_is_no_guess_at_it_and_no_part_of_its_class_s_mean():
    image, others = noise(1)[0], noise(FEWEST_AVERAGED - 1, seed=1)
    copies = (image + 0.004 * (noise(30, seed=2) - 0.5)).clamp(0, 1)
    assert bool(are_copies(copies, image).all())
    assert not are_copies(others, image).any()
    (best,) = Guesses(Known(torch.cat([copies, others, image[None]]))).at(image[None], torch.tensor([0]))
    assert best.ssim < 0.5
    assert best.name != "mean of its class"
    (alone,) = Guesses(Known(image[None])).at(image[None], torch.tensor([0]))
    assert alone.name == "plain image"
    assert beats(0.99, best.ssim, SUCCESS_THRESHOLD)
    assert beats(0.99, alone.ssim, SUCCESS_THRESHOLD)


@pytest.mark.parametrize(("level", "name"), [(0.0, "black image"), (1.0, "white image"), (0.3137, "plain image")])
def test_only_a_guess_that_is_the_image_keeps_an_exact_reconstruction_from_counting(level, name):
    constant = torch.full((1, 3, 8, 8), level)
    (best,) = Guesses(Known(noise(0, channels=3))).at(constant, torch.tensor([0]))
    assert (best.ssim, best.name) == (1.0, name)
    assert not beats(1.0, best.ssim, SUCCESS_THRESHOLD)
    spotted = 0.99 * constant + 0.006 * noise(1, channels=3)
    (best,) = Guesses(Known(noise(0, channels=3))).at(spotted, torch.tensor([0]))
    assert 0.9 < best.ssim < 1
    assert beats(1.0, best.ssim, SUCCESS_THRESHOLD)


def test_rounding_makes_no_reconstruction_more_than_equal_to_its_image():
    levels = torch.arange(256, dtype=torch.float64).view(-1, 1, 1, 1) / 255
    plain = levels.expand(256, 1, 12, 12)
    exact = plain + 1e-8 * (noise(256, size=12).double() - 0.5)
    values = similarity.ssim(exact, plain)
    assert bool((values > 1 - 1e-6).all())
    guesses = Guesses(Known(noise(0))).at(plain.float(), torch.zeros(256, dtype=torch.long))
    counted = [beats(one, of.ssim, SUCCESS_THRESHOLD) for one, of in zip(values.tolist(), guesses, strict=True)]
    assert not any(counted)


def test_the_best_colour_is_found_channel_by_channel():
    image = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1) + 0.004 * noise(1, channels=3)[0]
    (best,) = Guesses(Known(noise(0, channels=3))).at(image[None], torch.tensor([0]))
    assert best.ssim > 0.9
    assert best.image[:, 0, 0].tolist() == pytest.approx([0.102, 0.502, 0.902], abs=0.002)


def test_the_images_of_a_class_do_not_depend_on_their_order_and_are_different():
    images, labels = noise(40), torch.arange(40) % 2
    twice = [Truth(images=images, labels=labels), Truth(images=images.flip(0), labels=labels.flip(0))]
    found = chosen_by_class(twice)
    again = chosen_by_class([Truth(images=images[i : i + 1], labels=labels[i : i + 1]) for i in range(39, -1, -1)])
    assert {label: len(one) for label, one in found.items()} == {0: 20, 1: 20}
    assert all(torch.equal(found[label], again[label]) for label in found)
    pixels = (images * 255).to(torch.uint8)
    known = TrainingImages(ImageDataset(torch.cat([pixels, pixels]), torch.cat([labels, labels]), ("a", "b")))
    assert len(known.of_class(1)) == 20
    assert not known.of_class(0).equal(known.of_class(1))


def test_the_mean_of_few_training_images_is_their_colour():
    few = (noise(FEWEST_AVERAGED - 1) * 255).to(torch.uint8).repeat(3, 1, 1, 1)
    many = (noise(FEWEST_AVERAGED) * 255).to(torch.uint8)
    means = [TrainingImages(ImageDataset(one, torch.zeros(len(one)), ("a",))).mean_image for one in (few, many)]
    assert [len(one.unique()) > 1 for one in means] == [False, True]


def test_updates_are_compared_with_those_that_hold_none_of_their_images():
    image, other, third = noise(3)
    close = (image + 0.002).clamp(0, 1)
    assert first_of_each([image, other, image, close, third]) == [0, 1, 0, 0, 4]
    same = same_images([torch.stack([image, other]), third[None], close[None], None])
    assert updates_of_others(same) == [[1], [2, 0], [1], []]
    assert len(updates_of_others([[place] for place in range(40)])[7]) == MOST_COMPARED


def test_what_was_made_of_other_batches_is_put_in_the_order_that_fits_best():
    truth = noise(3)
    assert placebo_ssim([truth.flip(0)], truth) == pytest.approx([1, 1, 1])
    broken = truth.flip(0).clone()
    broken[1] = torch.nan
    found = placebo_ssim([broken], truth)
    assert sum(one is None for one in found) == 1
    assert sorted(one for one in found if one is not None) == pytest.approx([1, 1])
    found = placebo_ssim([noise(2, seed=3)], truth)
    assert sum(one is None for one in found) == 1
    assert placebo_ssim([], truth) == [None] * 3
    large = noise(1, size=420, channels=3)
    assert placebo_ssim([1 - large] * FEWEST_COMPARED + [large], large)[0] < 0


def test_noise_on_pictures_without_contrast_is_no_leak_and_their_gradient_is(tmp_path):
    dataset = stored(tmp_path, *faded())
    taped = tape_federation(
        tmp_path / "noise", defence="noise:std=1000", dataset=dataset, clients=4, rounds=1, perturbed=True
    )
    record = audit_tape(taped.tape, out=tmp_path / "a", attacks=["first-layer"], victims=4)
    assert sum(row.ssim >= SUCCESS_THRESHOLD for row in record.results) == 4  # by SSIM alone, each is reconstructed
    assert record.summaries[0].successes == 0
    assert record.summaries[0].guess_successes == 4
    open_one = tape_federation(tmp_path / "none", dataset=dataset, clients=3, rounds=1)
    record = audit_tape(open_one.tape, out=tmp_path / "b", attacks=["first-layer"], victims=3)
    assert all(row.guess_ssim > 0.9 for row in record.results)
    assert record.summaries[0].successes == 3
    assert all(victim.guess and victim.guess_ssim and victim.guess_name for victim in record.victims)


def test_shuffled_updates_keep_every_tensor_s_numbers_and_no_image(tmp_path):
    taped = tape_federation(tmp_path, clients=1, rounds=1)
    seen = open_subject(TapeSource(tape=taped.tape)).tape.observations()[0]
    one, other = shuffled(seen, 0), shuffled(seen, 1)
    for name, value in seen.update.items():
        assert torch.equal(one.update[name].flatten().sort().values, value.flatten().sort().values)
    largest = max(seen.update, key=lambda name: seen.update[name].numel())
    assert not torch.equal(one.update[largest], other.update[largest])
    again = shuffled(seen, 0)
    assert all(torch.equal(again.update[name], value) for name, value in one.update.items())


@pytest.mark.parametrize(("clients", "draws"), [(1, DRAWS), (3, DRAWS - 2), (DRAWS + 1, 0)])
def test_formulas_are_tried_on_shuffled_updates_where_there_are_few_others(tmp_path, clients, draws):
    taped = tape_federation(tmp_path, clients=clients, rounds=1)
    settings = AuditSettings(
        victims=clients, control=False, attacks=("first-layer", "inverting-gradients:iterations=1")
    )
    federations = open_federations([TapeSource(tape=taped.tape)], settings, tmp_path)
    chunks = cut(federations, plan_audit(federations, settings, estimate=False), settings)
    found = {
        (chunk.federation, chunk.attack, target.file): one
        for chunk in chunks
        for target, one in zip(chunk.targets, run_chunk(chunk), strict=True)
    }
    made = attack_shuffled(chunks, found, count_others(federations))
    assert {attack for _, attack, _ in made} == ({"first-layer"} if draws else set())
    assert all(len(some) == draws for some in made.values())
    for (_, attack, file), some in made.items():
        assert all(not torch.allclose(one.inputs, found["f1", attack, file].inputs, atol=0.01) for one in some)
    slow = {place: replace(one, seconds=60.0) for place, one in found.items()}
    assert attack_shuffled(chunks, slow, count_others(federations)) == {}


def test_a_formula_that_finds_no_end_on_the_shuffled_update_is_left_out(tmp_path):
    tape = tape_federation(tmp_path, model="lenet", clients=1, rounds=1).tape
    settings = AuditSettings(attacks=("hybrid:steps=3,inner=5",), victims=1, control=False)
    federations = open_federations([TapeSource(tape=tape)], settings, tmp_path / "controls")
    (chunk,) = cut(federations, plan_audit(federations, settings, estimate=False), settings)
    place = chunk.federation, chunk.attack, chunk.targets[0].file
    quick = Reconstruction(inputs=torch.zeros(1), labels=None, outcome=Outcome.CONVERGED)
    others = {place[::2]: DRAWS - 1}
    assert list(attack_shuffled([chunk], {place: quick}, others)) == [place]
    assert attack_shuffled([chunk], {place: quick}, others, seconds=1e-3) == {}


def test_a_lone_update_is_compared_with_itself_shuffled_and_still_counts(tmp_path):
    taped = tape_federation(tmp_path, clients=1, rounds=1)
    record = audit_tape(taped.tape, out=tmp_path / "a", attacks=["first-layer"], victims=1)
    assert record.summaries[0].successes == 1
    assert record.results[0].guess_ssim < record.results[0].ssim


def test_the_same_client_s_repeated_image_is_attacked_last_and_named(tmp_path):
    digits = load_data("digits").train
    pixels, labels = digits.images[:10].permute(0, 2, 3, 1).numpy(), np.arange(10) % 2
    taped = tape_federation(tmp_path / "t", dataset=stored(tmp_path, pixels, labels), clients=4, rounds=4)
    held = {images[0].numpy().tobytes() for images, _ in taped.used.values()}
    few = audit_tape(taped.tape, out=tmp_path / "a", attacks=["first-layer"], victims=len(held))
    assert len(few.victims) == len(held)
    assert [victim.same_as for victim in few.victims] == [None] * len(held)
    every = audit_tape(taped.tape, out=tmp_path / "b", attacks=["first-layer"], victims=16)
    assert len(every.victims) == 16
    assert sum(victim.same_as is None for victim in every.victims) == len(held)
    used = {victim.id: taped.used[victim.node, victim.round][0] for victim in every.victims}
    assert all(torch.equal(used[one.id], used[one.same_as]) for one in every.victims if one.same_as)
    assert every.summaries[0].successes == 16


@pytest.mark.parametrize(("seconds", "calls"), [(10.0, 4), (0.1, 1)])
def test_where_the_first_shuffled_update_shows_that_there_is_no_time_for_all_the_others_are_not_tried(
    monkeypatch, seconds, calls
):
    asked = []

    def slow(chunk, change):
        asked.append(change)
        time.sleep(0.05)
        return [chunk]

    monkeypatch.setattr("attacker.audit.scoring.shuffled.run_chunk", slow)
    found = _tried("chunk", 4, seconds)
    assert len(asked) == calls
    assert found == (["chunk"] * 4 if calls == 4 else None)
