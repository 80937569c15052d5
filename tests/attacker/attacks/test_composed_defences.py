"""One attack knows every part of a composed defence: each part that it is told of changes what it finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import GradientMatching, Outcome, build_attack
from attacker.attacks.adaptive.dropout_inversion import DropoutInversion
from attacker.attacks.announced_update import COMPARED, announced_comparison
from attacker.attacks.registry import ATTACKS
from attacker.attacks.selection import answers, parts_of
from attacker.gradients.dropout_masks import with_masks
from attacker.gradients.trace import trace
from attacker.metrics.similarity import ssim
from attacker.reasons import because
from attacker.victim import Victim
from clients.train import defended_gradient
from fl_precode import Observation, Protocol, sample_noise
from fl_precode.defences.precode import VariationalBottleneck
from fl_precode.defences.registry import DEFENCES, gradient_defence
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import prepare
from tests.attacker import tiny
from tests.attacker.bottlenecked import SPEC, client, normal, spread
from tests.attacker.members import run, victim_of

X = tiny.images(SPEC, 1)
LABEL = [torch.tensor([2])]
SEARCH = GradientMatching().with_options(iterations=12, total_variation=0.0)

UPDATE = {
    "noise": "noise:std=1e-3",
    "laplace": "laplace:std=1e-3",
    "prune": "prune:share=0.7",
    "quantise": "quantise:bits=3",
    "sign": "sign",
    "soteria": "soteria:share=0.5,layer=6",
    "clip": "noise:std=1e-3+clip:max_norm=1e-2",  # alone it changes no direction, and none is what is compared
    "ppp": "ppp:std=1e-3",
    "local-dp": "local-dp:clip=10,sensitivity=1e-3,epsilon=1,delta=1e-5",
    "central-dp": "noise:std=1e-3+central-dp:clip=1e-2",
    "percentile": "percentile:share=30,gamma=1",
    "svt": "svt:gamma=1e-3,tau=1e-3,epsilon=100",
}
"""A defence on the update for each name that a comparison takes into account."""


def everything(*middle: nn.Module) -> Victim:
    """A model with dropout, a bottleneck and two Linear layers behind it."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Dropout(0.5), VariationalBottleneck(64, latent=5),
        *(middle or [nn.Sigmoid()]), nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 4),
    )  # fmt: skip
    return Victim(model=spread(model), inputs=SPEC)


def bernoulli(*shape: int, keep: float = 0.5) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < keep).double()


def sent(victim, update, announced, noise):
    """What a client sends whose model drew this noise, under a defence on the update and another announced one."""
    masked = replace(victim, model=with_masks(victim.model))
    seen = client(masked, X, LABEL[0].tolist(), noise)
    chain = gradient_defence(f"precode+{update}")
    assert chain is not None
    changed = chain(
        seen.update, generator=torch.Generator().manual_seed(3), model=victim.model.train(), batch=(X, LABEL[0])
    )
    victim.model.eval()
    return replace(seen, update=changed, protocol=replace(seen.protocol, defence=announced))


def test_every_part_that_is_compared_has_a_case():
    assert UPDATE.keys() == COMPARED <= DEFENCES.keys()


@pytest.mark.parametrize("name", sorted(UPDATE))
def test_a_search_for_masks_and_noise_is_another_for_each_part_of_the_update_that_it_knows(name):
    """Knowing the part changes the images; ignoring the announcement gives what not knowing gives."""
    victim = everything()
    noise = [bernoulli(1, 64), normal(1, 5)]
    whole = f"precode+dropout+{UPDATE[name]}"
    less = "+".join(part for part in whole.split("+") if not part.startswith(name))
    attack = DropoutInversion(matching=SEARCH)
    assert set(answers("dropout-inversion", whole)) == {*parts_of(whole)}
    told, half, deaf = (
        run(one, victim, [sent(victim, UPDATE[name], announced, noise)], labels=LABEL)[0]
        for one, announced in ((attack, whole), (attack, less), (replace(attack, announced=False), whole))
    )
    assert told.noise[0].shape == noise[0].shape
    assert told.noise[1].shape == noise[1].shape
    assert not torch.equal(told.inputs, half.inputs)
    if name not in ("clip", "central-dp"):  # which leaves the noise to be told of
        assert torch.equal(half.inputs, deaf.inputs)
        assert half.reason == ""
    assert told.reason_codes[0] == "distance-chosen"


def of_faces(model: str, defence: str, clients: int):
    """The victim, and of each client what it sends, its image and its label."""
    settings = Settings(dataset="faces", model=model, defence=defence, num_clients=clients, num_server_rounds=1)
    federation = prepare(settings)
    net, inputs = federation.model(), federation.data.inputs
    parameters = {name: value.detach().clone() for name, value in net.named_parameters()}
    seen, truths, labels = [], [], []
    for client_id in range(clients):
        images, classes = federation.data.train.batch(federation.batches(client_id, 1)[0])
        batch = inputs.normalise(images), classes
        generator = torch.Generator().manual_seed(client_id)
        with sample_noise(generator=torch.Generator().manual_seed(client_id)):
            sent_gradient, _ = defended_gradient(net, batch, gradient_defence(defence), generator)
        update = {name: sent_gradient[name].detach() for name in parameters}
        seen.append(
            Observation(
                parameters=parameters, buffers={}, update=update, kind="gradient", batch_size=1,
                protocol=settings.announced, round=1, node=str(client_id),
            )
        )  # fmt: skip
        truths.append(images)
        labels.append(classes)
    return Victim(model=net, inputs=inputs), seen, truths, labels


