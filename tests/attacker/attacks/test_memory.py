"""Memory decides how many candidates run together, never what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacker.attacks import PRESETS, GradientMatching, Outcome, Reconstruction
from attacker.attacks.gradient_matching.batch import group_pieces
from attacker.attacks.gradient_matching.memory import better, pieces_within_budget
from attacker.attacks.gradient_matching.parts import L1, Cosine, ReplayMode
from attacker.attacks.gradient_matching.replay import weights_may_differ
from attacker.attacks.side_information import PLAIN, SideInformation
from attacker.gradients.client_mode import AsTrained
from attacker.gradients.memory_budget import GIB, EvaluationMemory, default_budget, evaluation_memory, peak_bytes
from attacker.gradients.observed import observed_gradient
from attacker.gradients.one_step import gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.optim.random_streams import Draws
from attacker.reasons import because
from attacker.victim import Victim
from fl_precode.observation import Observation, Protocol
from tests.attacker import tiny

CPU = torch.device("cpu")
SPEC = tiny.inputs()
QUICK = GradientMatching().with_options(iterations=20, learning_rate=0.3, restarts=4)
IDLG = PRESETS["idlg"].with_options(iterations=20, restarts=2)
PRESET_DLG = PRESETS["dlg"].with_options(iterations=20, restarts=2)


class Cramped(nn.Module):
    """Has memory for so many images in one pass."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images
        self.net = tiny.mlp(SPEC)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.images:
            raise torch.OutOfMemoryError(f"no memory for {len(x)} images")
        return self.net(x)


def federation(model: nn.Module, victims: int = 3) -> tuple[Victim, list[Observation]]:
    victim = tiny.victim(model, SPEC)
    return victim, [tiny.observe(victim, tiny.images(SPEC, 1, seed=index), [index]) for index in range(victims)]


def attack(settings: GradientMatching, victim: Victim, seen: list[Observation]) -> list[Reconstruction]:
    return settings(victim, seen, generator=torch.Generator().manual_seed(3))


def test_a_peak_is_what_is_alive_at_once():
    def work() -> float:
        whole = torch.ones(2**20)  # 4 MiB
        for _ in range(3):
            whole = whole * 2  # two of them alive for a moment
        return float(whole[0])

    assert 2 * 2**22 <= peak_bytes(work, CPU) <= 2 * 2**22 + 64
    assert peak_bytes(lambda: torch.ones(2**20).sum(), CPU) < 2**22 + 64
    before = torch.ones(2**20)
    assert peak_bytes(lambda: before.view(-1, 2).mul_(2).sum(), CPU) <= 64, "views of what was there take nothing"


@pytest.mark.parametrize("build", [tiny.mlp, tiny.convnet], ids=lambda one: one.__name__)
@pytest.mark.parametrize("bottleneck", [False, True])
def test_two_evaluations_predict_a_larger_one(build, bottleneck):
    victim, (seen, *_) = federation(build(SPEC, bottleneck=bottleneck))
    traced = trace(victim)
    replay = Replay(victim, seen.parameters, seen.buffers)
    products = gradient_products(replay, [observed_gradient(seen)], traced, batch_size=1)
    needed = evaluation_memory(products, torch.zeros(1, *SPEC.shape, dtype=torch.float64), traced.latents)

    def evaluate() -> None:
        x = torch.zeros(1, 32, 1, *SPEC.shape, dtype=torch.float64).requires_grad_(True)
        noise = [x.new_zeros(1, 32, 1, *latent) for latent in traced.latents]
        found = products(x, torch.zeros(1, 32, 1, dtype=torch.long), noise)
        torch.autograd.grad((found.inner + found.square).sum(), x)

    peak = peak_bytes(evaluate, CPU)
    assert peak <= needed.fixed + 32 * needed.per_candidate <= 3 * peak


def test_a_budget_is_shared_out_among_candidates():
    needed = EvaluationMemory(fixed=100, per_candidate=10)
    assert needed.candidates_within(200, images=1, restarts=1, device=CPU) == 10
    assert needed.candidates_within(50, images=1, restarts=1, device=CPU) == 1  # less than one cannot be done
    assert needed.candidates_within(GIB, images=4, restarts=1, device=CPU) == 16  # more do not pay on a CPU
    assert needed.candidates_within(GIB, images=4, restarts=1, device=torch.device("cuda")) == (GIB - 100) // 10
    own = replace(needed, per_victim=40)
    assert own.candidates_within(200, images=1, restarts=1, device=CPU) == 2
    assert own.candidates_within(200, images=1, restarts=4, device=CPU) == 5
    assert default_budget(CPU) == 2 * GIB


def test_pieces_hold_as_many_candidates_as_the_budget_does():
    victim, seen = federation(tiny.mlp(SPEC))
    targets, labels = [observed_gradient(one) for one in seen], [torch.tensor([0])] * 3
    draws = Draws.seeded(3, 4, torch.Generator().manual_seed(0))
    (whole,) = group_pieces(
        AsTrained(victim, victim, range(3), seen, seen),
        trace(victim),
        targets,
        labels,
        draws,
        knowledge=[SideInformation()] * 3,
        noise=PLAIN,
        joint=False,
        may_differ=None,
    )
    assert [piece.draws.axes for piece in pieces_within_budget(QUICK, whole)] == [(3, 4)]
    smallest = pieces_within_budget(QUICK.with_options(memory=1e-9), whole)
    assert [piece.draws.axes for piece in smallest] == [(1, 1)] * 12
    assert [piece.indices for piece in whole.within(3)] == [[0], [0], [1], [1], [2], [2]]
    assert [piece.draws.axes for piece in whole.within(9)] == [(2, 4), (1, 4)]
    compared = pieces_within_budget(QUICK.with_options(memory=1e-9, halving=2), whole)
    assert [piece.draws.axes for piece in compared] == [(1, 4)] * 3


