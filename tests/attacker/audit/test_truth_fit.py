"""Which truth a replay speaks against: wrong ones, and never true ones, whatever is not known of the client."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from attacker.audit.inputs.image_scale import usual_scales
from attacker.audit.inputs.truth_fit import why_not_behind
from attacker.audit.truth.base import Truth
from attacker.reasons import Reason
from attacker.victim import Victim
from fl_precode.defences.registry import apply_defence
from fl_precode.models import build_model
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation, Protocol
from tests.server.own_app import digits

INPUTS = InputSpec(channels=1, height=8, width=8, classes=10, mean=(0.2,), std=(0.4,))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )


def dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


MODELS = {
    "mlp": lambda: build_model("mlp", INPUTS, seed=0),
    "lenet": lambda: build_model("lenet", INPUTS, seed=0),
    "batch norm": convolutions,
    "dropout": dropout,
    "bottleneck": lambda: apply_defence("precode", build_model("mlp", INPUTS, seed=0), INPUTS),
}
EXACT = ("mlp", "lenet", "batch norm")


def batches(size: int, count: int = 6) -> list[Truth]:
    images, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(size)).split(size)[:count]
    return [Truth(images=images[some], labels=labels[some]) for some in order]


def in_steps(truth: Truth, size: int) -> list[Truth]:
    parts = zip(truth.images.split(size), truth.labels.split(size), strict=True)
    return [Truth(images=images, labels=labels) for images, labels in parts]


class Client:
    """A client of a model; ``observed`` is what it sends after training on some batches."""

    def __init__(self, name: str, *, trained: bool) -> None:
        torch.manual_seed(0)
        self.name, self.model = name, MODELS[name]()
        if trained:
            images, labels = digits()
            for _ in range(60):
                some = torch.randint(len(labels), (32,))
                self._train(self.model, [Truth(images=images[some], labels=labels[some])], 0.05)

    def observed(
        self, steps: list[Truth], *, announced: bool = True, kind="sgd", smoothed=0.0, decay=0.0, mode="train"
    ) -> Observation:
        torch.manual_seed(1)
        model = deepcopy(self.model).train(mode == "train")
        rate = 0.001 if kind == "adam" else 0.05
        self._train(model, steps, rate, kind=kind, smoothed=smoothed, decay=decay)
        count, size = sum(len(one.labels) for one in steps), len(steps[0].labels)
        known = Protocol(local_epochs=1, batch_size=size, learning_rate=rate)
        before = dict(self.model.named_parameters())
        update = {name: (value - before[name]).detach() for name, value in model.named_parameters()}
        if kind == "noise":
            update = {name: value + 0.002 * torch.randn_like(value) for name, value in update.items()}
        return Observation(
            parameters={name: value.detach().clone() for name, value in before.items()},
            buffers={name: value.clone() for name, value in self.model.named_buffers()},
            update=update,
            kind="weights",
            batch_size=count,
            protocol=known if announced else Protocol(),
            round=1,
            node="7",
        )

    def judged(
        self, seen: Observation, steps: list[Truth], others: list[Truth], *, scales=None, defence="none"
    ) -> Reason | None:
        victim = Victim(model=self.model, inputs=INPUTS, name=self.name)
        return why_not_behind(victim, seen, steps, others, defence, scales or [INPUTS])

    @staticmethod
    def _train(model, steps, rate, *, kind="sgd", smoothed=0.0, decay=0.0) -> None:
        kinds = {"adam": torch.optim.Adam}
        optimiser = kinds.get(kind, torch.optim.SGD)(model.parameters(), lr=rate, weight_decay=decay)
        for one in steps:
            optimiser.zero_grad()
            outputs = model(INPUTS.normalise(one.images))
            nn.functional.cross_entropy(outputs, one.labels, label_smoothing=smoothed).backward()
            optimiser.step()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("size", "step"), [(1, 1), (8, 4)])
def test_another_batch_is_refused_and_the_true_one_is_not(name, trained, size, step):
    client = Client(name, trained=trained)
    true, wrong, *others = batches(size)
    for announced in (True, False):
        seen = client.observed(in_steps(true, step), announced=announced)
        assert client.judged(seen, in_steps(true, step), others) is None
        assert client.judged(seen, in_steps(wrong, step), [*others, true]).code == "truth-does-not-fit"
        assert client.judged(seen, [true], others) is None, "known as one batch only"


@pytest.mark.parametrize("name", EXACT)
def test_other_labels_and_other_images_are_refused(name):
    client = Client(name, trained=False)
    true, wrong, *others = batches(8)
    seen = client.observed([true])
    labels = (true.labels + 4) % 10
    assert client.judged(seen, [Truth(images=true.images, labels=labels)], others)
    assert client.judged(seen, [Truth(images=wrong.images, labels=true.labels)], others)
    assert client.judged(seen, [Truth(images=true.images.flip(2), labels=true.labels)], [])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "unknown",
    [
        {},
        {"smoothed": 0.1},
        {"decay": 0.005},
        {"kind": "adam"},
        {"kind": "noise"},
        {"mode": "eval"},
        {"announced": False},
    ],
)
def test_true_images_are_not_refused_whatever_is_not_known(name, unknown):
    client = Client(name, trained=False)
    for size, step in ((1, 1), (8, 2)):
        true, _, *others = batches(size)
        seen = client.observed(in_steps(true, step), **unknown)
        assert client.judged(seen, in_steps(true, step), others) is None
        assert client.judged(seen, [true], others, scales=usual_scales(INPUTS)) is None


@pytest.mark.parametrize(("name", "defence"), [("dropout", "none"), ("bottleneck", "none"), ("mlp", "noise:std=0.1")])
def test_nothing_is_said_where_it_cannot_be_told(name, defence):
    client = Client(name, trained=False)
    true, wrong, *others = batches(4)
    assert client.judged(client.observed([true]), [wrong], others, defence=defence) is None


def test_a_model_that_breaks_is_no_reason_to_refuse():
    client = Client("mlp", trained=False)
    true, wrong, *others = batches(4)
    seen = client.observed([true])
    assert client.judged(seen, [wrong], others)

    def broken(*_arguments):
        raise RuntimeError("foreign code")

    client.model.register_forward_hook(broken)
    assert client.judged(seen, [wrong], others) is None
