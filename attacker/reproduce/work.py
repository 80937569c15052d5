"""How a cell is made: trained, attacked or judged. Federations are run by `attacker.reproduce.federations`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacker.attacks.attack import Outcome, Reconstruction
from attacker.attacks.contest import Contest
from attacker.attacks.registry import build_attack
from attacker.audit.evaluate import OUTCOMES, SUCCESS_THRESHOLD, as_images, in_order, scored
from attacker.audit.placebos import OTHER_UPDATE, beyond, same_images, updates_of_others
from attacker.audit.record import finite
from attacker.engine import trace
from attacker.reasons import raised
from attacker.reproduce.cells import AttackRun, Cell, Choice, Point, Result, StoredFile, Training, VictimScore
from attacker.reproduce.client import accuracy_and_loss, central_epochs, client_seconds, defended_model, observe
from attacker.reproduce.experiment import Experiment, generator, guesses_of, images
from attacker.reproduce.federations import LOCAL_SGD_RATE, federation_settings, run_in_process
from attacker.reproduce.store import Store, identity
from attacker.victim import Victim
from fl_precode.config import Settings
from fl_precode.data import ImageData
from fl_precode.federation import choose_device
from fl_precode.models import build_model
from fl_precode.observation import Observation


def make(experiment: Experiment, cell: Cell, store: Store) -> Result:
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


def victims(experiment: Experiment, cell: Cell) -> list[list[int]]:
    """For each attacked client the indices of its training images; the same in all cells of an image set and seed."""
    data = images(cell.setup.data, experiment.data_root)
    order = torch.randperm(len(data.train), generator=generator("victims", experiment.seed)).tolist()
    own = cell.batch_size * max(cell.local_steps, 1)
    wanted = own * -(-experiment.scale.victims // own)
    if cell.part:
        order = _telling(data, order, 2 * wanted)[wanted if cell.part == "judged" else 0 :]
    if len(order) < wanted:
        raise ValueError(f"expected more training images in {cell.setup.data}: {wanted} to attack, got {len(order)}")
    return [order[start : start + own] for start in range(0, wanted, own)]


def _telling(data: ImageData, order: Sequence[int], wanted: int) -> list[int]:
    """The first images for which SSIM tells a reconstruction from a guess; for want of them those guessed worst."""
    found: list[int] = []
    others: list[tuple[float, int]] = []
    for index in order:
        if len(found) == wanted:
            return found
        (guess,) = guesses_of(data).at(*data.train.batch([index]))
        if guess is not None and guess.ssim < SUCCESS_THRESHOLD:
            found.append(index)
        else:
            others.append((1.0 if guess is None else guess.ssim, index))
    return [*found, *(index for _, index in sorted(others, key=lambda one: one[0]))][:wanted]


def _train(experiment: Experiment, cell: Cell, store: Store) -> Training:
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

    def __init__(self, experiment: Experiment, cell: Cell, store: Store) -> None:
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
        self.observations: list[Observation] = observe(model, data, settings, self.clients, device)
        self.victim = Victim(model=model, inputs=data.inputs, name=cell.setup.model)
        self.labels: list[Tensor] = [data.train.batch(own)[1] for own in self.clients]


def attacked_settings(experiment: Experiment, cell: Cell) -> Settings:
    """Of the federation whose clients are attacked."""
    rate = {"learning_rate": LOCAL_SGD_RATE} if cell.protocol == "fedavg" else {}
    return experiment.settings(
        cell.setup, protocol=cell.protocol, batch_size=cell.batch_size, local_steps=cell.local_steps, **rate
    )


def _attack(experiment: Experiment, cell: Cell, store: Store) -> AttackRun:
    scene = Scene(experiment, cell, store)
    (spec,) = cell.attacks
    attack = build_attack(spec)
    try:
        found = attack(
            scene.victim,
            scene.observations,
            generator=generator("attack", experiment.seed, spec),
            labels=scene.labels,
        )
    except Exception as error:
        # One attack's defect must not cost the results of the others; the record names it.
        failed = Reconstruction(inputs=None, labels=None, outcome=Outcome.FAILED, reason=raised(error))
        found = [failed] * len(scene.observations)
    return AttackRun(
        victims=_scores(scene, found),
        images=_keep(store, identity(cell, experiment.recipe(cell)), found),
        seconds=0.0,
    )


def _scores(scene: Scene, found: Sequence[Reconstruction]) -> list[VictimScore]:
    """Here the truth comes in."""
    truths = [scene.data.train.batch(own) for own in scene.clients]
    made = [as_images(result, scene.victim.inputs) for result in found]
    same = same_images([truth for truth, _ in truths])
    rows = []
    for place, others in enumerate(updates_of_others(same)):
        placebos = [images for one in others if (images := made[one]) is not None]
        rows += _rows(scene, place, found[place], truths[place], placebos)
    return rows


def _rows(
    scene: Scene, place: int, result: Reconstruction, of: tuple[Tensor, Tensor], placebos: Sequence[Tensor]
) -> list[VictimScore]:
    """Of one client."""
    (truth, labels), own = of, scene.clients[place]
    restored = as_images(result, scene.victim.inputs)
    scores = scored(None if restored is None else in_order(restored, truth), truth, result.outcome)
    best = beyond(guesses_of(scene.data).at(truth, labels), truth, ((OTHER_UPDATE, placebos),))
    return [
        VictimScore(
            image=own[i],
            label=int(labels[i]),
            outcome=OUTCOMES[result.outcome],
            reason=result.reason,
            ssim=score.ssim,
            psnr=score.psnr,
            mse=score.mse,
            baseline_ssim=best[i].mean_ssim,
            guess_ssim=best[i].ssim,
            matching_loss=finite(result.matching_loss),
        )
        for i, score in enumerate(scores)
    ]


def _keep(store: Store, name: str, found: Sequence[Reconstruction]) -> StoredFile | None:
    """The reconstructions with the labels that they go by, and how they came to be."""
    tensors: dict[str, Tensor] = {}
    for number, one in enumerate(found):
        if one.inputs is not None:
            tensors[f"{number}.inputs"] = one.inputs
            tensors[f"{number}.analytic"] = torch.tensor(one.iterations == 0 and one.outcome is Outcome.CONVERGED)
            if one.labels is not None:
                tensors[f"{number}.labels"] = one.labels
    return store.keep(f"images-{name}", tensors) if tensors else None


def kept_reconstructions(store: Store, run: AttackRun, clients: int, device: torch.device) -> list[Reconstruction]:
    """What an attack left for each client, as far as a comparison needs it.

    Raises:
        ValueError: If the file is missing or was altered.
    """
    tensors = store.load(run.images) if run.images else {}
    found = []
    for number in range(clients):
        inputs = tensors.get(f"{number}.inputs")
        if inputs is None:
            found.append(Reconstruction.not_applicable("it left no image"))
            continue
        analytic = bool(tensors[f"{number}.analytic"])
        found.append(
            Reconstruction(
                inputs=inputs.to(device),
                labels=tensors.get(f"{number}.labels"),
                outcome=Outcome.CONVERGED if analytic else Outcome.ITERATION_LIMIT,
                iterations=0 if analytic else 1,
            )
        )
    return found


def _choose(experiment: Experiment, cell: Cell, store: Store) -> Choice:
    """The attacker's own choice: images are compared by the update that they give, without the truth."""
    scene = Scene(experiment, cell, store)
    seen = trace(scene.victim)
    device = choose_device(experiment.device)
    contests = [Contest(scene.victim, seen, observation) for observation in scene.observations]
    for spec in cell.attacks:
        own = Cell(
            kind="attack", setup=cell.setup, protocol=cell.protocol, batch_size=cell.batch_size,
            local_steps=cell.local_steps, epoch=cell.epoch, attacks=(spec,),
        )  # fmt: skip
        run = store.result(own, experiment.recipe(own), AttackRun)
        for contest, one in zip(contests, kept_reconstructions(store, run, len(contests), device), strict=True):
            if not contest.decided:
                contest.consider(spec, one)
    return Choice(chosen=[contest.result().method for contest in contests], seconds=0.0)
