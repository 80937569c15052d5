"""Specs: forms, options, messages; and the seeded block that they are built in."""

from __future__ import annotations

import pytest
import torch

from fl_precode.randomness.seeding import seeded, undisturbed_rng
from fl_precode.spec import parse_spec


def test_name_and_options():
    spec = parse_spec(" lenet : activation=relu , init=uniform")
    assert (spec.name, dict(spec.options)) == ("lenet", {"activation": "relu", "init": "uniform"})
    assert parse_spec("mlp").options == {}


@pytest.mark.parametrize(
    "text", ["", " ", ":a=1", "mlp:", "mlp: ", "mlp:init", "mlp:init=", "mlp:=relu", "mlp:a=1,", "mlp:,a=1"]
)
def test_other_forms_are_refused(text):
    with pytest.raises(ValueError, match="key=value"):
        parse_spec(text)


def test_an_option_given_twice_is_refused():
    with pytest.raises(ValueError, match="'latent' is given twice"):
        parse_spec("precode:latent=1,latent=2")


def test_typed_options():
    spec = parse_spec("x:count=3,share=1e-3,word=blue,half=0.5")
    assert (spec.integer("count"), spec.number("share"), spec.integer("absent"), spec.number("absent")) == (
        3,
        1e-3,
        None,
        None,
    )
    assert spec.choice("word", ("red", "blue"), "red") == "blue"
    assert spec.choice("absent", ("red", "blue"), "red") == "red"
    with pytest.raises(ValueError, match="half to be a whole number, got '0.5'"):
        spec.integer("half")
    with pytest.raises(ValueError, match="word to be a number, got 'blue'"):
        spec.number("word")
    with pytest.raises(ValueError, match="word to be one of red, green, got 'blue'"):
        spec.choice("word", ("red", "green"), "red")


def test_unknown_options_are_named_with_those_that_exist():
    spec = parse_spec("x:colour=blue")
    with pytest.raises(ValueError, match="no option 'colour'; it has size, word"):
        spec.check_options(["word", "size"])
    with pytest.raises(ValueError, match="no option 'colour'; it has none"):
        spec.check_options([])


def test_seeded_blocks_repeat_and_leave_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded(1):
        first = torch.rand(3)
    with undisturbed_rng():
        torch.rand(100)
    with seeded(2):
        other = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)
    assert not torch.equal(first, other)
