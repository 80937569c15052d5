"""The whole analysis: defences, the bottleneck's noise, records, and what is told about them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from attacker.gradients.noise_free_layers import before_noise
from attacker.gradients.trace import trace
from attacker.leakage import (
    ImageLeak,
    Jacobian,
    Leakage,
    analyse,
    by_layer,
    defence_change,
    draw_noise,
    noise_ranks,
    outliers,
    released,
    sampling_change,
    spectrum,
    without_noise,
)
from attacker.report.leakage_words import advice, headline
from attacker.victim import Victim
from fl_precode.defences.registry import apply_defence, gradient_defence
from fl_precode.models import InputSpec, build_model
from tests.attacker import literature, tiny

SPEC = InputSpec(channels=1, height=6, width=6, classes=4, mean=(0.5,), std=(0.25,))


def victim(defence: str = "none", *, seed: int = 0) -> Victim:
    model = apply_defence(defence, build_model("lenet:init=uniform", SPEC, seed=seed), SPEC, seed=seed)
    return Victim(model=model.double(), inputs=SPEC, name="lenet:init=uniform")


def images(count: int = 1) -> torch.Tensor:
    return torch.cat([literature.image(seed, SPEC) for seed in range(count)])


def drawn(one: Victim, seed: int = 5):
    noise = draw_noise(one, 1, generator=torch.Generator().manual_seed(seed))
    return released(one, torch.tensor([1]), noise=noise)


def test_an_image_by_itself():
    found = analyse(victim(), images(2), torch.tensor([1, 2]), std=1e-4)
    seen = spectrum(Jacobian(released(victim(), torch.tensor([2])), images(2)[1:]))
    second = found.images[1]
    assert (second.rank, second.unknowns, second.label, second.index) == (36, 36, 2, 1)
    assert second.unit_rmse == pytest.approx(seen.expected_rmse(1.0))
    assert second.largest == pytest.approx(seen.largest)
    assert second.smallest == pytest.approx(float(seen.values[-1]))
    assert (second.influence, second.lower_bound) == (None, None)
    assert headline(found) == "The gradient determines the whole image: without noise it can be recovered exactly."
    assert advice(found)[0] == "Recoverable exactly from a noise-free gradient: the Jacobian has full rank, 36."
    assert "standard deviation 0.0001" in advice(found)[1]


def test_estimates_where_exact_is_too_dear():
    exact, estimated = (
        analyse(victim(), images(), torch.tensor([1]), exact=one, defence=noise()) for one in (True, False)
    )
    one, other = exact.images[0], estimated.images[0]
    assert (other.exact, other.rank, estimated.eigenvalues, estimated.lost) == (False, None, (), ())
    assert other.largest == pytest.approx(one.largest, rel=1e-2)
    assert 0 < other.unit_rmse < one.unit_rmse
    assert other.lower_bound < other.influence
    assert headline(estimated).startswith("Too large for exact ranks")


def noise(std: float = 1e-6):
    return gradient_defence(f"noise:std={std}")


def test_what_a_defence_does_to_the_image():
    found = analyse(victim(), images(), torch.tensor([1]), defence=noise(), names=("noise:std=1e-6", "", ""), seed=3)
    (one,) = found.images
    assert one.influence == pytest.approx(1e-6 * one.unit_rmse, rel=0.8)
    assert one.lower_bound < one.influence
    assert any(text.startswith("What the defence does") for text in advice(found))
    again = analyse(victim(), images(), torch.tensor([1]), defence=noise(), names=("noise:std=1e-6", "", ""), seed=3)
    assert again.images == found.images


@pytest.mark.parametrize("spec", ["prune:share=0.5", "laplace:std=0.1", "sign", "quantise:bits=4", "clip:max_norm=0.1"])
def test_changes_of_defences(spec, generator):
    of = released(victim(), torch.tensor([1]))
    defence = gradient_defence(spec)
    assert defence is not None
    change = defence_change(of, images(), defence, generator=generator)
    before = of.gradient(images())
    generator.manual_seed(0)
    after = defence(before, generator=generator)
    torch.testing.assert_close(change, of.flat(after) - of.flat(before))
    assert float(change.norm()) > 0


def test_defences_that_look_at_the_model_see_the_released_weights(generator):
    one = victim("precode:latent=3")
    moved = {name: value + 1 for name, value in one.model.named_parameters()}
    kept = released(one, torch.tensor([1]), noise=drawn(one).noise, parameters=moved)
    defence = gradient_defence("precode+ppp:std=0.1")
    assert defence is not None
    change = kept.replay.victim
    parts = Jacobian(kept, images()).by_name(defence_change(kept, images(), defence, generator=generator))
    assert float(parts["conv1.weight"].norm()) > 0
    assert change is one
    assert not torch.equal(dict(one.model.named_parameters())["conv1.weight"], moved["conv1.weight"])


def test_the_noise_of_a_bottleneck():
    one = victim("precode:latent=3")
    of = drawn(one)
    found = noise_ranks(of, images())
    assert (found.unknowns, found.noise, found.known) == (36, 3, 36)
    joint = Jacobian(of, images(), noise_unknown=True).matrix()
    pixels, eps = joint[:36], joint[36:]
    left = pixels - pixels @ torch.linalg.pinv(eps) @ eps  # what no noise can imitate
    assert found.fitted == int(torch.linalg.matrix_rank(left, rtol=1e-6))
    singular = torch.linalg.svdvals(left)
    assert found.fitted_rmse == pytest.approx(math.sqrt(float(singular.pow(-2).mean())), rel=1e-4)
    assert found.fitted_rmse >= found.known_rmse
    assert found.before == spectrum(Jacobian(of.restricted(before_noise(trace(one))), images())).rank


def test_ignoring_the_noise():
    one = victim("precode:latent=3")
    of = drawn(one)
    quiet = without_noise(of)
    assert all(not value.any() for value in quiet.noise)
    change = sampling_change(quiet, images(), of.noise)
    torch.testing.assert_close(change, of.flat(of.gradient(images())) - of.flat(quiet.gradient(images())))
    guess = Jacobian(quiet, images())
    expected = float(spectrum(guess).influence(guess.to_image(change))) / 6
    assert noise_ranks(of, images()).sampling == pytest.approx(expected)


def test_what_comes_before_the_noise():
    assert before_noise(trace(victim("precode:latent=3"))) == {
        "conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "conv3.weight", "conv3.bias",
        "classifier.bottleneck.encoder.weight", "classifier.bottleneck.encoder.bias",
    }  # fmt: skip
    cvb = before_noise(trace(victim("cvb")))
    assert {"conv1.weight", "conv1.bias"} < cvb
    assert not any("conv3" in name or "decoder" in name for name in cvb)
    without = released(victim(), torch.tensor([1]))
    with pytest.raises(ValueError, match="expected a model with a variational bottleneck"):
        noise_ranks(without, images())


@pytest.mark.parametrize("spec", ["precode:latent=3", "cvb"])
def test_a_bottleneck_in_the_analysis(spec):
    found = analyse(victim(spec), images(), torch.tensor([1]), names=(spec, "", ""))
    assert found.noise is not None
    assert "random numbers for an image" in advice(found)[0]
    assert ("does not stop an attacker" in headline(found)) == (found.noise.fitted == 36)


def test_layers_by_themselves():
    jacobian = Jacobian(released(victim(), torch.tensor([1])), images())
    found = by_layer(jacobian)
    assert list(found) == ["conv1", "conv2", "conv3", "classifier"]
    total = sum(one.vectors * one.values @ one.vectors.T for one in found.values())
    torch.testing.assert_close(total, jacobian.gram())
    whole = spectrum(jacobian).expected_rmse(1.0)
    assert all(one.rank < 36 or one.expected_rmse(1.0) > whole for one in found.values())


def test_initialisations_differ():
    found = [
        analyse(Victim(model=build_model(f"lenet:init={init}", SPEC, seed=0).double(), inputs=SPEC), images(),
                torch.tensor([1])).images[0].unit_rmse
        for init in ("uniform", "default")
    ]  # fmt: skip
    assert found[0] < found[1] / 10


def test_a_confident_image_is_told_of():
    torch.manual_seed(0)
    model = tiny.convnet(SPEC)
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([1e4, 0, 0, 0]))
    found = analyse(Victim(model=model, inputs=SPEC), images(2).float(), torch.tensor([0, 0]))
    assert all("exactly zero" in (one.reason or "") for one in found.images)
    assert headline(found).startswith("Nothing can be said")
    mixed = analyse(Victim(model=model, inputs=SPEC), images(2).float(), torch.tensor([0, 1]))
    assert [one.reason is None for one in mixed.images] == [False, True]
    assert mixed.eigenvalues


def test_passage_through_json():
    found = analyse(victim("precode:latent=3"), images(3), torch.tensor([1, 2, 3]), defence=noise())
    again = Leakage.from_dict(json.loads(json.dumps(found.as_dict())))
    assert again == found
    assert found.as_dict()["layers"][0]["missing"] == found.layers[0].missing


def leaks(*values: float | None) -> tuple[ImageLeak, ...]:
    return tuple(
        ImageLeak(index=i, label=0, gradient_norm=1.0, unknowns=4, unit_rmse=value) for i, value in enumerate(values)
    )


def test_outliers():
    assert outliers(leaks(1.0, 1.1, 0.9, 20.0, 1.05, 0.01, 0.001, None)) == ((6, 5), (3,))
    assert outliers(leaks(1.0, 1.0, 1.0, 1.5)) == ((), ())  # less than a factor of two
    assert outliers(leaks(1.0, 100.0)) == ((), ())
    assert outliers(leaks(1.0, 1.1, 0.9, 20.0), times=100.0) == ((), ())


def test_refusals():
    with pytest.raises(ValueError, match="at least one image"):
        analyse(victim(), images()[:0], torch.tensor([]))
    spec = InputSpec(channels=3, height=224, width=224, classes=2, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = nn.Sequential(nn.Conv2d(3, 1, 32, 32), nn.Tanh(), nn.Flatten(), nn.Linear(49, 2))
    large = Victim(model=model, inputs=spec)
    with pytest.raises(ValueError, match=r"exact analysis goes up to 4096 numbers .* got 150528: JJ\^T would take 169"):
        analyse(large, torch.rand(1, *spec.shape), torch.tensor([0]), exact=True)
