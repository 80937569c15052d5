"""Federations with each defence, through real messages in one process."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from deploy.simulation.launch import SimulationRuntime
from fl_precode.defences.dp_sgd import dp_epsilon
from fl_precode.federation.config import Settings, SettingsError
from fl_precode.federation.federation import prepare
from fl_precode.tape import Tape
from server.app import tape_header

DP = "dp:max_norm=1,noise_multiplier=1.1"
SPECS = [
    "precode:latent=8,before=conv2|classifier",
    "cvb",
    "cvb-reference",
    "dropout",
    "noise:std=0.01",
    "laplace:std=0.01",
    "prune:share=0.9",
    "clip:max_norm=0.01",
    "quantise:bits=4",
    "sign",
    "soteria:share=0.6",
    "precode:latent=8+ppp:std=0.01",
    "cvb+soteria+clip:max_norm=1+noise:std=0.001+quantise:bits=8",
    DP,
]
PROTOCOLS = {"fedsgd": {"batch_size": 4}, "fedavg": {"local_steps": 2, "batch_size": 4}}


def updates(folder):
    return {one.node: one.update for one in Tape(folder).observations() if one.round == 1}


def result_of(out):
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_federation_runs_with_each_defence(run_locally, tmp_path, spec, protocol):
    settings = {"protocol": protocol, "model": "lenet", "num_clients": 2, "seeded_noise": True, **PROTOCOLS[protocol]}
    _, out = run_locally(**settings, defence=spec, tape=str(tmp_path / "tape"))
    result = result_of(out)
    assert result["finished"]
    assert [one["usable"] for one in result["rounds"][1:]] == [2, 2]
    header = Tape(tmp_path / "tape").header
    assert header.defence == header.protocol.defence == spec
    hashes = [one["model_sha256"] for one in result["rounds"]]
    assert len(set(hashes)) == 3
    run_locally(**settings, defence=spec, out="again")
    assert [one["model_sha256"] for one in result_of(tmp_path / "again")["rounds"]] == hashes


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_reaches_the_server_is_defended(run_locally, tmp_path, protocol):
    settings = {"protocol": protocol, "model": "lenet", "num_clients": 2, "num_server_rounds": 1, **PROTOCOLS[protocol]}

    def observed(spec, seed=0):
        name = spec.partition(":")[0] + str(seed)
        run_locally(**settings, defence=spec, seed=seed, out=name, tape=str(tmp_path / name / "tape"))
        return updates(tmp_path / name / "tape")

    plain, noisy = observed("none"), observed("noise:std=0.01")
    noise = {
        node: torch.cat([(noisy[node][name] - value).flatten() for name, value in update.items()])
        for node, update in plain.items()
    }
    first, second = noise.values()
    assert first.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * len(first)))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / math.sqrt(len(first)), "each client its own"
    for update in observed("prune:share=0.9").values():
        for name, value in update.items():
            assert int((value == 0).sum()) == round(0.9 * value.numel()), name
    for update in observed("clip:max_norm=0.001").values():
        norm = math.sqrt(sum(float(value.square().sum()) for value in update.values()))
        assert norm == pytest.approx(0.001, rel=1e-2)


def test_noise_differs_between_rounds(run_locally, tmp_path):
    run_locally(
        model="lenet", num_clients=1, defence="noise:std=10", learning_rate=1e-12, tape=str(tmp_path / "tape")
    )  # so little is learnt that both rounds would send nearly the same
    one, two = (
        observation.update["classifier.weight"].flatten() for observation in Tape(tmp_path / "tape").observations()
    )
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 5 / math.sqrt(len(one))


def test_running_statistics_are_no_defences_business(run_locally, tmp_path):
    sent = {}
    for spec in ("none", "noise:std=5"):
        run_locally(
            model="tests.fl_precode.exotic_models:normalised", dataset="photos", protocol="fedavg", local_steps=1,
            batch_size=4, num_clients=1, num_server_rounds=1, defence=spec, out=spec[:4],
            tape=str(tmp_path / spec[:4] / "tape"),
        )  # fmt: skip
        tape = Tape(tmp_path / spec[:4] / "tape")
        (entry,) = [entry for entry in tape.entries if entry.node]
        sent[spec] = tape._tensors(entry)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(sent["none"][name], sent["noise:std=5"][name]), name
    assert not torch.equal(sent["none"]["1.weight"], sent["noise:std=5"]["1.weight"])


@pytest.mark.parametrize("protocol", [{"protocol": "fedsgd"}, {"protocol": "fedavg", "local_epochs": 1}])
def test_what_differential_privacy_has_cost_is_in_the_result(run_locally, protocol):
    _, out = run_locally(**protocol, model="lenet", num_clients=2, batch_size=64, defence=DP)
    spent = result_of(out)["privacy"]
    sizes = [len(part) for part in prepare(Settings(num_clients=2, dataset="digits", device="cpu")).partitions]
    rate, steps = 64 / min(sizes), 2 * (math.ceil(min(sizes) / 64) if "local_epochs" in protocol else 1)
    assert (spent["sample_rate"], spent["delta"]) == (pytest.approx(rate), 1e-5)
    assert spent["steps"] == steps
    assert spent["epsilon"] == pytest.approx(dp_epsilon(noise_multiplier=1.1, sample_rate=rate, steps=steps))
    assert "Poisson" in spent["note"]


def test_without_opacus_the_run_goes_on_and_epsilon_is_not_known(run_locally, monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    _, out = run_locally(model="lenet", num_clients=1, num_server_rounds=1, defence=DP)
    assert result_of(out)["finished"]
    assert result_of(out)["privacy"]["epsilon"] is None
    assert "pip install 'fl-precode[dp]'" in result_of(out)["privacy"]["note"]


def test_without_noise_epsilon_is_unknown_and_without_dp_nothing_is_claimed(run_locally):
    tiny = {"model": "lenet", "num_clients": 1, "num_server_rounds": 1}
    _, out = run_locally(**tiny, defence="dp:max_norm=1,noise_multiplier=0")
    assert result_of(out)["privacy"]["epsilon"] is None
    assert result_of(out)["privacy"]["steps"] == 1
    _, out = run_locally(**tiny, out="clip", defence="clip:max_norm=1")
    assert result_of(out)["privacy"] is None


def test_the_exact_loss_is_not_sent_beside_a_private_gradient(run_locally):
    from clients.app import app as client_app

    seen = []

    def listening(message, context):
        reply = client_app(message, context)
        seen.append(dict(next(iter(reply.content.metric_records.values()))))
        return reply

    tiny = {"model": "lenet", "num_clients": 1, "num_server_rounds": 1}
    run_locally(client=listening, **tiny, defence=DP)
    run_locally(client=listening, **tiny, out="plain")
    assert [sorted(metrics) for metrics in seen] == [["num-examples"], ["num-examples", "train-loss"]]


def test_what_does_not_fit_is_refused_before_anything_starts():
    for spec, message in (("ppp:std=1", "defence: .*use precode"), ("noise", "defence: 'noise'.*needs std")):
        with pytest.raises(SettingsError, match=message):
            Settings(defence=spec)
    model = "tests.fl_precode.exotic_models:normalised"
    with pytest.raises(ValueError, match=r"running statistics \(1\)"):
        prepare(Settings(dataset="photos", defence=DP, model=model))
    with pytest.raises(ValueError, match="needs feature maps"):
        prepare(Settings(dataset="digits", defence="cvb", model="mlp"))
    with pytest.raises(ValueError, match="none named 'fc'"):
        prepare(Settings(dataset="digits", defence="soteria:layer=fc"))


def test_the_tape_announces_the_whole_spec():
    settings = Settings(dataset="digits", defence="precode+ppp:std=0.01")
    assert tape_header(prepare(settings)).protocol.defence == "precode+ppp:std=0.01"


@pytest.mark.federation
def test_a_real_federation_trains_the_same_defended_model(run_locally, tmp_path):
    common = {"model": "lenet", "num_clients": 2, "num_server_rounds": 2, "dataset": "digits", "device": "cpu"}
    common |= {"protocol": "fedavg", "local_steps": 2, "batch_size": 4, "seeded_noise": True}
    common["defence"] = "cvb+precode:latent=8+soteria+ppp:std=0.001+quantise:bits=8"
    _, here = run_locally(**common, out="here")
    with SimulationRuntime() as runtime:
        outcome = runtime.run(Settings(**common, output_dir=str(tmp_path / "there"), tape=str(tmp_path / "tape")))
    assert outcome.completed, outcome.log
    hashes = [[one["model_sha256"] for one in result_of(out)["rounds"]] for out in (here, tmp_path / "there")]
    assert hashes[0] == hashes[1]
    assert len(Tape(tmp_path / "tape").observations()) == 4
