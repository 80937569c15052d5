"""Privacy that a federation's DP-SGD has spent."""

from __future__ import annotations

import math
from typing import TypedDict

from fl_precode.defences.dp_sgd import DpSgd, dp_epsilon
from fl_precode.defences.registry import gradient_defence
from fl_precode.federation.federation import Federation
from fl_precode.randomness.entropy import NOISE_FROM_A_SEED

DELTA = 1e-5


class PrivacySpent(TypedDict):
    """For one example of the client that spent most.

    Attributes:
        epsilon: For (epsilon, delta)-differential privacy; None when infinite (no noise), not known (no Opacus) or
            void (noise from a seed that others have).
        delta: Delta of the same guarantee.
        sample_rate: Batch size over that client's examples.
        steps: Noisy gradients of that client.
        note: What the figure assumes.
    """

    epsilon: float | None
    delta: float
    sample_rate: float
    steps: int
    note: str


def privacy_spent(federation: Federation, rounds: int) -> PrivacySpent | None:
    """What the first ``rounds`` rounds cost, or None without the defence ``dp``.

    Every client is taken to work in every round, which is what the reference server asks for.
    """
    settings = federation.settings
    chain = gradient_defence(settings.defence)
    private = [part for part in chain.parts if isinstance(part, DpSgd)] if chain is not None else []
    if not private:
        return None
    (defence,) = private
    spent, note = [], "proved for Poisson sampling; batches here are shuffled and of fixed size"
    for size in {len(partition) for partition in federation.partitions}:
        rate = min(1.0, settings.batch_size / size)
        passes = settings.local_epochs * math.ceil(size / settings.batch_size)
        steps = rounds * (passes or settings.local_steps or 1)
        try:
            epsilon = dp_epsilon(noise_multiplier=defence.noise_multiplier, sample_rate=rate, steps=steps, delta=DELTA)
        except ModuleNotFoundError as error:
            epsilon, note = math.inf, str(error)
        spent.append((epsilon, rate, steps))
    epsilon, rate, steps = max(spent)
    if settings.seeded_noise:
        epsilon, note = math.inf, f"{NOISE_FROM_A_SEED}{_otherwise(epsilon)}"
    return PrivacySpent(
        epsilon=epsilon if math.isfinite(epsilon) else None,
        delta=DELTA,
        sample_rate=rate,
        steps=steps,
        note=note,
    )


def _otherwise(epsilon: float) -> str:
    """What the same run would have spent with noise that nobody can draw again."""
    known = math.isfinite(epsilon)
    return f"; with noise from the system the same run would have spent {epsilon:.3g}" if known else ""
