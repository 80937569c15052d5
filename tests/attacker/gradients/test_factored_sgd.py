"""Local training replayed by factors equals local training whose updates are formed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.gradients.distances import Elements, cosine_distance
from attacker.gradients.fedavg.factored_sgd import FactoredTraining, why_not_factored_training
from attacker.gradients.fedavg.unrolled_sgd import LocalTrainingProducts, local_training_products
from tests.attacker import tiny
from tests.attacker.gradients.test_unrolled_sgd import CASES, Client
from tests.attacker.replay_models import DENSE, Aside, TokenModel

PLAIN = [name for name in CASES if not {"momentum", "weight decay", "all of it"} & {name}]
MODELS = {
    "mlp": tiny.mlp,
    "mlp without biases": lambda spec: tiny.mlp(spec, bias=False),
    "mlp with bottleneck": lambda spec: tiny.mlp(spec, bottleneck=True),
    "tokens": TokenModel,
    "a branch beside": Aside,
}


def distance_and_gradient(products, client: Client) -> tuple[torch.Tensor, torch.Tensor]:
    found = cosine_distance(products(client.candidates, client.guesses, client.eps))
    weights = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).reshape(found.shape)
    return found.detach(), torch.autograd.grad((weights * found).sum(), client.candidates)[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", PLAIN)
def test_equals_updates_that_are_formed(name: str, model: str) -> None:
    client = Client(MODELS[model], *CASES[name], victims=2, restarts=2)
    assert why_not_factored_training(client.replay, client.observations[0], client.seen) is None
    fast = distance_and_gradient(FactoredTraining(client.replay, client.observations, client.seen), client)
    slow = distance_and_gradient(LocalTrainingProducts(client.replay, client.observations, vmapped=False), client)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


def test_one_candidate_alone_is_differentiated_too() -> None:
    client = Client(tiny.mlp, 4, *CASES["two passes of two batches"][1:])
    fast = distance_and_gradient(FactoredTraining(client.replay, client.observations, client.seen), client)
    slow = distance_and_gradient(LocalTrainingProducts(client.replay, client.observations, vmapped=False), client)
    torch.testing.assert_close(fast, slow, atol=1e-8, rtol=1e-8)


def test_the_true_images_give_the_update_of_torchs_sgd() -> None:
    client = Client(tiny.mlp, *CASES["epochs with a smaller last batch"], victims=2)
    products = FactoredTraining(client.replay, client.observations, client.seen)
    with torch.no_grad():
        found = products(client.images.unsqueeze(1), client.labels.unsqueeze(1))
        turned = products(client.images.flip(1).unsqueeze(1), client.labels.flip(1).unsqueeze(1))
    assert float(cosine_distance(found).abs().max()) < 1e-10
    assert float(cosine_distance(turned).min()) > 1e-6


@pytest.mark.parametrize(
    ("build", "case", "reason"),
    [
        (tiny.mlp, "momentum", "momentum"),
        (tiny.mlp, "weight decay", "weight decay"),
        (tiny.convnet, "one step", "0.bias belongs to no layer"),
        (DENSE["twice"], "two passes of two batches", "runs 2 times"),
        (lambda spec: torch.nn.Sequential(torch.nn.LayerNorm(spec.shape), tiny.mlp(spec)), "one step", "0.bias"),
    ],
)
def test_what_factors_cannot_replay_is_named(build, case: str, reason: str) -> None:
    client = Client(build, *CASES[case])
    assert reason in (why_not_factored_training(client.replay, client.observations[0], client.seen) or "")
    chosen = local_training_products(client.replay, client.observations, client.seen)
    assert isinstance(chosen, LocalTrainingProducts)


def test_a_parameter_that_no_update_holds_is_named() -> None:
    client = Client(tiny.mlp, *CASES["one step"])
    (observation,) = client.observations
    update, parameters = dict(observation.update), dict(observation.parameters)
    del update["1.bias"], parameters["1.bias"]
    frozen = replace(observation, update=update, parameters=parameters)
    fixed = why_not_factored_training(client.replay, frozen, client.seen)
    assert fixed == "1.bias is in no update, and does not move"


def test_factors_are_taken_where_everything_counts_by_inner_products() -> None:
    client = Client(tiny.mlp, *CASES["two passes of two batches"], restarts=2)
    problem = client.replay, client.observations, client.seen
    assert isinstance(local_training_products(*problem), FactoredTraining)
    assert not isinstance(local_training_products(*problem, elements=Elements()), FactoredTraining)
    assert not isinstance(local_training_products(*problem, matched=["1.weight"]), FactoredTraining)


def test_products_of_some_candidates() -> None:
    client = Client(tiny.mlp, *CASES["two passes of two batches"], victims=3, restarts=2)
    products = FactoredTraining(client.replay, client.observations, client.seen)
    with torch.no_grad():
        whole = products(client.candidates, client.guesses)
        some = products.keep([2, 0], [[1], [1]])(client.candidates[[2, 0]][:, [1]], client.guesses[[2, 0]][:, [1]])
        again = products(client.candidates, client.guesses)
    torch.testing.assert_close(some.inner, whole.inner[[2, 0]][:, [1]], atol=1e-12, rtol=0)
    torch.testing.assert_close(again.inner, whole.inner, atol=0, rtol=0)
