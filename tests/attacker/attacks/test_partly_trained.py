"""Clients that train a part of a model, whatever they send of it, are audited like all others."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from fl_precode import Protocol
from fl_precode.models import build_model
from fl_precode.tape import TapeHeader, TapeWriter
from fl_precode.tape.notes import input_spec
from tests.attacker.audits import audit_tape

X = torch.tensor(load_digits().images[3:5] / 16, dtype=torch.float32)[:, None]
Y = torch.tensor(load_digits().target[3:5])
INPUTS = input_spec("1x8x8", 10)
MODELS = ("low_rank", "adapters", "biases_only", "head_only")
RATE = 0.1


def taped(folder, model: str, *, kind: str, trained_only: bool):
    """A round of two clients with an image each."""
    net = build_model(f"tests.partly_trained_models:{model}", INPUTS, seed=0, strict=False)
    own = [name for name, value in net.named_parameters() if value.requires_grad]
    steps = {"local_steps": 1, "batch_size": 1, "learning_rate": RATE}
    protocol = Protocol(name="fedavg" if kind == "weights" else "fedsgd", loss="cross-entropy", **steps)
    name = f"tests.partly_trained_models:{model}"
    writer = TapeWriter(
        folder / "tape", TapeHeader(model=name, inputs=INPUTS, protocol=protocol, defence="none", kind=kind)
    )

    def sent(values):
        return {n: v.detach().numpy() for n, v in values.items() if n in own or not trained_only}

    file = writer.write_sent(1, {"arrays": sent(net.state_dict())})
    for node in range(2):
        client = deepcopy(net)
        F.cross_entropy(client(X[node : node + 1]), Y[node : node + 1]).backward()
        if kind == "gradient":
            reply = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in client.named_parameters()}
        else:
            torch.optim.SGD([p for p in client.parameters() if p.requires_grad], lr=RATE).step()
            reply = dict(client.state_dict())
        metrics = {"metrics": {"num-examples": 1}}
        assert writer.write_reply(1, str(node), {"arrays": sent(reply)}, sent=file, metrics=metrics)
    assert not writer.lost
    return folder / "tape"


@pytest.mark.parametrize(("kind", "trained_only"), [("weights", True), ("gradient", False)])
@pytest.mark.parametrize("model", MODELS)
def test_what_was_trained_is_searched_and_tells_the_label(tmp_path, model, kind, trained_only):
    tape = taped(tmp_path, model, kind=kind, trained_only=trained_only)
    search = "inverting-gradients:iterations=60,total_variation=0"
    record = audit_tape(tape, out=tmp_path / "audit", attacks=[search, "layerwise-inversion"], victims=2)
    (federation,) = record.federations
    assert federation.doubts == federation.not_announced == federation.tape_problems == []
    codes = {one.code for one in federation.assumptions} - {"scale-guessed", "scale-unknown"}
    assert codes == ({"weights-of-the-factory"} if trained_only else set())
    found = [one for one in record.results if one.attack == search]
    assert [one.recovered_label for one in found] == Y.tolist()
    assert all(one.matching_loss < 0.5 * one.starting_loss for one in found)
