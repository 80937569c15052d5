"""The descent keeps what it measured; priors, distances, traces and groups do what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacker.gradients.base import Products
from attacker.gradients.distances import cosine_distance, total_variation
from attacker.gradients.observed import group_observations, observed_gradient, why_not_one_step
from attacker.gradients.trace import trace
from attacker.optim.first_order import Descent
from attacker.reasons import Reason, because
from fl_precode import Protocol
from tests.attacker import tiny
from tests.attacker.known_minima import Bowl
from tests.oracles import loop_total_variation

PLAIN = Descent(iterations=50, learning_rate=0.1, signed=True)


def start(victims: int = 2, restarts: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(victims, restarts, 1, 1, 2, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("learning_rate", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("iterate", ["last", "best"])
def test_the_iterate_kept_was_measured_and_is_the_last_or_the_best(learning_rate, signed, iterate):
    bowl = Bowl()
    found = replace(PLAIN, learning_rate=learning_rate, signed=signed, iterate=iterate).run(bowl, start())
    recorded = torch.stack([values for _, values in bowl.seen])  # (calls, victims, restarts)
    assert len(bowl.seen) == PLAIN.iterations + 1  # the last iterate is measured too
    assert torch.equal(found.distances, recorded[-1] if iterate == "last" else recorded.min(dim=0).values)
    assert torch.equal(Bowl().distances(found.candidates), found.distances)
    assert not bool(found.diverged.any())


def test_candidates_do_not_influence_each_other():
    together = PLAIN.run(Bowl(), start())
    alone = PLAIN.run(Bowl(), start()[1:, 2:])
    assert torch.equal(together.candidates[1:, 2:], alone.candidates)


def test_a_restart_that_turns_nan_never_wins_and_spoils_no_other():
    clean = PLAIN.run(Bowl(), start())
    found = PLAIN.run(Bowl(broken=(0,), after=10), start())
    assert found.diverged.tolist() == [[True, False, False]] * 2
    assert torch.equal(found.candidates[:, 1:], clean.candidates[:, 1:])
    assert bool((found.best_restart() > 0).all())
    # Not even with the best distance of all.
    leading = replace(found, distances=torch.tensor([[0.0, 0.2, 0.1], [0.0, 0.1, 0.2]]))
    assert leading.best_restart().tolist() == [2, 1]


def test_when_all_restarts_diverge_the_best_of_them_is_named_and_work_stops():
    bowl = Bowl(broken=(0, 1, 2), after=4)
    found = replace(PLAIN, iterations=1000).run(bowl, start())
    assert bool(found.diverged.all())
    assert bool(found.distances.isfinite().all())
    assert found.best_restart().tolist() == found.distances.argmin(dim=1).tolist()
    assert found.iterations.tolist() == [[5, 5, 5]] * 2
    assert len(bowl.seen) <= 20
    nothing = PLAIN.run(Bowl(broken=(0, 1, 2)), start())
    assert bool(nothing.distances.isinf().all())


def test_projection_bounds_every_iterate_and_none_does_not():
    bowl = Bowl()
    bounded = PLAIN.run(bowl, start(), project=lambda x: x.clamp(-0.5, 0.5))
    assert all(float(x.abs().max()) <= 0.5 for x, _ in bowl.seen[1:])
    assert float(bounded.candidates.max()) == 0.5
    free = PLAIN.run(Bowl(), start())
    assert float(free.candidates.max()) > 0.5


def test_learning_rate_falls_at_the_published_fractions():
    bowl = Bowl()
    Descent(iterations=80, learning_rate=1e-3, signed=True).run(bowl, start(1, 1), project=None, progress=None)
    steps = [float((b - a).abs().max()) for (a, _), (b, _) in zip(bowl.seen, bowl.seen[1:], strict=False)]
    # Far from the goal the sign never changes, so that Adam's step is the learning rate.
    for first, rate in [(0, 1e-3), (30, 1e-4), (50, 1e-5), (70, 1e-6)]:
        assert steps[first] == pytest.approx(rate, rel=1e-3)
        assert steps[first + 9] == pytest.approx(rate, rel=1e-3)


def test_total_variation_smooths_but_is_not_part_of_the_distance():
    bowl = Bowl(total_variation=100.0)
    smooth = PLAIN.run(bowl, start(1, 1))
    rough = PLAIN.run(Bowl(), start(1, 1))
    assert float(total_variation(smooth.candidates)) < float(total_variation(rough.candidates))
    assert torch.equal(Bowl().distances(smooth.candidates), smooth.distances)
    # The iterate kept is the best by the loss that was minimised, prior included.
    losses = torch.stack([values + 100.0 * total_variation(x) for x, values in bowl.seen])
    kept = smooth.distances + 100.0 * total_variation(smooth.candidates)
    assert float(kept) == pytest.approx(float(losses.min()), rel=1e-12)


def test_progress_grows_to_one():
    seen: list[tuple[float, float | None]] = []
    PLAIN.run(Bowl(), start(), progress=lambda done, best: seen.append((done, best)))
    shares, best = zip(*seen, strict=True)
    assert list(shares) == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert list(best) == sorted(best, reverse=True)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4), leading=st.lists(st.integers(1, 2), max_size=2), seed=st.integers(0, 99)
)
def test_total_variation_equals_the_double_loop(shape, leading, seed):
    images = torch.randn(*leading, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = total_variation(images)
    assert list(values.shape) == leading
    for value, batch in zip(values.flatten(), images.reshape(-1, *shape), strict=True):
        assert float(value) == pytest.approx(loop_total_variation(batch), abs=1e-12)


def test_cosine_distance_is_zero_one_and_two():
    products = Products(
        inner=torch.tensor([[6.0, 0.0, -6.0]]), square=torch.tensor([[4.0, 4.0, 4.0]]), target=torch.tensor([9.0])
    )
    torch.testing.assert_close(cosine_distance(products), torch.tensor([[0.0, 1.0, 2.0]]))


def test_cosine_distance_survives_tiny_gradients():
    tiny_products = Products(*(torch.full(shape, 1e-30) for shape in [(1, 1), (1, 1), (1,)]))
    assert float(cosine_distance(tiny_products)) == pytest.approx(0, abs=1e-5)


class Backwards(nn.Module):
    """Registers its layers in another order than it runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 4)
        self.body = nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)).relu_())


