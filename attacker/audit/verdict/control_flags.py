"""Flags about the undefended control: whether it is a model that undefended clients could have had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attacker.audit.record.schema import ControlRound
from attacker.audit.record.view import FederationView
from attacker.wording import figure

FAR: Final = 0.25
"""Share of the defended model's loss by which that of the control may differ; at least a quarter of half a nat."""


def control_untrained(view: FederationView) -> Iterator[tuple[str, str, str | None]]:
    """A control whose loss is far from that of the defended model."""
    far = [] if view.control is None else [one for one in view.control.federation.control_training if _far(one)]
    if not far:
        return
    worst = max(far, key=lambda one: abs((one.loss or 0.0) - (one.defended_loss or 0.0)))
    yield (
        "control-untrained",
        "The control is the defended model without its bottleneck, and is not as well trained: its loss on the "
        f"clients' images is {_nats(worst.loss)} nats, that of the defended model {_nats(worst.defended_loss)} (round "
        f"{worst.round}, after {worst.steps} steps of training without the defence). Images may come back from it that "
        "no undefended federation would give away. A tape of a federation without the defence, audited beside this "
        "one, is a better control.",
        None,
    )


def _far(one: ControlRound) -> bool:
    if one.loss is None or one.defended_loss is None:
        return True
    return abs(one.loss - one.defended_loss) > FAR * max(one.defended_loss, 0.5)


def _nats(loss: float | None) -> str:
    return "not finite" if loss is None else figure(loss)
