"""Run-config strings become settings; everything wrong is named at once."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from fl_precode.federation.config import Settings, SettingsError

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_the_defaults_are_those_of_the_flower_app():
    config = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    assert {**Settings().to_run_config(), "loss": "cross-entropy", "canaries": "", "tape-sampling": ""} == config
    assert Settings.from_run_config(config) == Settings()


def test_round_trip():
    settings = Settings(protocol="fedavg", local_steps=2, dirichlet_alpha=2, seed=7, defence="precode")
    assert Settings.from_run_config(settings.to_run_config()) == settings


def test_a_whole_number_is_a_number():
    assert Settings.from_run_config({"learning-rate": 1}).learning_rate == 1.0


def test_everything_wrong_is_named_at_once():
    with pytest.raises(SettingsError) as caught:
        Settings.from_run_config(
            {
                "bach-size": 2,
                "num-clients": "many",
                "seed": True,
                "protocol": "gossip",
                "learning-rate": -1.0,
                "tape": "x",
            }
        )
    text = str(caught.value)
    for part in (
        "6 problem(s)", "'bach-size'; did you mean 'batch-size'", "num-clients: expected a whole number, got 'many'",
        "seed: expected a whole number, got True", "protocol: expected one of fedsgd, fedavg, got 'gossip'",
        "learning-rate: expected a positive number, got -1.0", "tape: expected an absolute path",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num-server-rounds", 0, "at least 1"),
        ("num-clients", 0, "at least 1"),
        ("batch-size", 0, "at least 1"),
        ("classes-per-client", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("learning-rate", float("nan"), "positive"),
        ("dirichlet-alpha", 0.0, "positive"),
        ("partition", "fair", "iid, dirichlet, pathological"),
        ("device", "tpu", "auto, cpu, cuda"),
        ("output-dir", "out", "absolute"),
        ("dataset", "facess", "faces"),
        ("model", "lenett", "lenet"),
        ("defence", "precoed", "precode"),
        ("defence", "precode:latent=none", "latent"),
        ("local-steps", 1, "fedsgd sends one gradient"),
        ("local-epochs", 1, "fedsgd sends one gradient"),
        ("momentum", -0.1, "from 0 to below 1"),
        ("momentum", 0.5, "fedsgd clients take no step"),
        ("weight-decay", -1.0, "0 or more"),
        ("weight-decay", 0.1, "fedsgd clients take no step"),
    ],
)
def test_each_wrong_value_says_what_was_expected(key, value, words):
    with pytest.raises(SettingsError, match=key) as caught:
        Settings.from_run_config({key: value})
    assert words in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("steps", [{}, {"local-steps": 1, "local-epochs": 1}])
def test_fedavg_needs_steps_or_epochs_and_not_both(steps):
    with pytest.raises(SettingsError, match="exactly one"):
        Settings.from_run_config({"protocol": "fedavg", **steps})


def test_momentum_is_below_one():
    with pytest.raises(SettingsError, match="momentum: expected a number from 0 to below 1, got 1.0"):
        Settings(protocol="fedavg", local_steps=2, momentum=1.0)


def test_every_setting_is_in_the_docstring():
    for field in fields(Settings):
        assert f"{field.name}:" in (Settings.__doc__ or ""), field.name


def test_what_is_announced():
    assert Settings(defence="precode").announced.local_steps == 1
    fedavg = Settings(protocol="fedavg", local_epochs=2, batch_size=3, momentum=0.9, weight_decay=1e-4)
    told = fedavg.announced
    assert (told.batch_size, told.momentum, told.weight_decay) == (3, 0.9, 1e-4)
    assert (fedavg.announced.local_steps, fedavg.announced.local_epochs, fedavg.kind) == (None, 2, "weights")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"tape": "runs/1/tape"},
            "tape: expected an absolute path, the URL of an object store or nothing, got",
        ),
        ({"tape": "."}, "tape: expected an absolute path"),
        ({"tape": "s3://key:secret@bucket/tape"}, "tape: the URL of a tape, s3://..., has a password"),
        ({"tape": "s3://bucket/tape", "audit-every": 1}, "audit-every: the tape leaves this machine"),
        ({"tape": "/runs/1/tape", "tape-sampling": "half"}, "tape-sampling: no sampling of updates is called 'half'"),
        ({"tape-sampling": "every:k=2"}, "tape-sampling: nobody listens"),
        ({"output-dir": "s3://bucket/run"}, "output-dir: expected an absolute path or nothing"),
    ],
)
def test_places_and_samplings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(SettingsError) as caught:
        Settings.from_run_config(settings)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_tape_in_a_store_and_its_sampling_are_settings():
    settings = Settings.from_run_config({"tape": "s3://bucket/tape", "tape-sampling": "reservoir:n=9"})
    assert settings.to_run_config()["tape-sampling"] == "reservoir:n=9"
    assert "tape-sampling" not in Settings().to_run_config()
    assert Settings.from_run_config({"tape": "file:///runs/1/tape"}).tape == "file:///runs/1/tape"
