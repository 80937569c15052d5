"""The tokens of a batch as they enter the perceptron of a transformer block: the same two spaces, one row a token."""

from __future__ import annotations

from torch import nn

from attacker.analytic.spans.stacked_layers import StackedLayers, linear_runs, stacked_layers
from attacker.gradients.trace import Trace
from attacker.gradients.uncompared_parameters import moves
from attacker.reasons import Reason, because
from attacker.victim import Victim


def perceptron_of_block(victim: Victim, trace: Trace, block: int = 0) -> StackedLayers | Reason:
    """The two layers of a transformer block's perceptron, by structure: they see (batch, tokens, width).

    Args:
        victim: Public knowledge about the model.
        trace: Says the probe.
        block: Number of the block, from 0.
    """
    found: list[StackedLayers] = []
    for module in _over_tokens(victim, trace):
        pair = stacked_layers(victim, trace, module)
        if not isinstance(pair, Reason):
            found.append(pair)
        elif pair.code == "second-layer-behind-dropout" and not found:
            return pair
        if len(found) > block:
            return found[block]
    return because("no-token-perceptron", blocks=len(found), block=block)


def _over_tokens(victim: Victim, trace: Trace) -> list[nn.Linear]:
    """Linear layers with a bias that see tokens, in order of execution."""
    return [
        run.module
        for run in linear_runs(victim, trace)
        if isinstance(run.module, nn.Linear)
        and run.received.dim() == 3
        and moves(run.module, "weight")
        and moves(run.module, "bias")
    ]
