"""Parameters that a bottleneck's noise hardly reaches, found from the layers that run."""

from __future__ import annotations

from attacker.gradients.trace import Trace


def before_noise(trace: Trace, *, encoder: bool = True) -> frozenset[str]:
    """Parameters of layers that run before the first bottleneck draws its noise, and not again later.

    Gradients of what runs later are those of a random sample: the decoder, everything behind it, and all later
    bottlenecks. (Those of earlier layers carry noise too, on the way back, but keep most of their direction.)

    Args:
        trace: A trace of the model.
        encoder: Whether the first bottleneck's encoder, which runs before the noise is drawn, counts as well.

    Returns:
        Their names; none without a bottleneck.
    """
    if not trace.bottlenecks:
        return frozenset()
    first = trace.bottlenecks[0].name
    inside = f"{first}." if first else ""
    names = [run.name for run in trace.layers]
    entered = next((place for place, name in enumerate(names) if name.startswith(inside)), 0)
    last = entered
    if encoder:
        while last < len(names) and f"{names[last]}.".startswith(f"{inside}encoder."):
            last += 1
    return frozenset(
        f"{run.name}.{name}" if run.name else name
        for run in trace.layers[:last]
        if run.name not in names[last:]
        for name, _ in run.module.named_parameters(recurse=False)
    )