@pytest.mark.parametrize(
    "settings",
    [QUICK, QUICK.with_options(halving=2, langevin=0.1), QUICK.with_options(group_consistency=0.1), IDLG, PRESET_DLG],
    ids=["plain", "halving", "consensus", "idlg", "dlg"],
)
@pytest.mark.parametrize("bottleneck", [False, True])
def test_the_budget_changes_memory_and_not_the_result(settings, bottleneck):
    torch.manual_seed(0)
    victim, seen = federation(tiny.mlp(SPEC, bottleneck=bottleneck))
    for one, other in zip(
        attack(settings, victim, seen), attack(settings.with_options(memory=1e-9), victim, seen), strict=True
    ):
        torch.testing.assert_close(one.inputs, other.inputs, atol=1e-5, rtol=0)  # L-BFGS magnifies rounding
        assert one.matching_loss == pytest.approx(other.matching_loss, abs=1e-8)
        assert one.labels.tolist() == other.labels.tolist()


def test_out_of_memory_halves_the_piece_and_goes_on():
    torch.manual_seed(0)
    roomy, seen = federation(Cramped(1000))
    expected = attack(QUICK, roomy, seen)
    roomy.model.images = 3  # the two candidates that are measured fit, all twelve together do not
    for one, other in zip(expected, attack(QUICK, roomy, seen), strict=True):
        torch.testing.assert_close(one.inputs, other.inputs, atol=1e-8, rtol=0)


def test_one_candidate_that_does_not_fit_is_named():
    victim, seen = federation(Cramped(1000))
    victim.model.images = 0
    traceable = QUICK.with_options(iterations=1)
    with pytest.raises(torch.OutOfMemoryError):
        trace(victim)  # not even a forward pass
    victim.model.images = 2
    batches = [tiny.observe(tiny.victim(tiny.mlp(SPEC), SPEC), tiny.images(SPEC, 3), [0, 1, 2])]
    batches = [
        replace(one, parameters={f"net.{n}": v for n, v in one.parameters.items()},
                update={f"net.{n}": v for n, v in one.update.items()})
        for one in batches
    ]  # fmt: skip
    (found,) = traceable(victim, batches, generator=torch.Generator(), labels=[torch.tensor([0, 1, 2])])
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert found.reason == because("out-of-memory", what="one candidate", images=3)


def test_restarts_that_are_compared_and_do_not_fit_are_named():
    victim, seen = federation(Cramped(1000))
    expected = attack(QUICK.with_options(halving=2), victim, seen)
    victim.model.images = 4
    for one, other in zip(expected, attack(QUICK.with_options(halving=2), victim, seen), strict=True):
        torch.testing.assert_close(one.inputs, other.inputs, atol=1e-8, rtol=0)
    victim.model.images = 3
    (found, *_) = attack(QUICK.with_options(halving=2), victim, seen)
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert found.reason_codes == ("out-of-memory",)


def test_of_split_restarts_the_best_match_wins_and_time_adds_up():
    lost = Reconstruction(inputs=None, labels=None, outcome=Outcome.DIVERGED, seconds=1.0)
    found = [replace(lost, outcome=Outcome.ITERATION_LIMIT, matching_loss=loss) for loss in (0.5, 0.25)]
    assert better(None, lost) is lost
    assert better(lost, found[0]).matching_loss == 0.5
    assert better(*found).matching_loss == 0.25
    assert better(*found).seconds == 2.0


def test_victims_of_different_rounds_are_attacked_in_one_piece_with_the_same_result():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.BatchNorm2d(1), tiny.mlp(SPEC)) for _ in range(3)]
    seen = []
    for index, model in enumerate(models):
        model[0].running_mean.fill_(0.1 * index)
        one = tiny.observe(tiny.victim(model, SPEC), tiny.images(SPEC, 1, seed=index), [index], round=1 + index)
        state = {name: value.clone() for name, value in model.named_buffers()}
        seen.append(replace(one, buffers=state))
    victim = tiny.victim(models[0], SPEC)
    may_differ = weights_may_differ(
        ReplayMode.AUTO, Cosine(), victim, trace(victim), seen, [SideInformation()] * len(seen)
    )
    assert may_differ == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    draws = Draws.seeded(3, 4, torch.Generator().manual_seed(0))
    targets, labels = [observed_gradient(one) for one in seen], [torch.tensor([index]) for index in range(3)]
    clients = AsTrained(victim, victim, range(3), seen, seen)
    apart, together = (
        group_pieces(
            clients,
            trace(victim),
            targets,
            labels,
            draws,
            knowledge=[SideInformation()] * 3,
            noise=PLAIN,
            joint=False,
            may_differ=names,
        )
        for names in (None, may_differ)
    )
    assert [piece.draws.axes for piece in apart] == [(1, 4)] * 3
    assert [piece.own_weights for piece in apart] == [False] * 3
    (whole,) = together
    assert whole.own_weights
    expected = [QUICK.reconstruct(piece.part(range(1), range(4)), None)[0] for piece in apart]
    for one, other in zip(QUICK.reconstruct(whole.part(range(3), range(4)), None), expected, strict=True):
        torch.testing.assert_close(one.inputs, other.inputs, atol=1e-8, rtol=0)
    by_element = weights_may_differ(ReplayMode.AUTO, L1(), victim, trace(victim), seen, [SideInformation()] * len(seen))
    assert by_element is None
    several = [replace(one, kind="weights", protocol=Protocol(local_steps=4)) for one in seen]
    may_differ = weights_may_differ(ReplayMode.AUTO, Cosine(), victim, trace(victim), several, [SideInformation()] * 3)
    assert may_differ is None
