"""What arrays on a tape mean is worked out when it is read, and every guess is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fl_precode
from fl_precode.defences.recognise import contained_defence, recognised_defence
from fl_precode.models.layout import ModelLayout
from fl_precode.observation import Protocol
from fl_precode.tape import Tape, TapeHeader, TapeWriter
from fl_precode.tape.notes import with_notes


def network(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(12)] if norm else []
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), *middle, nn.Tanh(), nn.Linear(12, 5))


def trained(model: nn.Module, images: int = 1, *, rate: float = 0.1, steps: int = 1, optimiser=None) -> nn.Module:
    step = optimiser(model.parameters()) if optimiser else torch.optim.SGD(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(3)
    model.train()
    for _ in range(steps):
        x = torch.rand(images, 1, 4, 4, generator=generator)
        y = torch.randint(5, (images,), generator=generator)
        step.zero_grad()
        F.cross_entropy(model(x), y).backward()
        step.step()
    return model


def arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def tape_of(
    path: Path, sent: dict[str, np.ndarray], received: dict[str, np.ndarray], header: TapeHeader | None = None, **about
) -> Tape:
    writer = TapeWriter(path, header or TapeHeader())
    file = writer.write_sent(1, {"arrays": sent})
    about = {"metrics": {"metrics": {"num-examples": 1}}, **about}
    assert writer.write_reply(1, "7", {"arrays": received}, sent=file, **about)
    return Tape(path)


def read(tape: Tape, model: nn.Module):
    tape.layout = ModelLayout.of(model)
    return tape.load(tape.entries[0])


def codes(seen) -> set[str]:
    return {one.code for one in seen.assumptions}


def test_weights_need_no_guess(tmp_path):
    before, after = arrays(network()), arrays(trained(network()))
    seen = read(tape_of(tmp_path / "tape", before, after), network())
    assert seen.kind == "weights"
    assert "reply-guessed" not in codes(seen)
    assert np.allclose(seen.update["1.weight"].numpy(), after["1.weight"] - before["1.weight"])


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("sign", [1, -1, 0], ids=["difference", "negative", "gradient"])
def test_differences_and_gradients_are_told_by_the_classifiers_bias(tmp_path, images, rate, sign):
    before, after = arrays(network()), arrays(trained(network(), images, rate=rate))
    change = {name: after[name] - before[name] for name in before}
    reply = {name: (sign or -1 / rate) * value for name, value in change.items()}
    header = TapeHeader(protocol=Protocol(learning_rate=rate))
    about = {"metrics": {"m": {"num-examples": images}}}
    seen = read(tape_of(tmp_path / "tape", before, reply, header, **about), network())
    assert "reply-guessed" in codes(seen)
    assert seen.kind == ("weights" if sign else "gradient")
    expected = change["3.bias"] if sign else -change["3.bias"] / rate
    assert np.allclose(seen.update["3.bias"].numpy(), expected, atol=1e-5)


def test_a_sign_that_cannot_be_seen_is_said(tmp_path):
    before, after = arrays(network()), arrays(trained(network(), 4))
    change = {name: after[name] - before[name] for name in before}
    about = {"metrics": {"m": {"num-examples": 4}}}
    seen = read(tape_of(tmp_path / "tape", before, change, **about), network())
    (guess,) = [one for one in seen.assumptions if one.code == "reply-guessed"]
    assert "which sign they have cannot be seen" in guess.sentence


@pytest.mark.parametrize(("word", "factor"), [("difference", 1.0), ("gradient", 1.0), ("weights", 1.0)])
def test_the_notes_say_what_a_reply_is(tmp_path, word, factor):
    before, after = arrays(network()), arrays(trained(network()))
    change = {name: after[name] - before[name] for name in before}
    tape = tape_of(tmp_path / "tape", before, change)
    (tmp_path / "tape.toml").write_text(f'reply = "{word}"\n')
    tape.header = with_notes(tape.header, tmp_path / "tape")
    seen = read(tape, network())
    assert seen.kind == ("gradient" if word == "gradient" else "weights")
    assert "reply-guessed" not in codes(seen)
    expected = change["3.bias"] - (before["3.bias"] if word == "weights" else 0)
    assert np.allclose(seen.update["3.bias"].numpy(), factor * expected, atol=1e-6)


def test_layers_that_did_not_move_are_constants(tmp_path):
    model = network()
    model[1].requires_grad_(False)
    before = arrays(model)
    step = [p for p in model.parameters() if p.requires_grad]
    after = arrays(trained(model, optimiser=lambda _: torch.optim.SGD(step, lr=0.1)))
    seen = read(tape_of(tmp_path / "tape", before, after), network())
    assert seen.frozen == {"1.weight", "1.bias"}
    assert set(seen.update) == {"3.weight", "3.bias"}
    assert np.array_equal(seen.buffers["1.weight"].numpy(), before["1.weight"])


def test_a_client_that_sends_its_head_only_gets_the_rest_from_the_factory_and_it_is_said(tmp_path):
    before, after = arrays(network()), arrays(trained(network()))
    head = ("3.weight", "3.bias")
    tape = tape_of(tmp_path / "tape", {n: before[n] for n in head}, {n: after[n] for n in head})
    seen = read(tape, network())
    assert "weights-of-the-factory" in codes(seen)
    assert seen.frozen == {"1.weight", "1.bias"}
    assert np.array_equal(seen.buffers["1.weight"].numpy(), before["1.weight"])


def test_a_control_variate_beside_the_weights_is_an_extra(tmp_path):
    before, after = arrays(network()), arrays(trained(network()))
    variate = {name: np.zeros_like(value) for name, value in before.items()}
    writer = TapeWriter(tmp_path / "tape", TapeHeader())
    file = writer.write_sent(1, {"arrays": before, "aa-control": variate})
    assert writer.write_reply(1, "7", {"aa-control": variate, "arrays": after}, sent=file)
    tape = Tape(tmp_path / "tape")
    assert [one.record for one in tape.entries[0].sent.extras] == ["aa-control"]
    seen = read(tape, network())
    assert np.allclose(seen.update["3.bias"].numpy(), after["3.bias"] - before["3.bias"])
    assert np.array_equal(seen.parameters["3.bias"].numpy(), before["3.bias"])


@pytest.mark.parametrize(
    ("protocol", "examples", "images", "code"),
    [
        (Protocol(local_epochs=1, batch_size=8), 6, 6, None),
        (Protocol(batch_size=8), 6, 6, "one-epoch"),
        (Protocol(), 6, 6, "one-pass"),
        (Protocol(local_steps=2, batch_size=3), 9, 6, None),
        (Protocol(local_steps=2), 9, 9, "one-epoch"),
    ],
)
def test_images_behind_an_update_are_worked_out_when_it_is_read(tmp_path, protocol, examples, images, code):
    before, after = arrays(network()), arrays(trained(network()))
    header = TapeHeader(protocol=protocol)
    tape = tape_of(tmp_path / "tape", before, after, header, metrics={"m": {"num_samples": float(examples)}})
    seen = read(tape, network())
    assert seen.batch_size == images
    assert {"one-epoch", "one-pass"} & codes(seen) == ({code} if code else set())


def test_what_was_asked_and_told_goes_behind_what_was_announced(tmp_path):
    before, after = arrays(network()), arrays(trained(network()))
    header = TapeHeader(protocol=Protocol(learning_rate=0.5))
    tape = tape_of(
        tmp_path / "tape", before, after, header,
        metrics={"m": {"num-examples": 6, "batch_size": 2}}, asked={"config": {"lr": 0.1, "local_epochs": 2}},
    )  # fmt: skip
    seen = read(tape, network())
    assert (seen.protocol.learning_rate, seen.protocol.local_epochs, seen.protocol.batch_size) == (0.5, 2, 2)
    assert seen.batch_size == 6


@pytest.mark.parametrize("steps", [1, 3])
def test_batch_normalisation_counts_the_steps(tmp_path, steps):
    before, after = arrays(network(norm=True)), arrays(trained(network(norm=True), 4, steps=steps))
    about = {"metrics": {"m": {"num-examples": 4 * steps}}}
    seen = read(tape_of(tmp_path / "tape", before, after, **about), network(norm=True))
    assert seen.protocol.local_steps == steps
    assert "steps-counted" in codes(seen)
    assert seen.batch_size == 4 * steps


@pytest.mark.parametrize("steps", [1, 3])
def test_a_number_of_examples_that_counts_batches_is_noticed(tmp_path, steps):
    before, after = arrays(network(norm=True)), arrays(trained(network(norm=True), 4, steps=steps))
    about = {"metrics": {"m": {"num-examples": steps}}}
    seen = read(tape_of(tmp_path / "tape", before, after, **about), network(norm=True))
    assert "examples-are-batches" in codes(seen)
    assert seen.batch_size is None
    told = TapeHeader(examples="images")
    seen = read(tape_of(tmp_path / "told", before, after, told, **about), network(norm=True))
    assert "examples-are-batches" not in codes(seen)


def test_bottlenecks_are_recognised_by_what_they_leave_on_a_tape():
    image = torch.zeros(1, 1, 8, 8)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    for defended, kind in (
        (fl_precode.extend(plain, image, latent=7), "precode:latent=7,before=4"),
        (fl_precode.extend_conv(plain, image, latent=3, kernel=3), "cvb:latent=3,kernel=3,before=2"),
    ):
        wrapped = {f"module.{n}": tuple(v.shape) for n, v in defended.state_dict().items()}
        assert recognised_defence(wrapped) == kind
        assert contained_defence(defended) == kind
    assert recognised_defence({n: tuple(v.shape) for n, v in plain.state_dict().items()}) is None
    assert contained_defence(plain) is None


def test_a_header_says_how_its_replies_are_read():
    with pytest.raises(ValueError, match="expected the reply to be one of"):
        replace(TapeHeader(), reply="deltas")
    with pytest.raises(ValueError, match="expected the examples to be one of"):
        replace(TapeHeader(), examples="rows")


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_adam_that_nobody_announced_is_noticed(tmp_path, kind):
    def wide():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 5))

    before = arrays(wide())
    after = arrays(trained(wide(), optimiser=lambda parameters: kind(parameters, lr=1e-3)))
    seen = read(tape_of(tmp_path / "tape", before, after), wide())
    assert seen.protocol.optimiser == "adam"
    assert "optimiser-guessed" in codes(seen)
    told = TapeHeader(protocol=Protocol(optimiser="sgd"))
    seen = read(tape_of(tmp_path / "told", before, after, told), wide())
    assert seen.protocol.optimiser == "sgd"
    plain = arrays(trained(wide()))
    assert read(tape_of(tmp_path / "plain", before, plain), wide()).protocol.optimiser is None


@pytest.mark.parametrize(("word", "sign"), [("weights", 0), ("difference", 1)], ids=["weights", "difference"])
def test_buffers_are_read_as_they_were_after_the_clients_work(tmp_path, word, sign):
    before, after = arrays(network(norm=True)), arrays(trained(network(norm=True), images=2))
    reply = {name: after[name] - sign * before[name] for name in before}
    tape = tape_of(tmp_path / "tape", before, reply)
    (tmp_path / "tape.toml").write_text(f'reply = "{word}"\n')
    tape.header = with_notes(tape.header, tmp_path / "tape")
    seen = read(tape, network(norm=True))
    buffers = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert seen.returned.keys() == buffers == seen.buffers.keys()
    for name in buffers:
        assert np.allclose(seen.returned[name].numpy(), after[name], atol=1e-6)
        assert not np.array_equal(seen.buffers[name].numpy(), after[name])


def test_a_client_that_keeps_its_buffers_returns_none(tmp_path):
    before, after = arrays(network(norm=True)), arrays(trained(network(norm=True), images=2))
    kept = {name: value for name, value in after.items() if "running" not in name and "tracked" not in name}
    assert not read(tape_of(tmp_path / "tape", before, kept), network(norm=True)).returned
