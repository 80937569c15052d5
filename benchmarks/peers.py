"""Research code as a contender, from a checkout: nothing of it is part of this repository.

invertinggradients (Geiping et al., NeurIPS 2020) needs the package `six` on the path, breaching `hydra-core`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attacker.attacks.gradient_matching.options import options_of
from attacker.bench.contenders import Contender, TimedRun, timed
from attacker.bench.problem import BenchProblem
from fl_precode import Victim
from fl_precode.attacks import GradientMatching
from fl_precode.observation import Gradients


def load(path: Path, package: str) -> Any:
    """Import a package from a checkout."""
    sys.path.insert(0, str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(package)


@dataclass(frozen=True)
class Peer:
    """What runs one restart after another on one observation.

    Attributes:
        library: The imported package.
    """

    library: Any

    name = "peer"
    package = ""

    def reconstruct(self, victim: Victim, update: Gradients, labels: Tensor, settings: GradientMatching) -> Tensor:
        """Images (batch, C, H, W), normalised, from a gradient and its labels (batch,), with settings of ours."""
        raise NotImplementedError

    def contender(self, problem: BenchProblem) -> Contender:
        """One restart on the first victim, with the settings of the engine's contenders."""

        def attack(iterations: int) -> Tensor:
            torch.manual_seed(0)
            settings = GradientMatching().with_options(iterations=iterations)
            return self.reconstruct(problem.victim, problem.observations[0].update, problem.labels[:1], settings)

        def run(iterations: int) -> TimedRun:
            found, wall, cpu = timed(lambda: attack(iterations), problem.device)
            return TimedRun(wall=wall, cpu=cpu, psnr=problem.quality(found), matching_loss=distance(problem, found))

        return Contender(name=self.name, kind=self.name, candidates=1, run=run)


@dataclass(frozen=True)
class FromCheckout:
    """Builds a peer's contender, in whatever process.

    Attributes:
        peer: Which.
        checkout: Checkout of its repository.
    """

    peer: type[Peer]
    checkout: Path

    def __call__(self, problem: BenchProblem) -> Contender:
        """Import the package and build."""
        return self.peer(load(self.checkout, self.peer.package)).contender(problem)


def distance(problem: BenchProblem, found: Tensor) -> float:
    """Cosine distance of the gradient at one image from the first observed one, measured alike for every contender."""
    named = dict(problem.victim.model.named_parameters())
    loss = problem.victim.training_loss(found, problem.labels[:1])
    gradients = torch.autograd.grad(loss, list(named.values()))
    update = problem.observations[0].update
    one = torch.cat([value.flatten().double() for value in gradients])
    other = torch.cat([update[name].flatten().double() for name in named])
    return float(1 - one @ other / (one.norm() * other.norm()))


class InvertingGradients(Peer):
    """The reference code of Inverting Gradients; ``idlg`` settings run its option ``--optim zhu``."""

    name = "invertinggradients"
    package = "inversefed"

    def reconstruct(self, victim: Victim, update: Gradients, labels: Tensor, settings: GradientMatching) -> Tensor:
        inputs = victim.inputs
        device = labels.device
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (inputs.mean, inputs.std))
        ours = options_of(settings)
        common = {"indices": "def", "weights": "equal", "restarts": ours["restarts"], "init": "randn"}
        common |= {"filter": "none", "scoring_choice": "loss"}
        if ours["optimiser"] == "l-bfgs":  # its own values; one of its steps is up to 20 evaluations
            config = {
                "signed": False, "boxed": False, "cost_fn": "l2", "lr": 1e-4, "optim": "LBFGS",
                "max_iterations": max(1, settings.optimiser.iterations // 20),
                "total_variation": 1e-4, "lr_decay": False,
            }  # fmt: skip
        else:
            config = {
                "signed": ours["signed"], "boxed": ours["boxed"], "cost_fn": "sim", "lr": ours["learning_rate"],
                "optim": "adam", "max_iterations": ours["iterations"],
                "total_variation": ours["total_variation"], "lr_decay": True,
            }  # fmt: skip
        attack = self.library.GradientReconstructor(
            victim.model, (mean, std), {**common, **config}, num_images=len(labels)
        )
        observed = [update[name] for name, _ in victim.model.named_parameters()]
        with contextlib.redirect_stdout(io.StringIO()):
            found, _ = attack.reconstruct(observed, labels, img_shape=inputs.shape)
        return found


@dataclass(frozen=True)
class Breaching(Peer):
    """The framework of the same authors, its attack "invertinggradients" with our numbers.

    Attributes:
        training: Whether clients normalise by their own batch and send no statistics; otherwise by the model's.
    """

    training: bool = False

    name = "breaching"
    package = "breaching"

    @cached_property
    def _config(self) -> Any:
        return self.preset("invertinggradients")

    def preset(self, name: str) -> Any:
        """Settings of theirs by name, as they are."""
        logging.getLogger("breaching").setLevel(logging.WARNING)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.library.get_attack_config(name)

    def reconstruct(self, victim: Victim, update: Gradients, labels: Tensor, settings: GradientMatching) -> Tensor:
        config, ours = self._config, options_of(settings)
        config.optim.max_iterations = ours["iterations"]
        config.optim.step_size = ours["learning_rate"]
        config.optim.signed = "hard" if ours["signed"] else None
        config.optim.boxed = ours["boxed"]
        config.optim.callback = ours["iterations"]
        config.restarts.num_trials = ours["restarts"]
        # Its total variation is the mean over both directions, half of the sum that the other two take.
        config.regularization.total_variation.scale = 2 * float(ours["total_variation"])
        return self.attack(victim, update, labels, config)

    def attack(self, victim: Victim, update: Gradients, labels: Tensor, config: Any) -> Tensor:
        """Images (batch, C, H, W), normalised, by settings of theirs."""
        inputs, model = victim.inputs, victim.model
        setup = {"device": labels.device, "dtype": torch.float}
        attack = self.library.attacks.prepare_attack(model, torch.nn.CrossEntropyLoss(), config, setup)
        metadata = SimpleNamespace(modality="vision", shape=inputs.shape, mean=inputs.mean, std=inputs.std)
        buffers = None if self.training else list(model.buffers())
        sent = [{"parameters": list(model.parameters()), "buffers": buffers, "metadata": metadata}]
        known = {"num_data_points": len(labels), "labels": labels, "local_hyperparams": None}
        gradients = [update[name] for name, _ in model.named_parameters()]
        received = [{"gradients": gradients, "buffers": None, "metadata": known}]
        found, _ = attack.reconstruct(sent, received, {})
        return found["data"].detach()