def test_trace_follows_execution_and_leaves_randomness_alone():
    spec = tiny.inputs()
    victim = tiny.victim(nn.Sequential(Backwards(), nn.Identity()), spec)
    state = torch.get_rng_state()
    seen = trace(victim, batch_size=3)
    assert torch.equal(state, torch.get_rng_state())
    assert [run.name for run in seen.layers] == ["0.body", "0.head"]
    assert [run.output_shape for run in seen.layers] == [(3, 5), (3, 4)]
    assert [run.overwritten for run in seen.layers] == [True, False]
    assert torch.equal(seen.layers[0].inputs, seen.probe.flatten(1))
    assert seen.last_linear().name == "0.head"
    protected = trace(tiny.victim(tiny.mlp(spec, bottleneck=True), spec))
    assert protected.latents == ((5,),)
    assert [run.name for run in protected.layers] == ["1", "3.encoder", "3.decoder", "4"]


def test_gradients_of_updates_have_sign_and_scale():
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    x = tiny.images(spec, 1)
    gradient, step = tiny.observe(victim, x, [2]), tiny.observe(victim, x, [2], learning_rate=0.05)
    unknown = replace(step, protocol=Protocol())
    for name, value in gradient.update.items():
        torch.testing.assert_close(observed_gradient(step)[name], value)
        torch.testing.assert_close(observed_gradient(unknown)[name], 0.05 * value)
        assert observed_gradient(gradient)[name] is gradient.update[name]


def test_one_step_is_what_was_announced_or_nothing():
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    step = tiny.observe(victim, tiny.images(spec, 1), [2], learning_rate=0.05)

    def reason(**announced: float) -> Reason | None:
        return why_not_one_step(replace(step, protocol=Protocol(**announced)))

    assert reason() is None
    assert reason(local_steps=1) is None
    assert reason(local_steps=1, local_epochs=1) is None
    assert reason(local_steps=3) == because("several-steps", steps=3)
    assert reason(local_epochs=1) is None, "one image makes one step an epoch"
    assert reason(local_epochs=2) == because("several-steps", steps=2)
    two = replace(step, batch_size=2, protocol=Protocol(local_epochs=1))
    assert why_not_one_step(two) == because("several-steps.unknown", epochs=1)
    assert why_not_one_step(replace(two, protocol=Protocol(local_epochs=1, batch_size=2))) is None
    assert reason(weight_decay=0.1) == because("weight-decay")
    assert reason(weight_decay=0.1, learning_rate=0.05) is None
    gradient = tiny.observe(victim, tiny.images(spec, 1), [2], protocol=Protocol(local_epochs=5))
    assert why_not_one_step(gradient) is None


def test_only_observations_of_the_same_problem_are_grouped():
    torch.manual_seed(0)
    spec = tiny.inputs()
    victim, other = (tiny.victim(tiny.mlp(spec), spec) for _ in range(2))
    base = tiny.observe(victim, tiny.images(spec, 1), [0])
    equal = tiny.observe(victim, tiny.images(spec, 1, seed=1), [1])  # equal weights, other tensors
    seen = [
        base,
        tiny.observe(other, tiny.images(spec, 1), [0]),
        equal,
        replace(base, round=2),
        replace(base, batch_size=2),
        replace(base, protocol=Protocol(local_steps=2)),
        replace(base, kind="weights"),
        replace(base, buffers={"mean": torch.zeros(1)}),
        replace(equal, node="3"),
    ]
    assert group_observations(seen) == [[0, 2, 8], [1], [3], [4], [5], [6], [7]]
