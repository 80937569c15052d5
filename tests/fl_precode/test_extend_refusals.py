"""Places where a bottleneck cannot go, and what is said about them."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fl_precode import VariationalBottleneck, extend, track_kl
from tests.fl_precode.small_models import Model, lin, plain

X = torch.zeros(2, 4)


def test_no_linear_layer_is_found():
    convolutions = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"no torch.nn.Linear layer.*before="):
        extend(convolutions, torch.zeros(1, 1, 8, 8))
    assert isinstance(extend(convolutions, torch.zeros(1, 1, 8, 8), before="2")[2].bottleneck, VariationalBottleneck)
    unused = Model(lambda m, x: m.conv(x), conv=nn.Conv1d(4, 4, 1), spare=lin())
    with pytest.raises(ValueError, match=r"no torch.nn.Linear layer that runs"):
        extend(unused, torch.zeros(2, 4, 3))


@pytest.mark.parametrize(
    ("forward", "named"),
    [
        (lambda m, x: m.a(x) + m.b(x), "'a', 'b'"),  # two heads
        (lambda m, x: x + m.b(m.a(x)), "'a', 'b'"),  # a shortcut around everything
        (lambda m, x: (h := m.a(x)) + m.b(h), "'a', 'b'"),  # a residual around the last layer
        (lambda m, x: (h := m.a(x), m.b(h))[0], "'a', 'b'"),  # the last to run is an auxiliary head
        (lambda m, x: m.b(m.b(m.a(x))), "runs 2 times.*'a', 'b'"),
        (lambda m, x: m.b(m.a(x.relu_())) + x, "'a', 'b'"),  # works on its input in place
    ],
)
def test_ambiguous_places_are_refused_naming_the_candidates(forward, named):
    with pytest.raises(ValueError, match=f"ambiguous insertion point.*{named}"):
        extend(Model(forward, a=lin(), b=lin()), X)


def test_a_bypass_is_seen_for_token_inputs_too():
    tokens = torch.zeros(2, 5, dtype=torch.long)
    model = Model(lambda m, x: (h := m.embed(x).mean(1)) + m.head(h), embed=nn.Embedding(7, 4), head=lin())
    with pytest.raises(ValueError, match="ambiguous"):
        extend(model, tokens)
    model.run = lambda m, x: m.head(m.embed(x).mean(1))
    assert isinstance(extend(model, tokens).head.bottleneck, VariationalBottleneck)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.norm(m.b(m.a(x))),  # trainable layers behind the place
        lambda m, x: m.b(m.a(x)) + m.scale,  # a constant that does not depend on the input
        lambda m, x: m.b(torch.relu_(m.a(x) + x)),  # a residual before the place
    ],
)
def test_what_is_no_bypass_is_let_through(forward):
    model = Model(forward, a=lin(), b=lin(), norm=nn.LayerNorm(4))
    model.scale = nn.Parameter(torch.ones(4))
    assert isinstance(extend(model, X).b.bottleneck, VariationalBottleneck)


def test_told_where_a_bypass_is_a_warning(caplog):
    model = Model(lambda m, x: m.a(x) + m.b(x), a=lin(), b=lin())
    with caplog.at_level(logging.WARNING, logger="fl_precode"):
        defended = extend(model, X, before="a")
    assert "reaches around 'a'" in caplog.text
    assert isinstance(defended.a.bottleneck, VariationalBottleneck)


def test_told_where_a_module_may_run_twice():
    twice = Model(lambda m, x: m.b(m.b(m.a(x))), a=lin(), b=lin())
    with track_kl() as kl:
        extend(twice, X, before="b")(X)
    assert len(kl) == 2
    sizes = Model(lambda m, x: m.act(m.a(m.act(x))), a=lin(4, 3), act=nn.ReLU())
    with pytest.raises(ValueError, match=r"inputs of different sizes \[3, 4\]"):
        extend(sizes, X, before="act")


def test_a_bypass_that_cannot_be_checked_is_said(caplog):
    """Code that leaves autograd cannot be followed; the model still runs and is extended."""
    model = Model(
        lambda m, x: m.b(torch.from_numpy(m.a(x).numpy() * 1) if not torch.is_grad_enabled() else m.a(x).numpy())
    )
    model.a, model.b = lin(), lin()
    with caplog.at_level(logging.WARNING, logger="fl_precode"):
        extend(model, X)
    assert "could not check" in caplog.text


def test_unknown_and_idle_places():
    model = Model(lambda m, x: m.classifier(m.body(x)), body=lin(), classifier=lin(), spare=nn.ReLU())
    with pytest.raises(ValueError, match="no module named 'clasifier'; did you mean 'classifier'"):
        extend(model, X, before="clasifier")
    with pytest.raises(ValueError, match="no module named 'zzz'; it has body, classifier, spare"):
        extend(model, X, before="zzz")
    with pytest.raises(ValueError, match="no module named ''"):
        extend(model, X, before="")
    with pytest.raises(ValueError, match="'spare' does not run.*'body', 'classifier'"):
        extend(model, X, before="spare")


@pytest.mark.parametrize("example", [torch.zeros(6), torch.zeros(()), [[0.0] * 6], None])
def test_an_example_without_a_batch_is_refused(example):
    with pytest.raises(ValueError, match="to be a batch"):
        extend(plain(), example)


def test_examples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"cannot run example_input of shape \(2, 5\), torch.float32.*as in training"):
        extend(plain(), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"cannot run example_input of shape \(2, 6\), torch.float64"):
        extend(plain(), torch.zeros(2, 6, dtype=torch.float64))


def test_inputs_that_a_bottleneck_cannot_take_are_refused():
    merged = Model(lambda m, x: m.head(x.reshape(-1, 2)).reshape(2, -1), head=lin(2, 2))
    with pytest.raises(ValueError, match=r"batch of 2 first in what enters 'head', got \(4, 2\)"):
        extend(merged, X)
    two = Model(lambda m, x: m.head(m.pair(x, x)), pair=nn.Bilinear(4, 4, 4), head=lin())
    with pytest.raises(ValueError, match="one floating-point tensor.*'pair'"):
        extend(two, X, before="pair")
    tokens = Model(lambda m, x: m.head(m.embed(x).mean(1)), embed=nn.Embedding(3, 4), head=lin())
    with pytest.raises(ValueError, match="one floating-point tensor.*'embed'"):
        extend(tokens, torch.zeros(2, 5, dtype=torch.long), before="embed")


def test_outputs_that_are_no_tensor_are_refused():
    with pytest.raises(ValueError, match="return one tensor, got tuple"):
        extend(Model(lambda m, x: (m.a(x), x), a=lin()), X)


def test_a_second_bottleneck_in_the_same_place_is_refused():
    defended = extend(plain(), torch.zeros(1, 6))
    for before in (None, "fc2", "fc2.layer"):
        with pytest.raises(ValueError, match="in front of it already"):
            extend(defended, torch.zeros(1, 6), before=before)
    for before in ("fc2.bottleneck", "fc2.bottleneck.encoder"):
        with pytest.raises(ValueError, match="part of a bottleneck already"):
            extend(defended, torch.zeros(1, 6), before=before)
    both = extend(defended, torch.zeros(1, 6), before="fc1")
    with track_kl() as kl:
        both(torch.zeros(1, 6))
    assert len(kl) == 2


def test_a_reference_that_cannot_be_replaced_is_noticed():
    model = Model(lambda m, x: m.hidden[0](m.a(x)), a=lin(), b=lin())
    model.hidden = [model.b]
    with pytest.raises(ValueError, match="through a reference that extend cannot replace"):
        extend(model, X)


def test_code_that_reaches_into_the_layer_is_noticed():
    model = Model(lambda m, x: m.b(m.a(x)[:, : m.b.in_features]), a=lin(), b=lin())
    with pytest.raises(
        ValueError, match="does not run with a bottleneck before 'b': AttributeError.*name another place"
    ):
        extend(model, X)


def test_a_bottleneck_that_changes_the_output_is_noticed():
    model = Model(lambda m, x: m.b(x) if isinstance(m.b, nn.Linear) else m.b(x)[:1], b=lin())
    with pytest.raises(ValueError, match=r"changed the output; expected \(2, 4\)"):
        extend(model, X)


def test_models_whose_modules_cannot_be_replaced_or_copied_are_refused():
    with pytest.raises(ValueError, match="compiled model"):
        extend(torch.compile(plain(), backend="eager"), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="lazy layers"):
        extend(nn.Sequential(nn.LazyLinear(3)), X)
    stored = plain()
    stored.activation = stored(torch.zeros(1, 6))
    with pytest.raises(ValueError, match="cannot be copied.*extend a fresh one"):
        extend(stored, torch.zeros(1, 6))
