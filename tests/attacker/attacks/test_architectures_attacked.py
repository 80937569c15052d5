"""Models not of our making behind PRECODE: their noise is recovered exactly, and they are attacked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacker.attacks import Outcome, build_attack, recover_noise
from attacker.victim import Victim
from fl_precode import Protocol, extend
from fl_precode.models import InputSpec
from tests.attacker.bottlenecked import client
from tests.fl_precode.architectures import ARCHITECTURES

SPEC = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
PROTOCOL = Protocol(name="fedsgd", defence="precode", batch_norm="buffers")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_noise_is_recovered_and_the_search_runs(name):
    torch.manual_seed(0)
    model = extend(ARCHITECTURES[name](), X, latent=16).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(torch.randn(8, 3, 32, 32))  # running statistics with which signals keep their size
    victim = Victim(model=model, inputs=SPEC)
    eps = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    seen = client(victim, X, [3], [eps], protocol=PROTOCOL, buffers=dict(victim.model.named_buffers()))
    (found,) = recover_noise(victim, seen).bottlenecks
    assert float((found.noise - eps).square().mean()) < 1e-10
    for spec in ("noise-recovery:iterations=2", "ignore:iterations=1"):
        (result,) = build_attack(spec)(victim, [seen], generator=torch.Generator().manual_seed(0))
        assert result.outcome in (Outcome.ITERATION_LIMIT, Outcome.CONVERGED), result.reason
        assert result.inputs is not None
        assert bool(result.inputs.isfinite().all())
        assert result.labels.tolist() == [3]
        assert result.matching_loss < 2
