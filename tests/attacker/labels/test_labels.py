"""iDLG recovers the label of one image, by the name of the layer that runs last."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacker.gradients.trace import trace
from attacker.labels import idlg_label
from tests.attacker import tiny


class HeadFirst(nn.Module):
    """Registers the classifier before the body, so that positions mislead."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(9, 4, bias=bias)
        self.body = nn.Linear(36, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)).sigmoid())


MODELS = {
    "mlp": tiny.mlp,
    "no bias": lambda spec: tiny.mlp(spec, bias=False),
    "convnet": tiny.convnet,
    "precode": lambda spec: tiny.mlp(spec, bottleneck=True),
    "head first": lambda _: HeadFirst(),
    "head first, no bias": lambda _: HeadFirst(bias=False),
}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None)
@given(label=st.integers(0, 3), seed=st.integers(0, 999))
def test_idlg_is_right_for_one_image(name, label, seed):
    torch.manual_seed(seed)
    spec = tiny.inputs()
    victim = tiny.victim(MODELS[name](spec), spec)
    observation = tiny.observe(victim, tiny.images(spec, 1, seed=seed), [label])
    found = idlg_label(trace(victim).last_linear(), observation.update, classes=4)
    assert found is not None
    assert found.tolist() == [label]
    assert found.dtype == torch.int64


def test_idlg_says_none_where_it_cannot_know():
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    seen = trace(victim).last_linear()
    gradient = tiny.observe(victim, tiny.images(spec, 1), [1]).update
    assert idlg_label(None, gradient, classes=4) is None
    assert idlg_label(seen, gradient, classes=5) is None  # the last layer is no classifier
    assert idlg_label(trace(victim).layers[0], gradient, classes=4) is None
    silent = {name: torch.zeros_like(value) for name, value in gradient.items()}
    assert idlg_label(seen, silent, classes=4) is None


def test_idlg_takes_the_most_negative_after_noise():
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    gradient = dict(tiny.observe(victim, tiny.images(spec, 1), [1]).update)
    gradient["3.bias"] = torch.tensor([-0.1, 0.2, -0.6, -0.3])
    assert idlg_label(trace(victim).last_linear(), gradient, classes=4).tolist() == [2]
