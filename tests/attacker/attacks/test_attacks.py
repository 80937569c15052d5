"""One table of attacks, models and how close the image must come; then what each setting and rule does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from attacker.attacks import (
    ATTACKS,
    PRESETS,
    Attack,
    FirstLayerInversion,
    GradientMatching,
    Outcome,
    Reconstruction,
    build_attack,
)
from attacker.attacks.gradient_matching.parts import Adam, Restarts, TotalVariation
from attacker.metrics.similarity import match_batch, mse
from fl_precode.models.input_spec import InputSpec
from tests.attacker import tiny

QUICK = GradientMatching().with_options(iterations=300, total_variation=0.0)


@dataclass(frozen=True)
class Case:
    """An attack on a batch of a model, and the largest (or smallest) mean squared error on [0, 1] images."""

    attack: Attack
    model: Callable[[InputSpec], nn.Module]
    max_mse: float | None = None
    min_mse: float | None = None
    batch: int = 1
    learning_rate: float | None = None
    dtype: torch.dtype = torch.float64

    def __repr__(self) -> str:
        kind = "gradient" if self.learning_rate is None else "weights"
        return f"{self.attack.name} {self.model.__name__} batch {self.batch} {kind} {self.dtype}"


def protected_mlp(spec: InputSpec) -> nn.Module:
    return tiny.mlp(spec, bottleneck=True)


def protected_convnet(spec: InputSpec) -> nn.Module:
    return tiny.convnet(spec, bottleneck=True)


def one_layer(spec: InputSpec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.height * spec.width * spec.channels, spec.classes))


CASES = [
    Case(FirstLayerInversion(), tiny.mlp, max_mse=1e-20),
    Case(FirstLayerInversion(), protected_mlp, max_mse=1e-20),
    Case(FirstLayerInversion(), one_layer, max_mse=1e-20),
    Case(FirstLayerInversion(), tiny.mlp, max_mse=1e-20, learning_rate=0.05),
    Case(FirstLayerInversion(), protected_mlp, max_mse=1e-9, dtype=torch.float32),
    Case(QUICK, tiny.mlp, max_mse=1e-4),
    Case(QUICK, tiny.mlp, max_mse=1e-4, learning_rate=0.05),
    Case(QUICK, tiny.mlp, max_mse=1e-3, dtype=torch.float32),
    Case(QUICK, tiny.mlp, max_mse=2e-2, batch=2),
    Case(QUICK, tiny.convnet, max_mse=2e-2),
    Case(QUICK, protected_convnet, min_mse=5e-2),
]


def attack_case(case: Case) -> tuple[Reconstruction, torch.Tensor]:
    torch.manual_seed(0)
    spec = tiny.inputs()
    victim = tiny.victim(case.model(spec), spec, dtype=case.dtype)
    x, y = tiny.images(spec, case.batch, dtype=case.dtype), list(range(1, 1 + case.batch))
    observation = tiny.observe(victim, x, y, learning_rate=case.learning_rate)
    granted = None if case.batch == 1 else [torch.tensor(y)]
    (found,) = case.attack(victim, [observation], generator=torch.Generator().manual_seed(1), labels=granted)
    assert found.inputs is not None, found.reason
    assert found.inputs.shape == x.shape
    assert found.inputs.dtype == case.dtype
    assert found.labels is not None
    assert found.labels.tolist() == y
    assert found.matching_loss is None or found.matching_loss >= 0
    images, truth = spec.denormalise(found.inputs), spec.denormalise(x)
    return found, mse(images[match_batch(images, truth)], truth)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_attack(case):
    found, errors = attack_case(case)
    if case.max_mse is not None:
        assert float(errors.max()) <= case.max_mse
        assert found.outcome is Outcome.CONVERGED
    if case.min_mse is not None:
        assert float(errors.min()) >= case.min_mse
        assert found.outcome is Outcome.ITERATION_LIMIT


def results(attack: Attack, *, seed: int = 0, victims: int = 1, bottleneck: bool = False) -> list[Reconstruction]:
    torch.manual_seed(0)
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec, bottleneck=bottleneck), spec)
    seen = [tiny.observe(victim, tiny.images(spec, 1, seed=index), [index % 4]) for index in range(victims)]
    return attack(victim, seen, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "changed",
    [
        {"iterations": 41},
        {"learning_rate": 0.05},
        {"total_variation": 0.5},
        {"restarts": 4},
        {"signed": False},
        {"boxed": False},
        {"converged_below": 2.0},
    ],
    ids=str,
)
def test_every_setting_changes_the_result(changed):
    plain = GradientMatching().with_options(iterations=40, learning_rate=0.3, total_variation=0.0, converged_below=1e-9)
    (one,), (other,) = results(plain), results(plain.with_options(**changed))
    same = torch.equal(one.inputs, other.inputs) and one.outcome is other.outcome
    assert not same


def test_more_restarts_never_score_worse():
    # The first restart is the same for both.
    scores = [results(GradientMatching().with_options(iterations=30, restarts=n))[0].matching_loss for n in (1, 6)]
    assert scores[1] <= scores[0]


def test_boxed_candidates_are_valid_images():
    spec = tiny.inputs()
    found = results(GradientMatching().with_options(iterations=60, learning_rate=1.0))[0].inputs
    assert torch.equal(spec.clamp(found), found)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_randomness_comes_from_the_generator_alone(bottleneck):
    attack = GradientMatching().with_options(iterations=5)
    before = torch.get_rng_state()
    first = results(attack, bottleneck=bottleneck)[0]
    torch.manual_seed(99)
    again, other = results(attack, bottleneck=bottleneck)[0], results(attack, seed=1, bottleneck=bottleneck)[0]
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    torch.manual_seed(0)
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec, bottleneck=bottleneck), spec)
    observation = tiny.observe(victim, tiny.images(spec, 1), [0])
    state = torch.get_rng_state()
    attack(victim, [observation], generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())
    torch.set_rng_state(before)


def test_a_weights_update_is_attacked_with_the_sign_of_a_gradient():
    torch.manual_seed(0)
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    x = tiny.images(spec, 1)
    seen = [tiny.observe(victim, x, [2]), tiny.observe(victim, x, [2], learning_rate=0.05)]
    # One at a time with the same seed: the same starts, hence the same steps.
    found = [
        GradientMatching().with_options(iterations=20)(victim, [one], generator=torch.Generator().manual_seed(0))[0]
        for one in seen
    ]
    torch.testing.assert_close(found[0].inputs, found[1].inputs, atol=1e-6, rtol=0)
    assert found[0].matching_loss == pytest.approx(found[1].matching_loss, abs=1e-9)


def test_victims_of_several_rounds_keep_their_order_and_their_labels():
    torch.manual_seed(0)
    spec = tiny.inputs()
    rounds = [tiny.victim(tiny.mlp(spec), spec) for _ in range(2)]
    truths = [tiny.images(spec, 1, seed=index) for index in range(4)]
    seen = [
        tiny.observe(rounds[index % 2], truths[index], [index], round=1 + index % 2, node=str(index))
        for index in range(4)
    ]
    found = QUICK.with_options(iterations=400)(rounds[0], seen, generator=torch.Generator().manual_seed(0))
    for index, (one, truth) in enumerate(zip(found, truths, strict=True)):
        assert one.labels.tolist() == [index]
        assert float(mse(spec.denormalise(one.inputs), spec.denormalise(truth))) < 1e-3
        assert one.iterations == 400
        assert one.seconds > 0


def test_many_victims_are_attacked_in_pieces():
    shares: list[float] = []
    torch.manual_seed(0)
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    seen = [tiny.observe(victim, tiny.images(spec, 1, seed=index), [index % 4]) for index in range(70)]
    attack = GradientMatching().with_options(iterations=2)
    found = attack(
        victim, seen, generator=torch.Generator().manual_seed(0), progress=lambda done, _: shares.append(done)
    )
    assert len(found) == 70
    assert [one.labels.tolist() for one in found] == [[index % 4] for index in range(70)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert 0.5 in shares  # the first of two pieces


def test_first_layer_measures_the_match_only_where_a_replay_is_possible():
    plain, protected = (results(FirstLayerInversion(), bottleneck=bottleneck)[0] for bottleneck in (False, True))
    assert plain.matching_loss == pytest.approx(0, abs=1e-12)
    assert protected.matching_loss is None
    assert protected.iterations == 0


def test_first_layer_uses_granted_labels_and_reports_progress():
    torch.manual_seed(0)
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    observation = tiny.observe(victim, tiny.images(spec, 1), [3])
    shares: list[float] = []
    (found,) = FirstLayerInversion()(
        victim,
        [observation],
        generator=torch.Generator(),
        labels=[torch.tensor([1])],
        progress=lambda done, _: shares.append(done),
    )
    assert found.labels.tolist() == [1]
    assert shares == [1.0]


def test_first_layer_finds_one_image_by_rank_when_the_batch_size_is_withheld():
    torch.manual_seed(0)
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    x = tiny.images(spec, 1)
    observation = tiny.observe(victim, x, [3], batch_size=None)
    (found,) = FirstLayerInversion()(victim, [observation], generator=torch.Generator())
    torch.testing.assert_close(found.inputs, x, atol=1e-10, rtol=0)


def test_registry_builds_every_attack_by_name():
    for name, entry in ATTACKS.items():
        assert build_attack(name).name == name
        assert entry.description
        assert entry.source
    assert build_attack("inverting-gradients") == PRESETS["inverting-gradients"] == GradientMatching()
    assert build_attack("inverting-gradients:preset=precode-paper") == PRESETS["precode-paper"]


def test_specs_carry_settings():
    spec = (
        "inverting-gradients:iterations=600,total_variation=1e-6,learning_rate=0.01,restarts=2,signed=false,boxed=true"
    )
    assert build_attack(spec) == GradientMatching(
        optimiser=Adam(iterations=600, learning_rate=0.01, signed=False, boxed=True),
        priors=[TotalVariation(1e-6)],
        restarts=Restarts(2),
    )
