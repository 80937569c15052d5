"""The demo: five small federations on real images, listened to and audited, on one page."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from attacker.audit.audit import audit
from attacker.audit.execution.checkpoint import NAME as CAMPAIGN
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.settings import AuditSettings
from attacker.cli.audit import finish, use_threads
from attacker.cli.checkout.federation import follow_rounds, keep_and_check
from attacker.cli.checkout.reproduce import how_many
from attacker.cli.progress import progress_bar
from deploy.simulation.launch import SimulationRuntime
from fl_precode.federation.config import Settings

MODELS = ("lenet", "mlp")
DEFENCES = ("none", "precode")
LARGE = Settings(model="vit", defence="precode", dataset="photos224", num_server_rounds=2, num_clients=2)
"""The fifth: a vision transformer on photographs of 224x224 pixels. Gradient matching would take an hour on it."""

EXACT = "patch-embedding"
MARKER = ".fl-precode-demo"

AT_A_TIME = 3
"""Federations that run side by side: half of the time of one is waiting for processes to start. Each trains its few
clients in one process, because a second would take longer to start than it could save."""


def run_demo(out: Path, *, dataset: str, rounds: int, clients: int, victims: int, iterations: int, seed: int) -> None:
    """Run and audit the federations of every model with every defence, and one at 224x224 pixels.

    Args:
        out: Absolute folder; what an earlier demo left there is replaced, anything else is left alone.
        dataset: An image set, of the first four.
        rounds: Rounds of each of them; FedSGD with one image a client and round.
        clients: Clients of each of them.
        victims: Updates to attack in each federation.
        iterations: Steps of Inverting Gradients; its other settings are those of the PRECODE paper.
        seed: Random seed.

    Raises:
        ValueError: If the folder holds something else, or a setting is wrong.
        JobFailed: If a federation failed.
    """
    started = time.monotonic()
    small = Settings(dataset=dataset, num_server_rounds=rounds, num_clients=clients)
    chosen = [replace(small, model=model, defence=defence) for model in MODELS for defence in DEFENCES]
    settings = {
        name: replace(one, seed=seed, output_dir=str(out / name), tape=str(out / name / "tape"))
        for one in (*chosen, LARGE)
        for name in (f"{one.model}-{one.defence}",)
    }
    prepare_folder(out, list(settings))
    run_federations([*reversed(settings.values())])  # the large one, which takes longest, first
    # The PRECODE paper's attack, with fewer steps, between two that need no search; the last one knows of PRECODE.
    searched = ("first-layer", f"inverting-gradients:preset=precode-paper,iterations={iterations}")
    attacks = {"lenet": (*searched, "through-bottleneck"), "mlp": searched, LARGE.model: (EXACT,)}
    use_threads(1)
    with progress_bar("audit") as tell:
        record = audit(
            [TapeSource(tape=Path(run.tape), attacks=attacks[run.model]) for run in settings.values()],
            AuditSettings(
                attacks=(*attacks["lenet"], EXACT),
                victims=victims,
                seed=seed,
                control=False,
            ),
            out=out,
            workers=how_many(0, "cpu"),
            title=f"Demo: federated training on {dataset}, with and without PRECODE",
            watch=lambda state: tell(state.share, state.title),
        )
    finish(record, out)
    Console().print(f"done in {time.monotonic() - started:.0f} s")


def run_federations(configurations: Collection[Settings]) -> None:
    """Run the federations, some at a time, on one SuperLink.

    Raises:
        JobFailed: If a federation failed; those that run are ended.
    """
    rounds = sum(one.num_server_rounds for one in configurations)
    # The pool is left last: the SuperLink's end ends what its threads wait for.
    with (
        ThreadPoolExecutor(AT_A_TIME) as pool,
        progress_bar("federations", total=rounds, keep=True) as tell,
        follow_rounds(tell) as follow,
        SimulationRuntime() as runtime,
    ):

        def run(one: Settings) -> None:
            outcome = runtime.run(one, ray_cpus=1, on_line=follow(f"{one.model}, {one.defence}", one.num_server_rounds))
            keep_and_check(outcome, Path(one.output_dir))

        try:
            for running in [pool.submit(run, one) for one in configurations]:
                running.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def prepare_folder(out: Path, runs: list[str]) -> None:
    """Make the folder, without what an earlier demo left in it.

    Raises:
        ValueError: If it holds anything that no demo has made.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise ValueError(f"{out} is not empty and not of an earlier demo; name another folder with --out")
    for name in (*runs, CAMPAIGN, "images", "report"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "audit.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    (out / MARKER).touch()
