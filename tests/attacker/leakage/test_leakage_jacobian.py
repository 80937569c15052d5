"""J is the derivative of the gradient, for whatever autograd differentiates twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacker.leakage import EXACT_NUMBERS, Jacobian, draw_noise, released, spectrum
from attacker.leakage.jacobian import Jacobian as Plain
from attacker.victim import Victim
from fl_precode.defences.registry import apply_defence
from fl_precode.models import InputSpec, build_model
from tests.attacker import literature, tiny

SPEC = InputSpec(channels=2, height=4, width=4, classes=3, mean=(0.4, 0.5), std=(0.2, 0.3))
KINDS = ("conv", "mlp", "bottleneck", "residual", "attention", "pooled")


def made(kind: str, *, dtype: torch.dtype = torch.float64, unknown: bool = False) -> Jacobian:
    """J of a small net of one kind at a random image."""
    torch.manual_seed(3)
    if kind in ("conv", "bottleneck"):
        model: nn.Module = tiny.convnet(SPEC, bottleneck=kind == "bottleneck")
    else:
        model = tiny.mlp(SPEC) if kind == "mlp" else literature.small(kind, SPEC)
    victim = Victim(model=model.to(dtype), inputs=SPEC)
    noise = draw_noise(victim, 1, generator=torch.Generator().manual_seed(1))
    of = released(victim, torch.tensor([1]), noise=noise)
    return Jacobian(of, literature.image(0, SPEC).to(dtype), noise_unknown=unknown)


def by_differences(jacobian: Jacobian, step: float = 1e-6) -> torch.Tensor:
    """Central differences of plain gradients, (rows, columns)."""
    rows = []
    for k in range(jacobian.pixels.numel()):
        unit = torch.zeros(jacobian.pixels.numel(), dtype=torch.float64)
        unit[k] = step
        moved = [jacobian.pixels + sign * unit.reshape(jacobian.pixels.shape) for sign in (1, -1)]
        above, below = (jacobian.of.flat(jacobian.of.gradient(one)) for one in moved)
        rows.append((above - below) / (2 * step))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_differences_of_gradients(kind):
    jacobian = made(kind)
    expected = by_differences(jacobian)
    torch.testing.assert_close(jacobian.matrix(), expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_and_by_products_agree(kind, generator):
    jacobian = made(kind)
    matrix = jacobian.matrix()
    v = torch.randn(jacobian.columns, generator=generator, dtype=torch.float64)
    u = torch.randn(jacobian.rows, generator=generator, dtype=torch.float64)
    close = {"rtol": 1e-8, "atol": 1e-8 * float(matrix.norm())}
    torch.testing.assert_close(jacobian.to_image(v), matrix @ v, **close)
    torch.testing.assert_close(jacobian.to_gradient(u), matrix.T @ u, **close)
    torch.testing.assert_close(jacobian.gram_product(u), matrix @ (matrix.T @ u), **close)


@pytest.mark.parametrize("unknown", [False, True])
def test_gram_without_holding_the_matrix(unknown):
    jacobian = made("bottleneck", unknown=unknown)
    held = jacobian.gram()
    assert held.shape == (jacobian.rows, jacobian.rows)
    assert jacobian.rows == 32 + 5 * unknown
    torch.testing.assert_close(jacobian.gram(memory=0), held, rtol=1e-8, atol=1e-10 * float(held.abs().max()))


def test_gram_of_float32_is_float64_either_way():
    exact, single = made("conv").gram(), made("conv", dtype=torch.float32)
    for found in (single.gram(), single.gram(memory=0)):
        assert found.dtype == torch.float64
        assert float((found - exact).norm()) < 1e-5 * float(exact.norm())


def test_a_wrong_forward_rule_is_noticed(monkeypatch):
    jacobian = made("conv")
    expected = jacobian.matrix()
    right = Plain._forward
    monkeypatch.setattr(Plain, "_forward", lambda self, changes: 1.01 * right(self, changes))
    torch.testing.assert_close(jacobian.matrix(), expected)


def test_noise_rows_follow_the_pixels():
    jacobian = made("bottleneck", unknown=True)
    (eps,) = jacobian.of.noise
    step = 1e-6 * torch.eye(5, dtype=torch.float64)[2:3]
    above, below = (jacobian.of.flat(jacobian.of.gradient(jacobian.pixels, [one])) for one in (eps + step, eps - step))
    torch.testing.assert_close(jacobian.matrix()[32 + 2], (above - below) / 2e-6, rtol=1e-5, atol=1e-9)


def test_two_images_are_one_batch():
    torch.manual_seed(0)
    victim = Victim(model=tiny.convnet(SPEC).double(), inputs=SPEC)
    pixels = torch.cat([literature.image(0, SPEC), literature.image(1, SPEC)])
    both = Jacobian(released(victim, torch.tensor([0, 2])), pixels)
    one = Jacobian(released(victim, torch.tensor([2])), pixels[1:])
    torch.testing.assert_close(2 * both.matrix()[32:], one.matrix())


def test_names_and_restriction():
    jacobian = made("conv")
    weights = jacobian.by_name(jacobian.gradient)
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: tuple(value.shape) for name, value in jacobian.of.weights.items()
    }
    part = Jacobian(jacobian.of.restricted(["0.weight"]), jacobian.pixels)
    torch.testing.assert_close(part.matrix(), jacobian.matrix()[:, : part.columns])
    with pytest.raises(ValueError, match="expected some of the parameters"):
        jacobian.of.restricted(["elsewhere"])


def test_large_images_have_products_only():
    inputs = InputSpec(channels=3, height=224, width=224, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = nn.Sequential(nn.Conv2d(3, 2, 7, 7), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 32 * 32, 10))
    jacobian = Jacobian(released(Victim(model=model, inputs=inputs), torch.tensor([0])), torch.rand(1, 3, 224, 224))
    assert jacobian.gram_product(torch.ones(jacobian.rows)).shape == (150528,)
    for whole in (jacobian.matrix, jacobian.gram):
        with pytest.raises(ValueError, match=rf"150528 unknown numbers .* up to {EXACT_NUMBERS}"):
            whole()


def test_refusals():
    torch.manual_seed(0)
    plain = Victim(model=tiny.convnet(SPEC).double(), inputs=SPEC)
    pixels = literature.image(0, SPEC)
    with pytest.raises(ValueError, match=r"expected labels \(batch,\) from 0 to 2"):
        released(plain, torch.tensor([3]))
    with pytest.raises(ValueError, match="expected inputs of shape"):
        Jacobian(released(plain, torch.tensor([0])), pixels[:, :, :3])
    with pytest.raises(ValueError, match="infinite numbers or NaN"):
        Jacobian(released(plain, torch.tensor([0])), pixels * torch.nan)
    noisy = apply_defence("precode:latent=3", build_model("lenet", SPEC, seed=0), SPEC)
    with pytest.raises(ValueError, match="attacker.leakage.draw_noise"):
        released(Victim(model=noisy, inputs=SPEC), torch.tensor([0]))


def test_a_certain_model_releases_nothing():
    torch.manual_seed(0)
    model = tiny.convnet(SPEC)
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([1e4, 0, 0]))
    with pytest.raises(ValueError, match="exactly zero"):
        Jacobian(released(Victim(model=model, inputs=SPEC), torch.tensor([0])), literature.image(0, SPEC).float())


def test_an_input_that_is_ignored():
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, x):
            return self.bias.expand(len(x), 3)

    of = released(Victim(model=Blind(), inputs=SPEC), torch.tensor([0]))
    with pytest.raises(ValueError, match="does not depend on the image"):
        spectrum(Jacobian(of, literature.image(0, SPEC).float()))
