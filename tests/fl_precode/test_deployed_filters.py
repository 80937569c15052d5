"""NVFlare's filters beside a slow reference, written from their description; settings that no filter can have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clients.train import defended_training
from fl_precode.defences import gradient_defence
from fl_precode.defences.flower_dp import CentralDp, LocalDp
from fl_precode.defences.nvflare_filters import PercentileFilter, SvtFilter
from fl_precode.defences.update_filters import SystemDraws

DRAWN = 1_000


def drawn_update(number):
    """Two to five arrays of up to 40 numbers, one without a dimension, of sizes that the filters tell apart."""
    draw = np.random.default_rng(number)
    shapes = [tuple(draw.integers(1, 7, size=draw.integers(1, 3))) for _ in range(draw.integers(1, 5))] + [()]
    scale = 10.0 ** draw.uniform(-6, 0)
    return {
        f"{draw.integers(100)}.{place}": np.asarray(scale * draw.standard_normal(shape))
        for place, shape in enumerate(shapes)
    }


def all_numbers(update, names):
    return [float(number) for name in names for number in np.nditer(update[name])]


def back_into_shapes(numbers, update, names):
    numbers = iter(numbers)
    return {
        name: np.array([next(numbers) for _ in range(update[name].size)]).reshape(update[name].shape) for name in names
    }


def percentile_reference(update, *, percentile, gamma, steps):
    per_step = {name: value / steps for name, value in update.items()}
    sizes = sorted(abs(number) for number in all_numbers(per_step, per_step))
    place = percentile / 100 * (len(sizes) - 1)
    low, high = sizes[math.floor(place)], sizes[math.ceil(place)]
    cutoff = low + (high - low) * (place - math.floor(place))
    out = {}
    for name, value in per_step.items():
        if value.ndim == 0:
            out[name] = value * steps
            continue
        kept = [
            0.0 if -cutoff < number < cutoff else max(-gamma, min(gamma, number))
            for number in all_numbers({name: value}, [name])
        ]
        out[name] = np.array(kept).reshape(value.shape) * steps
    return out


def svt_reference(update, draws, *, fraction, epsilon, noise_var, gamma, tau, steps):
    names = sorted(update)
    delta = [number / steps for number in all_numbers(update, names)]
    count = math.ceil(fraction * len(delta))
    threshold = tau + draws.laplace(scale=2 * gamma / epsilon)
    epsilon_2 = epsilon * (2 * count) ** (2 / 3)
    remaining, accepted = list(range(len(delta))), []
    while len(accepted) < count:
        turned_down = []
        for place in remaining:
            noisy = min(abs(delta[place]), gamma) + draws.laplace(scale=4 * gamma * count / epsilon_2)
            (accepted if noisy >= threshold else turned_down).append(place)
        remaining = turned_down
    out = [delta[place] if place in set(accepted) else 0.0 for place in range(len(delta))]
    for place in draws.choice(accepted, size=count):
        out[place] = max(-gamma, min(gamma, delta[place] + draws.laplace(scale=2 * gamma / noise_var)))
    return back_into_shapes([number * steps for number in out], update, names)


def zeros_like(update):
    return {name: np.zeros_like(value) for name, value in update.items()}


def test_the_percentile_filter_equals_its_reference_on_drawn_updates():
    cut = zeroed = 0
    for number in range(DRAWN):
        update, draw = drawn_update(number), np.random.default_rng(-number % 2**32)
        percentile, gamma, steps = float(draw.integers(0, 101)), 10 ** draw.uniform(-6, 0), int(draw.integers(1, 5))
        found = PercentileFilter(share=100 - percentile, gamma=gamma, steps=steps).filtered(
            zeros_like(update), update, SystemDraws()
        )
        expected = percentile_reference(update, percentile=percentile, gamma=gamma, steps=steps)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=0)
            assert np.array_equal(found[name] == 0, value == 0)
            cut += int((np.abs(value) == gamma * steps).sum())
            zeroed += int((value == 0).sum())
    assert min(cut, zeroed) > DRAWN


def test_sparse_vectors_equal_their_reference_on_drawn_updates():
    noisy = as_it_was = zeroed = 0
    for number in range(DRAWN):
        update, draw = drawn_update(number), np.random.default_rng(number)
        gamma = 10 ** draw.uniform(-5, 0)
        settings = {
            "fraction": draw.uniform(0.01, 0.5),
            "epsilon": 10 ** draw.uniform(-1, 0.7),
            "noise_var": 10 ** draw.uniform(-1, 2),
            "gamma": gamma,
            "tau": gamma * draw.uniform(0, 0.5),
            "steps": int(draw.integers(1, 5)),
        }
        found = SvtFilter(**settings).filtered(zeros_like(update), update, np.random.RandomState(number))
        expected = svt_reference(update, np.random.RandomState(number), **settings)
        assert list(found) == list(update)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=0)
            same = np.isclose(value, update[name], rtol=1e-12, atol=0)
            as_it_was += int(same.sum())
            zeroed += int((value == 0).sum())
            noisy += int((~same & (value != 0)).sum())
    assert min(noisy, as_it_was, zeroed) > DRAWN


def test_at_nvflares_defaults_much_of_an_update_is_sent_as_it_was():
    update = {"weight": torch.randn(10_000, generator=torch.Generator().manual_seed(0))}
    as_it_was = []
    for seed in range(20):  # the one draw of the threshold's noise decides how much is accepted
        left = gradient_defence("svt")(update, generator=torch.Generator().manual_seed(seed))["weight"]
        noisy = ((left != 0) & (left.abs() <= 1.001e-5)).double().mean()
        assert 0.05 < noisy < 0.1  # a tenth is drawn, with replacement
        as_it_was.append(float((left == update["weight"]).double().mean()))
    assert sum(as_it_was) / len(as_it_was) > 0.3
    kept = gradient_defence("percentile")({"weight": update["weight"] / 1e3})["weight"]
    assert float((kept == update["weight"] / 1e3).double().mean()) == pytest.approx(0.9, abs=0.001)


def test_an_update_smaller_than_its_fraction_sends_one_number_and_an_empty_one_nothing():
    assert SvtFilter(fraction=0.1).sent_with_noise(3) == 1
    left = gradient_defence("svt:gamma=1")({"weight": torch.full((3,), 5.0)})["weight"]
    assert int((left.abs() <= 1).sum()) >= 1
    assert gradient_defence("svt")({"weight": torch.zeros(0)})["weight"].shape == (0,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("local-dp:clip=1,sensitivity=1,epsilon=0,delta=1e-5", "got 0: the noise is divided by it"),
        ("local-dp:clip=1,sensitivity=1,epsilon=1,delta=0", "got 0: no Gaussian noise reaches delta 0"),
        ("local-dp:clip=1,sensitivity=1,epsilon=1,delta=1", "delta 1 promises nothing"),
        ("local-dp:clip=0,sensitivity=1,epsilon=1,delta=1e-5", "expected clip to be positive and finite, got 0"),
        ("local-dp:clip=1,sensitivity=-1,epsilon=1,delta=1e-5", "a finite sensitivity of 0 or more, got -1"),
        ("local-dp:clip=1", "needs sensitivity, epsilon, delta"),
        ("local-dp:clip=1,sensitivity=1,epsilon=1,delta=1e-5+noise:std=1", "local-dp and noise both add noise"),
        ("central-dp:clip=1,side=both", "side to be client or server, got 'both'"),
        ("central-dp:clip=1,quantile=1", "a quantile of at least 0 and less than 1, got 1"),
        ("central-dp:clip=1,noise_multiplier=-1", "got -1 and 0"),
        ("percentile:share=101", "a share from 0 to 100, the percentage that stays, got 101"),
        ("percentile:gamma=0", "expected gamma to be positive"),
        ("percentile:steps=0", "steps to be 1 or more"),
        ("svt:fraction=1.5", "an update has no more numbers to send than it has"),
        ("svt:epsilon=0", "expected epsilon to be positive"),
        ("svt:tau=-1", "threshold tau of 0 or more, got -1"),
    ],
)  # fmt: skip
def test_settings_that_no_filter_can_have(spec, message):
    with pytest.raises(ValueError, match=message):
        gradient_defence(spec)


def test_a_threshold_that_nothing_passes_ends_with_its_reason():
    with pytest.raises(ValueError, match="only 0 of 1 numbers are above the threshold.*Lower tau"):
        gradient_defence("svt:tau=1e9")({"weight": torch.ones(3)})


def test_extreme_budgets_are_what_they_say():
    assert LocalDp(clip=1, sensitivity=1, epsilon=1e9, delta=1e-5).std == pytest.approx(4.845e-9, rel=1e-3)
    assert LocalDp(clip=1, sensitivity=0, epsilon=1, delta=1e-5).std == 0
    zero = {"weight": torch.zeros(3)}
    assert torch.equal(LocalDp(clip=1, sensitivity=0, epsilon=1, delta=1e-5)(zero)["weight"], zero["weight"])
    assert torch.equal(CentralDp(clip=0.1)(zero)["weight"], zero["weight"])


def small_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)
    )


def test_a_client_of_the_reference_app_filters_buffers_too_and_parts_go_on_from_there():
    batch = (torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.arange(5) % 3)
    trained, filtered = small_model(), small_model()
    received = {name: value.clone() for name, value in trained.state_dict().items()}
    defended_training(trained, [batch], None, None, learning_rate=0.5)
    chain = gradient_defence("local-dp:clip=0.01,sensitivity=0,epsilon=1,delta=1e-5+prune:share=0.5")
    defended_training(filtered, [batch], chain, None, learning_rate=0.5)
    moved = {name: value - received[name] for name, value in trained.state_dict().items()}
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in moved.values()))
    left = {name: value - received[name] for name, value in filtered.state_dict().items()}
    torch.testing.assert_close(left["2.running_mean"], moved["2.running_mean"] * 0.01 / norm)
    assert int(left["2.num_batches_tracked"]) == 1
    assert int((left["1.weight"] == 0).sum()) >= 24
    assert float(left["1.weight"].norm()) > 0
