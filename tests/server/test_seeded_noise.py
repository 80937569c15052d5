"""A server that has the run configuration, and with it the seed, tries to take the clients' noise away."""

from __future__ import annotations

import json

import pytest
import torch

from attacker.metrics.similarity import ssim
from clients.app import _noise_seed
from fl_precode.defences.on_gradients import normal_like
from fl_precode.defences.ppp import fresh_seed
from fl_precode.defences.registry import perturbation_generator
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import prepare
from fl_precode.local_training import batch_gradient
from fl_precode.randomness.random_layers import sample_noise
from fl_precode.tape import Tape

DP = {"dataset": "digits", "model": "mlp", "defence": "dp:max_norm=1,noise_multiplier=1.1", "num_clients": 2}
CASES = {"from the seed": True, "from the system": False}


def images_without_noise(tape, settings):
    """SSIM of what a division gives after the noise of every client number was taken away."""
    fed, found = prepare(settings), []
    for seen in tape.observations():
        for client in range(settings.num_clients):
            generator = perturbation_generator(settings.seed, client, seen.round)
            fresh_seed(generator)
            clean = {
                name: seen.update[name] - 1.1 * normal_like(seen.update[name], generator)
                for name, _ in fed.model().named_parameters()
            }
            sizes = torch.linalg.svdvals(clean["fc1.weight"])
            if sizes[1] < 1e-3 * sizes[0]:
                row = int(clean["fc1.bias"].abs().argmax())
                image = (clean["fc1.weight"][row] / clean["fc1.bias"][row]).reshape(1, *fed.data.inputs.shape)
                truth, _ = fed.data.train.batch(fed.batches(client, seen.round)[0])
                found.append(float(ssim(fed.data.inputs.denormalise(image).clamp(0, 1), truth)))
    return found


@pytest.mark.parametrize("seeded", CASES.values(), ids=CASES)
def test_dp_sgd_without_its_noise_gives_every_image_where_the_noise_came_from_the_seed(run_locally, tmp_path, seeded):
    _, out = run_locally(**DP, num_server_rounds=2, seeded_noise=seeded, tape=str(tmp_path / "tape"))
    settings = Settings(**DP, num_server_rounds=2)
    found = images_without_noise(Tape(tmp_path / "tape"), settings)
    privacy = json.loads((out / "result.json").read_text())["privacy"]
    if seeded:
        assert len(found) == 4
        assert min(found) > 0.99
        assert privacy["epsilon"] is None
        assert "whoever has that seed" in privacy["note"]
    else:
        assert found == []
        assert privacy["epsilon"] > 0
    assert Tape(tmp_path / "tape").header.settings["seeded-noise"] is seeded, "who audits the tape is told"


@pytest.mark.parametrize("seeded", CASES.values(), ids=CASES)
def test_precodes_noise_is_drawn_again_where_it_came_from_the_seed_only(run_locally, tmp_path, seeded):
    chosen = {"dataset": "digits", "model": "mlp", "defence": "precode", "num_clients": 2, "num_server_rounds": 1}
    run_locally(**chosen, seeded_noise=seeded, tape=str(tmp_path / "tape"))
    fed = prepare(Settings(**chosen))
    fits = []
    for seen in Tape(tmp_path / "tape").observations():
        for client in range(2):
            images, labels = fed.data.train.batch(fed.batches(client, 1)[0])
            model = fed.model()
            with sample_noise(torch.Generator().manual_seed(_noise_seed(0, client, 1))):
                replayed, _ = batch_gradient(model, (fed.data.inputs.normalise(images), labels))
            fits.append(all(torch.allclose(value, seen.update[name], atol=1e-6) for name, value in replayed.items()))
    assert sum(fits) == (2 if seeded else 0)