def test_on_photographs_the_same_search_is_far_ahead_where_it_knows_of_the_pruning():
    """A bottleneck whose noise is searched, and only what pruning left: on a LeNet, the defence being real."""
    victim, seen, truths, labels = of_faces("lenet", "cvb:beta=0.001+prune:share=0.7", clients=2)
    likeness = []
    for spec in ("noise-restoring", "noise-restoring:distance=cosine"):
        attack = build_attack(f"{spec}{',' if ':' in spec else ':'}iterations=120,total_variation=1e-3")
        found = run(attack, victim, seen, labels=labels)
        shown = [victim.inputs.denormalise(one.inputs).clamp(0, 1) for one in found]
        likeness.append(sum(float(ssim(one, x)) for one, x in zip(shown, truths, strict=True)) / len(truths))
    both, noise_alone = likeness
    assert both > 3 * noise_alone


def test_noise_that_filled_pruned_numbers_is_taken_out_again():
    victim = victim_of(tiny.convnet)
    plain = tiny.observe(victim, X, [2])
    pruned = gradient_defence("prune:share=0.7")(plain.update, generator=torch.Generator())
    for order, filled in (("prune:share=0.7+noise:std=1e-6", True), ("noise:std=1e-6+prune:share=0.7", False)):
        update = gradient_defence(order)(plain.update, generator=torch.Generator().manual_seed(0))
        seen = replace(plain, update=update, protocol=Protocol(defence=order))
        found = announced_comparison(seen, trace(victim))
        assert found.distance == "l2-relative-kept"
        assert any(bool((update[name] != 0)[value == 0].any()) for name, value in pruned.items()) == filled
        for name, value in pruned.items():
            assert torch.equal(found.observation.update[name] != 0, value != 0), name


def test_tensors_are_compared_in_units_of_their_own_steps_and_of_the_noise():
    victim = victim_of(tiny.convnet)
    seen = tiny.observe(victim, X, [2])

    def units(defence):
        return announced_comparison(replace(seen, protocol=Protocol(defence=defence)), trace(victim)).units

    largest = {name: float(value.abs().max()) for name, value in seen.update.items()}
    steps = units("quantise:bits=4")
    for name, one in steps.items():
        assert one / steps["0.weight"] == pytest.approx(largest[name] / largest["0.weight"])
    noisy = units("noise:std=10+quantise:bits=4")  # far above every step
    assert max(noisy.values()) / min(noisy.values()) < 1.01
    assert units("sign")["0.weight"] / units("sign")["0.bias"] == pytest.approx(largest["0.weight"] / largest["0.bias"])
    assert units("noise:std=1e-3") == units("noise:std=1e-3+sign") == {}


def test_several_local_steps_are_compared_in_units_too():
    victim = victim_of()
    seen = tiny.observe(victim, X, [2], learning_rate=0.05)
    protocol = Protocol(name="fedavg", local_steps=3, learning_rate=0.05, batch_size=1, defence="quantise:bits=2")
    update = gradient_defence("quantise:bits=2")(seen.update, generator=torch.Generator().manual_seed(0))
    seen = replace(seen, update=update, protocol=protocol)
    found = [
        run(build_attack(f"defence-matched:iterations=1,local_training={how}"), victim, [seen], labels=LABEL)[0]
        for how in ("unrolled", "surrogate")
    ]
    for one in found:
        assert one.reason == because("distance-chosen", distance="l2-relative")
        assert one.starting_loss is not None
    assert found[0].starting_loss != found[1].starting_loss


# They read more than one layer: test_patch_embedding.py, test_activation_span.py.
SEVERAL_LAYERS = {"patch-embedding", "activation-span"}


@pytest.mark.parametrize(
    "name", [name for name, entry in ATTACKS.items() if entry.oblivious and name not in SEVERAL_LAYERS]
)
def test_dropout_in_front_of_everything_touches_the_first_layers_formulas(name):
    """They answer dropout because it stands behind the first layer: where it does not, they are refused."""
    layers = [nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 4)]
    assert "dropout" in ATTACKS[name].answers
    for place, refused in ((0, True), (1, True), (2, False), (3, False)):
        model = nn.Sequential(*layers[:place], nn.Dropout(0.5), *layers[place:])
        victim = Victim(model=spread(model), inputs=SPEC)
        (one,) = run(build_attack(name), victim, [tiny.observe(victim, X, [2])])
        assert (one.outcome is Outcome.NOT_APPLICABLE) == refused
        assert ("first-layer-behind-dropout" in one.reason_codes) == refused


def test_an_announced_defence_in_nobodys_terms_changes_nothing():
    victim = Victim(
        model=spread(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.5), nn.Linear(8, 4))), inputs=SPEC
    )
    seen = [
        replace(tiny.observe(victim, X, [2]), protocol=Protocol(defence=one, batch_norm="buffers"))
        for one in ("dropout", "our own: secret", "dropout+blur:radius=2")
    ]
    found = [run(DropoutInversion(matching=SEARCH), victim, [one], labels=LABEL)[0] for one in seen]
    assert torch.equal(found[0].inputs, found[1].inputs)
    assert torch.equal(found[0].inputs, found[2].inputs)
