"""Settings of local training are found in any spelling, and what cannot be understood is said."""

from __future__ import annotations

import pytest

from fl_precode.tape.announced_settings import announced_settings, examples_of


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learning_rate": 0.1, "local_epochs": 1, "batch_size": 8}, (0.1, 1, None, 8)),
        ({"fit.lr": 0.1, "fit.local-epochs": 1, "fit.batch-size": 8}, (0.1, 1, None, 8)),
        ({"client-lr": 0.1, "num-local-epochs": 1, "train-batch-size": 8}, (0.1, 1, None, 8)),
        ({"LR": "0.1", "LocalEpochs": "1", "batchSize": "8"}, (0.1, 1, None, 8)),
        ({"lr": 0.1, "max-epochs": 1.0, "bs": 8}, (0.1, 1, None, 8)),
        ({"training/learning-rate": 0.1, "local_steps": 4}, (0.1, None, 4, None)),
        ({"server-lr": 1.0, "lr": 0.1, "test-batch-size": 512, "num-server-rounds": 9}, (0.1, None, None, None)),
        ({"lr": 5.0, "client.lr": 0.1}, (0.1, None, None, None)),
        ({"lr": 0, "local-epochs": 0, "batch-size": ""}, (None, None, None, None)),
    ],
)
def test_every_spelling(settings, expected):
    found = announced_settings(settings)
    keys = ("learning_rate", "local_epochs", "local_steps", "batch_size")
    assert tuple(found.fields.get(key) for key in keys) == expected
    assert not found.refused


@pytest.mark.parametrize("value", ["fast", True, float("nan"), -1, [0.1]])
def test_a_value_that_cannot_be_is_named(value):
    found = announced_settings({"lr": value})
    assert "learning_rate" not in found.fields
    assert "expected a number" in found.refused["lr"]


@pytest.mark.parametrize(
    ("word", "expected"), [("SGD", "sgd"), ("torch.optim.AdamW", "adam"), ("rmsprop", "adam"), ("own", None)]
)
def test_optimisers(word, expected):
    assert announced_settings({"optimizer": word}).fields.get("optimiser") == expected


@pytest.mark.parametrize(
    ("records", "key", "expected"),
    [
        ({"metrics": {"num-examples": 7}}, "num-examples", 7),
        ({"metrics": {"num_examples": 7.0, "loss": 3.0}}, "num-examples", 7),
        ({"m": {"weight": 5, "num-examples": 7}}, "weight", 5),
        ({"m": {"weight": 0.37, "num-samples": 7}}, "weight", 7),
        ({"fitres.num_examples": {"num_examples": 7}}, "num-examples", 7),
        ({"m": {"num-examples": 0}}, "num-examples", None),
        ({"m": {"loss": 1.0}}, "num-examples", None),
    ],
)
def test_the_number_of_examples_under_whatever_key(records, key, expected):
    assert examples_of(records, key) == expected
