"""Losses by name: what can be replayed, in which way it is called, and what is refused with which words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode import loss as losses
from fl_precode.loss import Criterion, LossError, checked_loss, importable_name, label_rows, load_loss, set_numbers
from tests.fl_precode import some_losses

CLASSES = 10


def check(spec: str) -> Criterion | None:
    found = load_loss(f"tests.fl_precode.some_losses:{spec}" if ":" not in spec else spec)
    assert found is not None
    return checked_loss(found, F.cross_entropy, columns=CLASSES)


@pytest.mark.parametrize(
    "spec",
    [
        "torch.nn:CrossEntropyLoss",
        "torch.nn.functional:cross_entropy",
        "torch.nn:CrossEntropyLoss(label_smoothing=0.0)",
        "by_hand",
    ],
)
def test_cross_entropy_is_known_by_whatever_name(spec):
    assert check(spec) is None


def test_the_word_cross_entropy_names_no_other_loss():
    assert load_loss("cross-entropy") is None


@pytest.mark.parametrize(
    ("spec", "rows", "of_images", "double"),
    [
        ("smoothed", False, True, True),
        ("torch.nn:CrossEntropyLoss(label_smoothing=0.1)", False, True, True),
        ("torch.nn.functional:cross_entropy(label_smoothing=0.1)", False, True, True),
        ("focal", False, True, True),
        ("weighted", False, False, True),
        ("WEIGHTED", False, False, True),
        ("torch.nn:BCEWithLogitsLoss", True, True, True),
        ("one_against_all", False, True, True),
        ("single_precision", False, False, False),
        ("summed", False, False, True),
        ("torch.nn.functional:mse_loss", True, True, True),
    ],
)
def test_how_a_loss_is_called_is_found_out(spec, rows, of_images, double):
    found = check(spec)
    assert found is not None
    assert (found.rows, found.of_images, found.double) == (rows, of_images, double)
    assert found.name == (spec if ":" in spec else f"tests.fl_precode.some_losses:{spec}")


def test_a_checked_loss_gives_what_the_client_computes():
    scores = torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 3, 9, 3, 1, 5])
    for name in ("smoothed", "focal", "weighted", "one_against_all", "single_precision"):
        torch.testing.assert_close(check(name)(scores, labels), getattr(some_losses, name)(scores, labels))
    several = torch.stack([F.one_hot(labels, CLASSES)[:, place] for place in range(CLASSES)], dim=1)
    several[2, 4] = 1
    several[4] = 0
    found = check("torch.nn:BCEWithLogitsLoss")(scores, set_numbers(several))
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(scores, several.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_that_holds_weights_follows_the_scores_and_stays_as_it_is(dtype):
    scores, labels = torch.randn(4, CLASSES, dtype=dtype), torch.arange(4)
    found = check("WEIGHTED")(scores, labels)
    expected = F.cross_entropy(scores.double(), labels, weight=some_losses.WEIGHTED.weight.double())
    torch.testing.assert_close(found, expected.to(dtype))
    assert some_losses.WEIGHTED.weight.dtype == torch.float32


def test_batches_that_stand_one_behind_the_other_keep_their_own_losses():
    scores, labels = torch.randn(6, CLASSES), torch.arange(6)
    for name in ("weighted", "smoothed"):
        found = check(name)
        each = torch.stack([found(scores[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)]).mean()
        torch.testing.assert_close(found.of_batches(scores, labels, 2), each)
    found = check("weighted")
    assert not torch.allclose(found.of_batches(scores, labels, None), found.of_batches(scores, labels, 2))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no_such_package.task:loss", "there is no such module"),
        ("tests.fl_precode.some_losses:absent", "has no 'absent'"),
        ("tests.fl_precode.broken_plugin:loss", "cannot import"),
        ("focal loss", "expected 'cross-entropy' or package.module:function"),
        ("tests.fl_precode.some_losses:NOT_A_LOSS", "expected a function of (scores, labels)"),
        ("torch.nn:CrossEntropyLoss(smoothing=0.1)", "building it failed"),
        ("torch.nn:CrossEntropyLoss(0.1)", "expected settings by keyword"),
    ],
)
def test_a_loss_that_cannot_be_imported_says_so(spec, words):
    with pytest.raises(LossError) as told:
        load_loss(spec)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("for_each_image", "expected a scalar, the loss of the whole batch, got a tensor of shape (11,) for 11 images"),
        ("a_number", "expected a scalar tensor, got float"),
        ("not_finite", "expected a finite number"),
        ("random", "it draws at random"),
        ("once", "expected a loss that is twice differentiable"),
        ("hidden_backward", "expected a loss that is twice differentiable"),
        ("detached", "expected a loss that is twice differentiable"),
        ("flat", "its gradient is zero"),
        ("of_three", "as the clients call it"),
    ],
)
def test_a_loss_that_cannot_be_replayed_says_why(name, words):
    with pytest.raises(LossError) as told:
        check(name)
    assert words in str(told.value)
    assert f"some_losses:{name}" in str(told.value)


def test_a_loss_whose_gradient_is_constant_can_be_replayed():
    assert check("linear") is not None


def test_one_logit_has_the_binary_loss_by_its_names():
    def binary(scores: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores[:, 0], labels.to(scores.dtype))

    assert checked_loss(nn.BCEWithLogitsLoss(), binary, columns=1) is None
    other = checked_loss(nn.MSELoss(), binary, columns=1)
    assert other is not None
    scores, labels = torch.randn(3, 1), torch.tensor([0, 1, 1])
    torch.testing.assert_close(other(scores, labels), F.mse_loss(scores[:, 0], labels.float()))


def test_sets_of_classes_are_numbers_and_are_decoded():
    every = torch.cartesian_prod(*[torch.arange(2)] * 5)
    numbers = set_numbers(every)
    assert len(set(numbers.tolist())) == 32
    assert torch.equal(label_rows(numbers, 5), every)
    assert set_numbers(torch.eye(5)).tolist() == [0, 1, 2, 3, 4]
    widest = torch.zeros(1, 62)
    widest[0, [0, 61]] = 1
    assert torch.equal(label_rows(set_numbers(widest), 62), widest.long())
    with pytest.raises(ValueError, match="1 to 62 classes"):
        set_numbers(torch.zeros(1, 63))
    with pytest.raises(ValueError, match="zeros and ones"):
        set_numbers(torch.full((1, 4), 0.25))


def test_names_that_others_can_import():
    assert importable_name(some_losses.focal) == "tests.fl_precode.some_losses:focal"
    assert importable_name("my_app.task:criterion") == "my_app.task:criterion"
    assert importable_name("cross-entropy") == "cross-entropy"
    loaded = load_loss("torch.nn:CrossEntropyLoss(label_smoothing=0.1)")
    assert importable_name(loaded) == "torch.nn:CrossEntropyLoss(label_smoothing=0.1)"

    def inner(scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores, labels)

    for loss in (inner, lambda scores, labels: scores.sum(), nn.CrossEntropyLoss()):
        with pytest.raises(LossError, match="cannot be imported by this name"):
            importable_name(loss)
    with pytest.raises(LossError, match="expected 'cross-entropy' or package"):
        importable_name("focal loss")


def test_random_numbers_are_not_shifted_by_the_check():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check("focal")
    assert torch.equal(torch.rand(3), expected)
    assert losses.described(some_losses.focal).endswith(":focal")
