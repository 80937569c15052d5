"""Flags about the undefended control: whether it is a model that undefended clients could have had."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attacker.audit.record.flag_sentences import Found, raised_flag
from attacker.audit.record.schema import ControlRound
from attacker.audit.record.view import FederationView
from attacker.wording import figure

FAR: Final = 0.25
"""Share of the defended model's loss by which that of the control may differ; at least a quarter of half a nat."""


def control_untrained(view: FederationView) -> Iterator[Found]:
    """A control whose loss is far from that of the defended model."""
    far = (
        []
        if view.control is None
        else [control_round for control_round in view.control.federation.control_training if _far(control_round)]
    )
    if not far:
        return
    worst = max(far, key=lambda control_round: abs((control_round.loss or 0.0) - (control_round.defended_loss or 0.0)))
    yield raised_flag(
        "control-untrained",
        loss=_nats(worst.loss),
        defended=_nats(worst.defended_loss),
        round=worst.round,
        steps=worst.steps,
    )


def _far(control_round: ControlRound) -> bool:
    if control_round.loss is None or control_round.defended_loss is None:
        return True
    return abs(control_round.loss - control_round.defended_loss) > FAR * max(control_round.defended_loss, 0.5)


def _nats(loss: float | None) -> str:
    return "not finite" if loss is None else figure(loss)
