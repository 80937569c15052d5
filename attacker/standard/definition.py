"""Definition of a standard: a frozen, numbered, parameter-free set of attacks, as AutoAttack is for robustness.

Croce, Hein: Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks (ICML
2020).
Every setting is written out, so that a default that changes elsewhere changes nothing here. The budget is counted in
iterations and never in seconds: a result does not depend on how fast a machine is. Whoever changes anything makes the
next standard; a test holds the digest.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from attacker.audit.record.counting import GAIN
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import Knowledge

_ITERATIONS: Final = 4_000
_COMMON: Final = (
    "total_variations=1e-6|1e-4|1e-2|1e-1,signed=true,boxed=true,converged_below=0.01,stop_below=0,start=normal,"
    "schedule=step,warmup=0,sign_softness=0,langevin=0,plateau=0,halving=0,image_norm=0,group_consistency=0,"
    "group_mean=mean,local_training=auto,normalise_by=batch,iterate=last,memory=2"
)
_SEARCH: Final = f"iterations={_ITERATIONS},learning_rate=0.0175,{_COMMON}"
_NO_STATISTICS: Final = "batch_norm=0,batch_norm_of=running"
_ADAPTIVE: Final = f"{_SEARCH},{_NO_STATISTICS}"
_L_BFGS: Final = (
    f"iterations={_ITERATIONS},learning_rate=1,restarts=1,converged_below=1e-6,stop_below=0,history=100,start=normal,"
    "plateau=0,image_norm=0"
)


@dataclass(frozen=True, kw_only=True)
class Standard:
    """A set of attacks with everything that its result depends on, besides the tape.

    Attributes:
        name: With its number.
        attacks: Specs, in the order in which they run.
        updates: Attacked on each tape, at most; every audit chooses them so (`choose_updates`): by the seed, spread
            over rounds, nodes and classes.
        seed: Random seed of the choice of updates and of the attacks.
        knowledge: Kinds that the attacker has.
        candidates: Other images that each true one is told from, at most.
        threads: Threads of the processor, for each attack.
        device: As torch names it.
    """

    name: str
    attacks: tuple[str, ...]
    updates: int
    seed: int
    knowledge: tuple[str, ...]
    candidates: int
    threads: int = 1
    device: str = "cpu"

    def content(self) -> dict[str, Any]:
        """Plain data that the digest is of; by which rule an image counts as reconstructed is part of it."""
        return {**asdict(self), "attacks": list(self.attacks), "knowledge": sorted(self.knowledge),
                "reconstructed": {"ssim": SUCCESS_THRESHOLD, "gain": GAIN}}  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 of the definition, 64 hexadecimal digits."""
        text = json.dumps(self.content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def settings(self) -> AuditSettings:
        """The audit that this is."""
        return AuditSettings(
            attacks=self.attacks,
            victims=self.updates,
            seed=self.seed,
            knowledge=Knowledge(frozenset(self.knowledge)),
            control=False,
            device=self.device,
            threads=self.threads,
            candidates=self.candidates,
            standard=f"{self.name} ({self.digest[:12]})",
        )


STANDARD_1: Final = Standard(
    name="standard-1",
    attacks=(
        # What is exact, or all but.
        "first-layer",
        "patch-embedding:smoothness=2,least_share=0.5",
        "through-bottleneck",
        "layerwise-inversion",
        "spear:samples=1000000,most_images=32",
        "activation-span:most_images=160,starts=384,steps=40",
        "through-branches:steps=1000,learning_rate=0.3,total_variation=0.001",
        "feature-inversion:steps=1000,learning_rate=0.3,total_variation=0.001,starts=12,any_trunk=false,noise=0",
        "hybrid:steps=30,inner=150",
        "then-refine:steps=6,inner=400,iterations=600",
        # Searches that answer the announced defence.
        f"noise-recovery:restarts=2,{_ADAPTIVE},feature_weight=1,noise_rate=0.1",
        f"defence-matched:restarts=2,{_ADAPTIVE},draws=1",
        f"noise-restoring:restarts=1,{_ADAPTIVE},noise_rate=0.1",
        f"ignore:restarts=1,{_ADAPTIVE},draws=1",
        f"dropout-inversion:restarts=1,{_ADAPTIVE},mask_rate=0.01,mask_penalty=0.0001",
        # Searches that ignore it.
        f"inverting-gradients:optimiser=adam,labels=recovered,distance=cosine,restarts=2,{_SEARCH},{_NO_STATISTICS}",
        f"statistics-matching:optimiser=adam,labels=recovered,distance=cosine,restarts=1,{_SEARCH},"
        "batch_norm=1,batch_norm_of=returned",
        f"idlg:{_L_BFGS}",
        f"dlg:{_L_BFGS}",
    ),
    updates=8,
    seed=0,
    knowledge=("batch-size", "buffers", "defence", "learning-rate"),
    candidates=1_000,
)
"""The first standard. What is changed here makes standard-2."""

STANDARDS: Final = {standard.name: standard for standard in (STANDARD_1,)}
"""By name."""
