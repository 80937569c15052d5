"""Counts of what formulas take from a gradient: positions against patches, vectors against widths."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from attacker.leakage import Leakage, analyse, position_rank, released, span_ranks
from attacker.report.leakage_words import advice
from attacker.victim import Victim
from tests.attacker import literature, tiny
from tests.attacker.leaking_models import smooth_mlp
from tests.attacker.small_transformers import PATCHES, SIDE, WIDTH, Transformer, torchvision_vit

SPEC = tiny.inputs(channels=3, side=SIDE)
LABEL = torch.tensor([1])


def of(model, spec=SPEC):
    victim = Victim(model=model.double().eval(), inputs=spec)
    return victim, released(victim, LABEL), literature.image(0, spec)


def seeded(build, *arguments, **options):
    torch.manual_seed(0)
    return build(*arguments, **options)


def test_positions_determine_one_image_where_tokens_are_as_wide_as_patches_are_many():
    _, gradient, image = of(seeded(Transformer))
    found = position_rank(gradient, image)
    assert (found.positions, found.layer, found.patches, found.width) == ("positions", "embed", PATCHES, WIDTH)
    assert (found.rank, found.exact) == (PATCHES, True)


def test_narrow_tokens_and_dead_patches_leave_patches_open():
    _, gradient, image = of(seeded(Transformer, width=10))
    narrow = position_rank(gradient, image)
    assert narrow.rank == 9, "LayerNorm takes one direction of the ten"
    assert not narrow.exact
    silent = seeded(torchvision_vit)
    nn.init.zeros_(silent.heads.head.weight)  # as torchvision leaves it
    _, gradient, image = of(silent)
    assert position_rank(gradient, image).rank == 0


def test_models_without_patches_have_no_positions_and_no_pairs():
    _, gradient, image = of(seeded(tiny.convnet, SPEC))
    assert position_rank(gradient, image) is None
    assert span_ranks(gradient, image) == ()


@pytest.mark.parametrize(("width", "images"), [(40, 2), (20, 1), (16, 0)])
def test_tokens_of_a_batch_are_counted_against_the_width(width, images):
    _, gradient, image = of(seeded(Transformer, width=width))
    (found,) = span_ranks(gradient, image)
    assert (found.tokens, found.each, found.most, found.images) == (True, PATCHES + 1, width - 1, images)
    assert found.rank == min(PATCHES + 1, width), "the bias gradient is a direction of its own"
    assert (found.first, found.second, found.activation) == ("block.0.mlp.0", "block.0.mlp.2", "GELU")


def test_equal_tokens_share_a_direction():
    _, gradient, _ = of(seeded(Transformer, "none", special=0))  # nothing tells equal patches apart
    black = torch.zeros(1, *SPEC.shape, dtype=torch.float64)
    black[..., :4, :4] = literature.image(1)[..., :4, :4]
    (found,) = span_ranks(gradient, black)
    assert (found.each, found.rank) == (PATCHES, 2)


@pytest.mark.parametrize("activation", ["Sigmoid", "GELU", "ReLU"])
def test_images_behind_a_smooth_layer_are_counted_against_units_and_outputs(activation):
    _, gradient, image = of(seeded(smooth_mlp, SPEC, activation))
    found = span_ranks(gradient, image)
    assert [(one.tokens, one.each, one.most, one.rank) for one in found] == (
        [(False, 1, 47, 1)] if activation != "ReLU" else []
    )


def test_the_analysis_says_what_is_exactly_determined_and_keeps_it():
    victim, _, image = of(seeded(Transformer))
    found = analyse(victim, image, LABEL, exact=False)
    told = " ".join(advice(found))
    assert "One image is exactly determined, however large: the gradient of positions has rank 16 for 16" in told
    assert "The tokens of 2 images of one batch are exactly determined" in told
    plain = json.loads(json.dumps(found.as_dict()))
    assert (plain["positions"]["exact"], plain["spans"][0]["images"]) == (True, 2)
    assert Leakage.from_dict(plain) == found
    older = {name: value for name, value in plain.items() if name not in ("positions", "spans")}
    assert (Leakage.from_dict(older).positions, Leakage.from_dict(older).spans) == (None, ())
    narrow = analyse(of(seeded(Transformer, width=10))[0], image, LABEL, exact=False)
    assert "rank 9 for 16 patchs" not in " ".join(advice(narrow))
    assert "the others have to be guessed" in " ".join(advice(narrow))
