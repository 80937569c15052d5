"""Entrance of canaries into a client's work: as further examples of DP-SGD, else in the update before its defences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_precode.defences.dp_sgd import DpSgd
from fl_precode.defences.on_gradients import Batch
from fl_precode.defences.registry import DefenceChain
from fl_precode.observation import Gradients
from fl_precode.privacy.canaries import Inserted


@dataclass(frozen=True, kw_only=True)
class DpSgdWithCanaries(DpSgd):
    """DP-SGD with canaries among the examples: each is clipped as an example is, and the same noise covers it.

    Attributes:
        inserted: The canaries, each a gradient of one example.
    """

    inserted: Inserted

    def clipped_sum(self, gradients: Gradients, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `DpSgd`."""
        kept = float(self.kept(torch.tensor(self.inserted.canaries.norm, dtype=torch.float64)))
        return self.inserted.added_to(super().clipped_sum(gradients, model, batch), share=kept)


def as_examples(chain: DefenceChain | None, inserted: Inserted | None) -> DefenceChain | None:
    """The defences with the canaries among the examples of DP-SGD; as they are where there is none of either."""
    if chain is None or inserted is None or not chain.bounds_examples:
        return chain
    return DefenceChain(
        tuple(
            DpSgdWithCanaries(max_norm=part.max_norm, noise_multiplier=part.noise_multiplier, inserted=inserted)
            if isinstance(part, DpSgd)
            else part
            for part in chain.parts
        )
    )


def in_update(update: Gradients, chain: DefenceChain | None, inserted: Inserted | None) -> dict[str, Tensor]:
    """The update with the canaries; as it is where they are among the examples, or there are none.

    Args:
        update: Every tensor that the client trains, in the model's order, before its defences.
        chain: All defences of the client.
        inserted: What enters.
    """
    if inserted is None or (chain is not None and chain.bounds_examples):
        return dict(update)
    return inserted.added_to(update)
