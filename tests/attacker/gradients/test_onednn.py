"""Products with a fixed matrix: equal to torch's own, in value and in every derivative."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.gradients.distances import cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.ghost import onednn
from attacker.gradients.ghost.ghost import FactoredProducts
from attacker.gradients.ghost.onednn import MatrixProduct, worth_it
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.victim import Victim
from fl_precode.models.input_spec import InputSpec

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN"
)

_INPUTS = InputSpec(channels=1, height=16, width=16, classes=5, mean=(0.5,), std=(0.5,))


def _derivatives(product: object, rows: Tensor, direction: Tensor) -> list[Tensor]:
    """Value, gradient of its square along a direction, and the gradient of that gradient's square."""
    assert callable(product)
    inputs = rows.clone().requires_grad_(True)
    value = product(inputs)
    (first,) = torch.autograd.grad((value.tanh() * direction).sum(), inputs, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), inputs, create_graph=True)
    (third,) = torch.autograd.grad(second.square().sum(), inputs)
    return [value.detach(), first.detach(), second.detach(), third]


@pytest.mark.parametrize("rows", [1, 3, 4, 37])
@pytest.mark.parametrize("biased", [True, False])
def test_value_and_three_derivatives_are_those_of_linear(rows: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(300, 260, generator=generator) / 16
    bias = torch.randn(300, generator=generator) if biased else None
    x, direction = torch.randn(rows, 260, generator=generator), torch.randn(rows, 300, generator=generator)
    found = _derivatives(lambda one: MatrixProduct.apply(one, weight, bias), x, direction)
    exact = None if bias is None else bias.double()
    expected = _derivatives(lambda one: F.linear(one, weight.double(), exact), x.double(), direction.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_the_processor_decides_and_neither_time_nor_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for vendor, expected in (("AuthenticAMD", True), ("GenuineIntel", False)):
        info = tmp_path / vendor
        info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
        assert onednn._default_is_slow(info) is expected
    assert onednn._default_is_slow(tmp_path / "not-linux") is False


def test_it_serves_large_weights_in_float32_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_default_is_slow", lambda _: True)
    large = torch.zeros(256, 256)
    assert worth_it(large)
    assert not worth_it(large.double())
    assert not worth_it(large[:255])
    assert not worth_it(large.to("meta"))


@pytest.mark.parametrize("batch", [1, 2])
def test_candidates_of_a_large_mlp_get_the_distances_of_plain_double_backward(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "_default_is_slow", lambda _: True)
    calls: list[int] = []
    forward = MatrixProduct.forward

    def counted(ctx: object, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(len(rows))
        return forward(ctx, rows, weight, bias)

    monkeypatch.setattr(MatrixProduct, "forward", staticmethod(counted))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 300), nn.Tanh(), nn.Linear(300, 5)).eval()
    victim = Victim(model=model, name="large mlp", inputs=_INPUTS)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    replay = Replay(victim, parameters, {})
    targets = [{name: torch.randn_like(value) for name, value in parameters.items()} for _ in range(2)]
    candidates = torch.randn(2, 3, batch, *_INPUTS.shape)
    labels = torch.randint(5, (2, 3, batch))
    found = []
    for products in (
        FactoredProducts(replay, targets, trace(victim), batch_size=batch),
        LoopProducts(replay, targets),
    ):
        x = candidates.clone().requires_grad_(True)
        distances = cosine_distance(products(x, labels))
        found.append((distances.detach(), torch.autograd.grad(distances.sum(), x)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-6)
    assert float((found[0][1] - found[1][1]).norm() / found[1][1].norm()) < 1e-4
    assert set(calls) == {6 * batch}
