"""Flags about time: attacks that the budget ended before they were done."""

from __future__ import annotations

from collections.abc import Iterator

from attacker.audit.view import FederationView
from attacker.report.words import attack_name, capitalised, counted


def cut_by_the_budget(view: FederationView) -> Iterator[tuple[str, str, str | None]]:
    """Attacks whose searches the budget ended: the images are the best until then, and no sign of what more finds."""
    for one in view.tried:
        rows = view.rows(one.attack)
        cut = [row for row in rows if row.cut]
        if cut:
            fewest = min(row.iterations for row in cut)
            steps = f", on one of them after {counted(fewest, 'iteration')}" if fewest else ""
            yield (
                "budget-edge",
                f"{capitalised(attack_name(one.attack))} was ended by the budget on {len(cut)} of "
                f"{counted(len(rows), 'image')}{steps}: with more time it may have brought images back.",
                one.attack,
            )
