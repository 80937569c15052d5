"""Five attacks weakened on purpose: the flags catch each, and no verdict says that a defence held.

PRECODE on an MLP stops plain gradient matching on all images, and an attack that knows it (`ignore`) brings all of them
back. Whoever breaks that attack makes PRECODE look safe, unless the audit notices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from torch import Generator, Tensor

from attacker.attacks.base import Attack, Progress, Reconstruction
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.gradient_matching.parts import Adam
from attacker.attacks.registry import ATTACKS, AttackEntry, build_attack
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.verdict.finish import finish_record
from tests.attacker.audits import audit_tapes
from tests.attacker.taped_federation import tape_federation

pytestmark = pytest.mark.slow  # a verdict of "held" takes 64 victims, and they a minute and a half

BUDGET = "iterations=30,restarts=2,total_variation=1e-3"
PLAIN, ADAPTIVE = f"inverting-gradients:{BUDGET}", f"ignore:{BUDGET}"
VICTIMS = 64


class Unchecked(Adam):
    """Adam whose settings may make no sense."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Weakened(Attack):
    """An attack with a defect that its settings would not let pass."""

    healthy: Attack
    defect: str

    @property
    def name(self) -> str:
        return self.defect

    def refuses(self, victim, observation):
        return self.healthy.refuses(victim, observation)

    def run(
        self, victim, observations, labels: list[Tensor | None], generators: list[Generator], progress: Progress | None
    ) -> list[Reconstruction]:
        alone = isinstance(self.healthy, GradientMatching)
        matching = self.healthy if alone else self.healthy.matching
        if self.defect == "zero-steps":
            matching = matching.with_options(iterations=1, learning_rate=1e-9)
        elif self.defect == "wrong-sign":
            adam = vars(matching.optimiser)
            matching = replace(matching, optimiser=Unchecked(**{**adam, "learning_rate": -adam["learning_rate"]}))
        elif self.defect == "tiny-learning-rate":
            matching = matching.with_options(learning_rate=1e-6)
        elif self.defect == "no-restarts":
            matching = matching.with_options(restarts=1)
        else:
            labels = [None if one is None else (one + 1) % victim.inputs.classes for one in labels]
        broken = matching if alone else replace(self.healthy, matching=matching)
        return broken.run(victim, observations, labels, generators, progress)


CAUGHT = {
    "zero-steps": "loss-did-not-fall",
    "wrong-sign": "loss-did-not-fall",
    "wrong-labels": "labels-unknown",
    "tiny-learning-rate": "loss-did-not-fall",
    "no-restarts": "single-start",
}


def tiles(file):
    """Images of 16 random tiles each: small, and so different that no image is a guess at another."""
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 256, (2 * VICTIMS, 4, 4), dtype=np.uint8)
    np.savez(file, images=shades.repeat(2, axis=1).repeat(2, axis=2), labels=np.arange(len(shades)) % 10)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """One audit with both healthy attacks and all weakened ones, from which audits with some of them are cut."""
    folder = tmp_path_factory.mktemp("run")
    tiles(folder / "tiles.npz")
    own = {"dataset": f"npz:{folder / 'tiles.npz'}", "clients": VICTIMS, "rounds": 1}
    sources = [
        TapeSource(tape=tape_federation(folder / defence, defence=defence, **own).tape)
        for defence in ("none", "precode")
    ]
    weakened = {}
    for defect in CAUGHT:
        for role, spec in (("plain", PLAIN), ("adaptive", ADAPTIVE)):
            weakened[f"{role}-{defect}"] = AttackEntry(
                description="weakened on purpose",
                source="none",
                build=lambda _spec, one=spec, of=defect: Weakened(healthy=build_attack(one), defect=of),
                answers=ATTACKS[spec.partition(":")[0]].answers,
            )
    with ATTACKS.instead(weakened):
        return audit_tapes(
            sources, out=folder / "audit", attacks=[PLAIN, ADAPTIVE, *weakened], victims=VICTIMS, labels="granted"
        )


def judged(record, *specs):
    """The audit as if only these attacks had been run: names of flags and the verdict of the defended federation."""
    only = {
        "attacks": [one for one in record.attacks if one.spec in specs],
        "summaries": [one for one in record.summaries if one.attack in specs],
        "results": [one for one in record.results if one.attack in specs],
    }
    finished = finish_record(record.model_copy(update=only))
    return [(one.name, one.attack) for one in finished.flags if one.federation == "f2"], finished.verdicts[1]


def test_healthy_attacks_raise_no_flag_about_themselves_and_the_leak_is_found(audited):
    raised, verdict = judged(audited, PLAIN, ADAPTIVE)
    assert not set(CAUGHT.values()) & {name for name, _ in raised}
    assert verdict.verdict == "leaks to an adaptive attacker"


@pytest.mark.parametrize(("defect", "flag"), CAUGHT.items())
def test_a_weakened_adaptive_attack_is_caught(audited, defect, flag):
    spec = f"adaptive-{defect}"
    raised, verdict = judged(audited, PLAIN, spec)
    assert (flag, spec) in raised
    assert verdict.verdict != "held against everything tried"


@pytest.mark.parametrize(("defect", "flag"), CAUGHT.items())
def test_a_weakened_plain_attack_is_caught(audited, defect, flag):
    """Beside a weakened adaptive one, so that nothing is reconstructed that would settle the matter."""
    spec = f"plain-{defect}"
    raised, verdict = judged(audited, spec, "adaptive-wrong-sign")
    assert (flag, spec) in raised
    assert verdict.verdict == "not shown to leak"


@pytest.mark.parametrize("defect", ["zero-steps", "wrong-sign", "tiny-learning-rate", "wrong-labels"])
def test_without_flags_some_would_have_passed_for_protection(audited, defect):
    """What the flags are for: with 64 victims and a control that leaks, only they stand between these and "held"."""
    raised, verdict = judged(audited, PLAIN, f"adaptive-{defect}")
    summary = next(one for one in audited.summaries if (one.federation, one.attack) == ("f2", f"adaptive-{defect}"))
    assert summary.successes == 0
    assert {name for name, _ in raised} <= {*CAUGHT.values(), "weaker-beats-stronger", "budget-edge"}
    assert verdict.verdict == "not shown to leak"
