"""Joins finished cells to the figures of the experiment."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from attacker.audit.execution.machine import this_machine, versions
from attacker.audit.record.counting import best_guess
from attacker.audit.record.schema import finite
from attacker.audit.record.trials import share_interval
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD, tally
from attacker.experiments.attack_sets import is_adaptive
from attacker.experiments.cells import (
    AttackedVictims,
    Cell,
    ChosenAttacks,
    FederationRun,
    Point,
    Setup,
    Training,
    VictimScore,
)
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.precode.summary import (
    AttackScore,
    Curve,
    DataSummary,
    LeftOutSetup,
    Score,
    SetupState,
    SetupSummary,
    Summary,
)
from attacker.experiments.precode.which_attack_breaks import falls
from attacker.experiments.scales import PPP_ALONE
from attacker.experiments.store import Store

_MOST_DECIBELS = 100.0


def summarise(experiment: Experiment, setups: Sequence[Setup], left_out: Mapping[Setup, str], store: Store) -> Summary:
    """The figures of an experiment whose cells are all finished.

    Raises:
        ValueError: If a cell is missing or was altered.
    """
    cells = experiment.cells(setups)
    summaries = [_setup(experiment, setup, [cell for cell in cells if cell.setup == setup], store) for setup in setups]
    scale = experiment.scale
    return Summary(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scale=scale.name,
        success_threshold=SUCCESS_THRESHOLD,
        settings={
            "seed": experiment.seed,
            "victims": scale.victims,
            "iterations": scale.iterations,
            "learning_rate": scale.learning_rate,
            "epochs": scale.epochs,
            "rounds": scale.rounds,
            "clients": scale.clients,
            "local_epochs": scale.local_epochs,
            "labels": "granted",
        },
        versions=versions(),
        machine=this_machine(),
        notes=[PPP_ALONE],
        data=[_data(experiment, name) for name in experiment.data],
        setups=summaries,
        falls=falls(summaries),
        left_out=[
            LeftOutSetup(data=setup.data, model=setup.model, defence=setup.defence, reason=why)
            for setup, why in left_out.items()
        ],
        seconds=sum(_seconds(store, experiment, cell) for cell in cells),
    )


def _seconds(store: Store, experiment: Experiment, cell: Cell) -> float:
    result = store.read(cell, experiment.recipe(cell))
    return result.seconds if result is not None else 0.0


def _data(experiment: Experiment, name: str) -> DataSummary:
    loaded = images(name, experiment.data_root)
    counts = loaded.test.labels.bincount()
    return DataSummary(
        name=loaded.name,
        shape=loaded.inputs.shape,
        classes=loaded.inputs.classes,
        train=len(loaded.train),
        test=len(loaded.test),
        most_frequent=int(counts.max()) / len(loaded.test),
    )


def _setup(experiment: Experiment, setup: Setup, cells: Sequence[Cell], store: Store) -> SetupSummary:
    def result(cell: Cell, kind: type) -> object:
        return store.result(cell, experiment.recipe(cell), kind)

    trained = result(cells[0], Training)
    assert isinstance(trained, Training)
    federated = [result(cell, FederationRun) for cell in cells if cell.kind == "federation"]
    tested = len(images(setup.data, experiment.data_root).test)
    epsilon, note, run = None, "", None
    for federation in federated:
        assert isinstance(federation, FederationRun)
        epsilon, note = federation.epsilon, federation.epsilon_note
        run = curve(federation.curve, tested, federation.seconds, federation.reason)
    return SetupSummary(
        data=images(setup.data, experiment.data_root).name,
        model=setup.model,
        defence=setup.defence,
        parameters=trained.parameters,
        parameters_undefended=trained.parameters_undefended,
        payload_bytes=trained.payload_bytes,
        payload_bytes_undefended=trained.payload_bytes_undefended,
        client_seconds=trained.client_seconds,
        epsilon=epsilon,
        epsilon_note=note,
        central=curve(trained.curve, tested, trained.seconds, ""),
        federated=run,
        states=[
            _state(epoch, [cell for cell in cells if cell.epoch == epoch], result)
            for epoch in experiment.scale.attacked
        ],
    )


def curve(points: Sequence[Point], tested: int, seconds: float, note: str) -> Curve:
    """Accuracy with the interval that the number of test images leaves."""
    final = points[-1].accuracy if points else None
    interval = None if final is None else share_interval(round(final * tested), tested, tested)
    return Curve(points=list(points), final=final, interval=interval, note=note, seconds=seconds)


def _state(epoch: int, cells: Sequence[Cell], result: Callable[[Cell, type], object]) -> SetupState:
    runs: dict[str, AttackedVictims] = {}
    chosen: list[str] = []
    for cell in cells:
        if cell.kind == "attack":
            run = result(cell, AttackedVictims)
            assert isinstance(run, AttackedVictims)
            runs[cell.attacks[0]] = run
        elif cell.kind == "choice":
            choice = result(cell, ChosenAttacks)
            assert isinstance(choice, ChosenAttacks)
            chosen = choice.chosen
    columns = list(zip(*(run.victims for run in runs.values()), strict=True))
    clients = len(chosen)
    each = len(columns) // clients  # images of one client
    taken = [
        next((victim for spec, victim in zip(runs, column, strict=True) if spec == chosen[place // each]), column[0])
        for place, column in enumerate(columns)
    ]
    return SetupState(
        epoch=epoch,
        baseline=score([_guessed(column) for column in columns]),
        attacks=[
            AttackScore(
                attack=spec,
                adaptive=is_adaptive(spec),
                score=score(run.victims),
                seconds=run.seconds,
                reasons=sorted({victim.reason for victim in run.victims if victim.reason}),
            )
            for spec, run in runs.items()
        ],
        best_by_own_measure=score(taken),
        best_by_ssim=score([max(column, key=_similarity) for column in columns]),
    )


def _similarity(victim: VictimScore) -> float:
    return float("-inf") if victim.ssim is None else victim.ssim


def _guessed(column: Sequence[VictimScore]) -> VictimScore:
    """The best guess at an image in place of a reconstruction; a guess has nothing that it has to come beyond."""
    best = max((known for victim in column if (known := best_guess(victim)) is not None), default=None)
    nothing = {"psnr": None, "mse": None, "outcome": "converged", "reason": ""}
    return column[0].model_copy(update={**nothing, "ssim": best, "baseline_ssim": -1.0, "guess_ssim": -1.0})


def score(rows: Iterable[VictimScore]) -> Score:
    """Success of one attack, or of a choice between several, as `attacker.audit.record.counting` counts it."""
    victims = list(rows)
    tried, failed, back = tally(victims)
    return Score(
        victims=len(tried),
        not_applicable=len(victims) - len(tried),
        failed=failed,
        successes=len(back),
        rate=len(back) / len(tried) if tried else None,
        interval=share_interval(len(back), len(tried), len(tried)) if tried else None,
        ssim=_mean(victim.ssim for victim in tried),
        psnr=_mean(_decibels(victim) for victim in tried),
        mse=_mean(victim.mse for victim in tried),
    )


def _decibels(victim: VictimScore) -> float | None:
    if victim.psnr is None:
        return _MOST_DECIBELS if victim.mse == 0 else None
    return min(victim.psnr, _MOST_DECIBELS)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return finite(statistics.fmean(known)) if known else None
