"""Work on a cell: training, attack or judgement. `attacker.experiments.federations` runs federations."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.best_match import Contest
from attacker.attacks.registry import build_attack
from attacker.audit.execution.attack_job import Attempt
from attacker.audit.record.schema import finite
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD, compared_updates
from attacker.audit.truth.base import Truth
from attacker.experiments.cells import (
    AttackedVictims,
    Cell,
    ChosenAttacks,
    Point,
    Result,
    StoredFile,
    Training,
    VictimScore,
)
from attacker.experiments.clients import (
    accuracy_and_loss,
    central_epochs,
    client_seconds,
    defended_model,
    observe_clients,
)
from attacker.experiments.conditions import Conditions
from attacker.experiments.federations import federation_settings, run_in_process
from attacker.experiments.image_sets import guesses_of, images
from attacker.experiments.scales import sgd_rate
from attacker.experiments.seeds import generator, seeds
from attacker.experiments.store import Store, identity
from attacker.gradients.trace import trace
from attacker.victim import Victim
from fl_precode.data import ImageData
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import choose_device
from fl_precode.models import build_model
from fl_precode.observation import Observation


def make(experiment: Conditions, cell: Cell, store: Store) -> Result:
    """The result of a cell; a federation is run in this process.

    Raises:
        ValueError: If a file that it depends on is missing or was altered.
    """
    began = time.perf_counter()
    result: Result
    if cell.kind == "training":
        result = _train(experiment, cell, store)
    elif cell.kind == "attack":
        result = _attack(experiment, cell, store)
    elif cell.kind == "choice":
        result = _choose(experiment, cell, store)
    else:
        result = run_in_process(federation_settings(experiment, cell))
    return result.model_copy(update={"seconds": time.perf_counter() - began})


def victims(experiment: Conditions, cell: Cell) -> list[list[int]]:
    """For each attacked client the indices of its training images; the same in all cells of an image set and seed."""
    data = images(cell.setup.data, experiment.data_root)
    order = torch.randperm(len(data.train), generator=generator("victims", experiment.seed)).tolist()
    per_client = cell.batch_size * max(cell.local_steps, 1)
    wanted = per_client * -(-experiment.scale.victims // per_client)
    if cell.part:
        # From two halves, so that no validation image is judged, however many of each there are.
        half = len(order) // 2
        order = _telling(data, order[half:] if cell.part == "judged" else order[:half], wanted)
    if len(order) < wanted:
        raise ValueError(f"expected more training images in {cell.setup.data}: {wanted} to attack, got {len(order)}")
    return [order[start : start + per_client] for start in range(0, wanted, per_client)]


def _telling(data: ImageData, order: Sequence[int], wanted: int) -> list[int]:
    """The first images for which SSIM tells a reconstruction from a guess; for want of them those guessed worst."""
    telling: list[int] = []
    others: list[tuple[float, int]] = []
    for index in order:
        if len(telling) == wanted:
            return telling
        (guess,) = guesses_of(data).at(*data.train.batch([index]))
        if guess is not None and guess.ssim < SUCCESS_THRESHOLD:
            telling.append(index)
        else:
            others.append((1.0 if guess is None else guess.ssim, index))
    return [*telling, *(index for _, index in sorted(others, key=lambda pair: pair[0]))][:wanted]


def _train(experiment: Conditions, cell: Cell, store: Store) -> Training:
    data = images(cell.setup.data, experiment.data_root)
    settings, scale = experiment.settings(cell.setup), experiment.scale
    device = choose_device(experiment.device)
    model = defended_model(settings, data).to(device)
    plain = build_model(settings.model, data.inputs, seed=experiment.seed)
    seconds = client_seconds(model, data, settings, device)
    name = identity(cell, experiment.recipe(cell))
    curve = [_point(0, model, data, experiment.seed)]
    kept: dict[int, StoredFile] = {}
    for epoch in central_epochs(model, data, settings, scale.epochs, device):
        curve.append(_point(epoch, model, data, experiment.seed))
        if epoch in scale.attacked:
            kept[epoch] = store.keep(f"weights-{name}-{epoch}", model.state_dict())
    return Training(
        curve=curve,
        parameters=_parameters(model),
        parameters_undefended=_parameters(plain),
        payload_bytes=_payload(model),
        payload_bytes_undefended=_payload(plain),
        client_seconds=seconds,
        weights=kept,
        seconds=0.0,
    )


def _point(number: int, model: nn.Module, data: ImageData, seed: int) -> Point:
    accuracy, loss = accuracy_and_loss(model, model.state_dict(), data.test, data.inputs, seed=seed)
    return Point(number=number, accuracy=accuracy, loss=finite(loss))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _payload(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


class Scene:
    """What is attacked in a cell: the public model, what the server sees, and, for the evaluation, the truth."""

    def __init__(self, experiment: Conditions, cell: Cell, store: Store) -> None:
        data = images(cell.setup.data, experiment.data_root)
        settings = attacked_settings(experiment, cell)
        device = choose_device(experiment.device)
        model = defended_model(settings, data)
        if cell.epoch:
            training = Cell(kind="training", setup=cell.setup)
            made = store.result(training, experiment.recipe(training), Training)
            model.load_state_dict(store.load(made.weights[cell.epoch]))
        model.to(device)
        self.data = data
        self.clients = victims(experiment, cell)
        self.observations: list[Observation] = observe_clients(model, data, settings, self.clients, device)
        self.victim = Victim(model=model, inputs=data.inputs, name=cell.setup.model)
        self.labels: list[Tensor] = [data.train.batch(indices)[1] for indices in self.clients]


def attacked_settings(experiment: Conditions, cell: Cell) -> Settings:
    """Settings of the federation whose clients are attacked."""
    rate = {"learning_rate": sgd_rate(cell.batch_size)} if cell.protocol == "fedavg" else {}
    return experiment.settings(
        cell.setup, protocol=cell.protocol, batch_size=cell.batch_size, local_steps=cell.local_steps, **rate
    )


def _attack(experiment: Conditions, cell: Cell, store: Store) -> AttackedVictims:
    scene = Scene(experiment, cell, store)
    (spec,) = cell.attacks
    reconstructions = Attempt(
        name=cell.stem,
        method=build_attack(spec),
        victim=scene.victim,
        updates=scene.observations,
        labels=scene.labels,
        seeds=seeds("attack", experiment.seed, spec, count=len(scene.observations)),
    ).results()
    return AttackedVictims(
        victims=_scores(scene, reconstructions),
        images=_keep(store, identity(cell, experiment.recipe(cell)), reconstructions),
        seconds=0.0,
    )


def _scores(scene: Scene, reconstructions: Sequence[Reconstruction]) -> list[VictimScore]:
    """Here the truth comes in."""
    batches = [scene.data.train.batch(indices) for indices in scene.clients]
    truths = [Truth(images=truth, labels=labels) for truth, labels in batches]
    rows = compared_updates(reconstructions, truths, scene.victim.inputs, guesses_of(scene.data))
    return [
        VictimScore(**dict(row), image=image, label=int(label), matching_loss=finite(result.matching_loss))
        for indices, truth, result, scores in zip(scene.clients, truths, reconstructions, rows, strict=True)
        for image, label, row in zip(indices, truth.labels, scores, strict=True)
    ]


def _keep(store: Store, name: str, reconstructions: Sequence[Reconstruction]) -> StoredFile | None:
    """The reconstructions with the labels that they go by, and how they came to be."""
    tensors: dict[str, Tensor] = {}
    for number, reconstruction in enumerate(reconstructions):
        if reconstruction.inputs is not None:
            tensors[f"{number}.inputs"] = reconstruction.inputs
            tensors[f"{number}.analytic"] = torch.tensor(
                reconstruction.iterations == 0 and reconstruction.outcome is Outcome.CONVERGED
            )
            if reconstruction.labels is not None:
                tensors[f"{number}.labels"] = reconstruction.labels
    return store.keep(f"images-{name}", tensors) if tensors else None


def kept_reconstructions(
    store: Store, run: AttackedVictims, clients: int, device: torch.device
) -> list[Reconstruction]:
    """What an attack left for each client, as far as a comparison needs it.

    Raises:
        ValueError: If the file is missing or was altered.
    """
    tensors = store.load(run.images) if run.images else {}
    reconstructions = []
    for number in range(clients):
        inputs = tensors.get(f"{number}.inputs")
        if inputs is None:
            reconstructions.append(Reconstruction.not_applicable("it left no image"))
            continue
        analytic = bool(tensors[f"{number}.analytic"])
        reconstructions.append(
            Reconstruction(
                inputs=inputs.to(device),
                labels=tensors.get(f"{number}.labels"),
                outcome=Outcome.CONVERGED if analytic else Outcome.ITERATION_LIMIT,
                iterations=0 if analytic else 1,
            )
        )
    return reconstructions


def _choose(experiment: Conditions, cell: Cell, store: Store) -> ChosenAttacks:
    """The attacker's own choice: images are compared by the update that they give, without the truth."""
    scene = Scene(experiment, cell, store)
    traced = trace(scene.victim)
    device = choose_device(experiment.device)
    contests = [Contest(scene.victim, traced, observation) for observation in scene.observations]
    for spec in cell.attacks:
        attack_cell = Cell(
            kind="attack", setup=cell.setup, protocol=cell.protocol, batch_size=cell.batch_size,
            local_steps=cell.local_steps, epoch=cell.epoch, attacks=(spec,),
        )  # fmt: skip
        run = store.result(attack_cell, experiment.recipe(attack_cell), AttackedVictims)
        for contest, reconstruction in zip(
            contests, kept_reconstructions(store, run, len(contests), device), strict=True
        ):
            if not contest.decided:
                contest.consider(spec, reconstruction)
    return ChosenAttacks(chosen=[contest.result().method for contest in contests], seconds=0.0)
