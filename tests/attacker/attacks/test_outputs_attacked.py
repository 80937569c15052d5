"""Models that do not return (batch, classes): several values, one logit, a probability, or no class scores at all."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacker.attacks.base import Outcome
from attacker.attacks.registry import build_attack
from attacker.labels import best_labels
from attacker.reasons import because
from attacker.victim import NoLossError, Victim, assumptions_of
from fl_precode import Observation, Protocol
from fl_precode.models.input_spec import InputSpec
from fl_precode.models.outputs import class_scores, describe_output

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """Returns what ``form`` makes of logits and features."""

    def __init__(self, outputs, form):
        super().__init__()
        self.first, self.last, self.form = nn.Linear(64, 24), nn.Linear(24, outputs), form

    def forward(self, x):
        hidden = torch.sigmoid(self.first(x.flatten(1)))
        return self.form(self.last(hidden), hidden)


class Object:
    def __init__(self, logits):
        self.logits = logits


SEVERAL = {
    "pair": lambda logits, hidden: (logits, hidden),
    "features first": lambda logits, hidden: (hidden, logits),
    "dict": lambda logits, hidden: {"loss": None, "hidden": hidden, "logits": logits},
    "object": lambda logits, hidden: Object(logits),
}
ONE = {
    "logit": lambda logits, hidden: logits,
    "flat logit": lambda logits, hidden: logits.squeeze(1),
    "probability": lambda logits, hidden: torch.sigmoid(logits),
    "flat probability in a dict": lambda logits, hidden: {"out": torch.sigmoid(logits).squeeze(1)},
}


def spec(classes):
    return InputSpec(channels=1, height=8, width=8, classes=classes, mean=(0.0,), std=(1.0,))


def observed(model, loss, count=1):
    """The gradient of a client's own loss, which is not computed by the attacker's code."""
    names, values = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss(model(IMAGES[:count].to(values[0]))), values)
    return Observation(
        parameters={name: value.detach() for name, value in model.named_parameters()},
        buffers={},
        update=dict(zip(names, found, strict=True)),
        kind="gradient",
        batch_size=count,
        protocol=Protocol(name="fedsgd", batch_norm="buffers"),
        round=1,
        node="1",
    )


def attacked(spec_, victim, seen):
    (one,) = build_attack(spec_)(victim, [seen], generator=torch.Generator().manual_seed(0))
    return one


@pytest.mark.parametrize("form", SEVERAL)
def test_logits_are_taken_out_of_what_a_model_returns(form):
    model = Net(10, SEVERAL[form])
    victim = Victim(model=model, inputs=spec(10))
    seen = observed(model, lambda out: F.cross_entropy(class_scores(out, 10), torch.tensor([7])))
    found = attacked("dlg:iterations=200", victim, seen)
    assert (found.inputs - IMAGES[:1]).abs().max() < 0.02
    assert best_labels(victim, seen, generator=torch.Generator())[0].tolist() == [7]
    assert [one.code for one in victim.assumptions] == ["loss-on-logits-alone"]


@pytest.mark.parametrize("form", ONE)
@pytest.mark.parametrize("label", [0, 1])
def test_one_logit_is_attacked_by_binary_cross_entropy(form, label):
    torch.manual_seed(1)
    model = Net(1, ONE[form])
    victim = Victim(model=model, inputs=spec(2))
    binary = F.binary_cross_entropy if "probability" in form else F.binary_cross_entropy_with_logits
    seen = observed(model, lambda out: binary(class_scores(out, 2)[:, 0], torch.tensor([float(label)])))
    for attack in ("first-layer", "idlg:iterations=200", "inverting-gradients:iterations=300"):
        found = attacked(attack, victim, seen)
        assert found.labels.tolist() == [label]
        assert (found.inputs - IMAGES[:1]).abs().mean() < 0.1, attack
    assert attacked("first-layer", victim, seen).matching_loss < 1e-6, "the replayed loss is the client's"
    (assumed,) = assumptions_of(victim)
    assert assumed.code == "loss-assumed-bce"


@pytest.mark.parametrize("positive", [1, 2, 3])
def test_labels_of_a_batch_are_counted_from_one_logit(positive):
    torch.manual_seed(2)
    model = Net(1, ONE["logit"])
    labels = torch.tensor([1.0] * positive + [0.0] * (4 - positive))
    seen = observed(model, lambda out: F.binary_cross_entropy_with_logits(out[:, 0], labels), count=4)
    found, method = best_labels(Victim(model=model, inputs=spec(2)), seen, generator=torch.Generator().manual_seed(0))
    assert method in ("counts", "bias-corrected")
    assert found.tolist() == [0] * (4 - positive) + [1] * positive


def test_dlg_optimises_the_label_of_one_logit_with_the_image():
    torch.manual_seed(1)
    model = Net(1, ONE["logit"])
    seen = observed(model, lambda out: F.binary_cross_entropy_with_logits(out[:, 0], torch.ones(1)))
    found = attacked("dlg:iterations=300", Victim(model=model, inputs=spec(2)), seen)
    assert found.labels.tolist() == [1]
    assert (found.inputs - IMAGES[:1]).abs().mean() < 0.1


class Autoencoder(nn.Module):
    def __init__(self, several=False):
        super().__init__()
        self.code, self.back, self.several = nn.Linear(64, 10), nn.Linear(10, 64), several

    def forward(self, x):
        code = self.code(x.flatten(1))
        found = self.back(torch.tanh(code)).view(x.shape)
        return (found, code, code) if self.several else found


class Convolutional(nn.Module):
    """As many numbers in its code as there are classes, which makes it no classifier."""

    def __init__(self):
        super().__init__()
        self.down, self.code = nn.Conv2d(1, 12, 3, 2, 1), nn.Linear(192, 10)
        self.back = nn.ConvTranspose2d(10, 1, 8)

    def forward(self, x):
        return self.back(torch.tanh(self.code(torch.tanh(self.down(x)).flatten(1)))[..., None, None])


@pytest.mark.parametrize("several", [False, True])
def test_an_autoencoder_s_image_is_reconstructed_by_the_first_layer_and_searches_say_why_not(several):
    model = Autoencoder(several)
    victim = Victim(model=model, inputs=spec(10))
    seen = observed(model, lambda out: F.mse_loss(out[0] if several else out, IMAGES[:1]))
    found = attacked("first-layer", victim, seen)
    assert found.outcome is Outcome.CONVERGED
    assert (found.inputs - IMAGES[:1]).abs().max() < 1e-3
    assert found.labels is None, "the code's ten numbers are no classes"
    for name in ("inverting-gradients", "dlg", "idlg", "spear", "see-through-gradients"):
        assert build_attack(name).refuses(victim, seen) == because("no-class-scores", what="images"), name
    with pytest.raises(NoLossError, match="the model returns images, not class scores"):
        victim.training_loss(IMAGES, torch.zeros(4, dtype=torch.long))


def test_layers_are_inverted_without_a_loss():
    torch.manual_seed(0)
    model = Convolutional().double()
    seen = observed(model, lambda out: F.mse_loss(out, IMAGES[:1].double()))
    victim = Victim(model=model, inputs=spec(10))
    one = attacked("layerwise-inversion", victim, seen)
    assert one.labels is None
    labels, reason = best_labels(victim, seen, generator=torch.Generator())
    assert labels is None
    assert "no labels in the update: the model returns images" in reason
    assert (one.inputs - IMAGES[:1]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("layer", "codes"),
    [(nn.Dropout(0.3), ["dropout-active"]), (nn.Dropout2d(0.1), ["dropout-active"]), (nn.Dropout(0.0), [])],
)
def test_dropout_is_taken_to_be_active_while_clients_train(layer, codes):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), layer, nn.Flatten(), nn.Linear(72, 10))
    assert [one.code for one in assumptions_of(Victim(model=model, inputs=spec(10)))] == codes


def test_a_victim_that_was_looked_at_can_be_sent_to_another_process():
    victim = Victim(model=Net(1, class_of_one), inputs=spec(2))
    again = pickle.loads(pickle.dumps(victim))
    assert again.form == victim.form
    assert victim.form.one_logit


def class_of_one(logits, hidden):
    return logits


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.zeros(2, 3), "(2, 3)"),
        ({"a": torch.zeros(2), "b": None}, "a dict of a: (2,), b: NoneType"),
        ([], "a list of nothing"),
        ("text", "str"),
    ],
)
def test_outputs_in_words(output, words):
    assert describe_output(output) == words
    assert class_scores(output, 10) is None


def test_whole_numbers_are_no_scores():
    assert class_scores(torch.zeros(2, 10, dtype=torch.long), 10) is None
    assert class_scores((torch.zeros(2, 10), torch.ones(2, 10)), 10).sum() == 0
    assert class_scores((torch.zeros(2, 1, 8, 8), torch.zeros(2, 10), torch.ones(2, 10)), 10) is None
