"""Runs the reference app on Flower's simulation runtime and returns its true outcome.

``flwr run`` starts a SuperLink that stays behind, installs dependencies at run time and lets workers import from
whichever folder it was first called in. The launcher owns a SuperLink instead.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from deploy.simulation.reference_app import stage_app
from deploy.simulation.submission import RunOutcome, Submission, failure_reason, to_toml
from deploy.simulation.superlink import CONNECTION, LaunchError, OwnedSuperLink
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import choose_device, prepare
from fl_precode.flower.fingerprint import FINGERPRINTED, folder_fingerprint
from fl_precode.loss import criterion

__all__ = ["RunOutcome", "SimulationRuntime", "check_machine", "failure_reason", "launch", "to_toml"]


class SimulationRuntime:
    """An own SuperLink with the reference app ready to run; each run inside is a real Flower run on Ray.

    Args:
        app: Folder of the reference app; by default the one that this package belongs to, installed or a checkout.
        port: Port of the SuperLink on 127.0.0.1; 0 picks a free one.
        environment: Extra variables for the started processes.

    Raises:
        LaunchError: On entering, if the app is incomplete, the port taken, or the SuperLink does not come up.
    """

    def __init__(self, *, app: Path | None = None, port: int = 0, environment: Mapping[str, str] | None = None) -> None:
        self._source = app
        self._superlink = OwnedSuperLink(port=port, environment=environment)

    def __enter__(self) -> SimulationRuntime:
        self._superlink.__enter__()
        try:
            self._app = stage_app(self._superlink.folder / "fl-precode", folder=self._source)
        except OSError as error:
            self._superlink.close()
            raise LaunchError(str(error)) from error
        self._fingerprint = folder_fingerprint(self._app / package for package in FINGERPRINTED)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._superlink.close()

    def run(
        self,
        settings: Settings,
        *,
        client_resources_num_cpus: float = 1,
        client_resources_num_gpus: float = 0,
        ray_cpus: int | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> RunOutcome:
        """Submit one run and wait for its end.

        Args:
            settings: The run configuration; refused before anything starts when data, partition or model do not fit.
            client_resources_num_cpus: CPUs that Ray reserves for each client.
            client_resources_num_gpus: GPUs, or the share of one, that Ray reserves for each client.
            ray_cpus: CPUs that the run's own Ray divides among clients, all of them by default. Each process that
                trains clients takes seconds to start. A cluster named by ``RAY_ADDRESS`` keeps those it has.
            on_line: Called with every line of the run's log as it comes.

        Raises:
            LaunchError: If Flower does not accept the run.
            ValueError: If the settings do not fit the data or this machine.
        """
        _check(settings, client_resources_num_gpus)
        config = self._superlink.folder / f"run-{uuid.uuid4().hex[:8]}.toml"
        config.write_text(to_toml(replace(settings, code_fingerprint=self._fingerprint).to_run_config()))
        federation = (
            f"num-supernodes={settings.num_clients} client-resources-num-cpus={client_resources_num_cpus:g} "
            f"client-resources-num-gpus={client_resources_num_gpus:g}"
        )
        if ray_cpus is not None and not os.environ.get("RAY_ADDRESS"):
            federation += f" init-args-num-cpus={ray_cpus}"
        submission = Submission(self._superlink.flwr, CONNECTION)
        return submission.run(self._app, config, federation=federation, on_line=on_line)


def launch(
    settings: Settings,
    *,
    app: Path | None = None,
    port: int = 0,
    environment: Mapping[str, str] | None = None,
    client_resources_num_cpus: float = 1,
    client_resources_num_gpus: float = 0,
    on_line: Callable[[str], None] | None = None,
) -> RunOutcome:
    """Run one federation from start to end; see ``SimulationRuntime`` and its ``run``."""
    _check(settings, client_resources_num_gpus)
    with SimulationRuntime(app=app, port=port, environment=environment) as runtime:
        return runtime.run(
            settings,
            client_resources_num_cpus=client_resources_num_cpus,
            client_resources_num_gpus=client_resources_num_gpus,
            on_line=on_line,
        )


def _check(settings: Settings, client_resources_num_gpus: float) -> None:
    """Refuse what no client could do, before a process starts.

    Raises:
        ValueError: If data, partition, model or defence do not fit, or the loss is none that clients can minimise.
    """
    check_machine(settings, client_resources_num_gpus)
    criterion(settings.loss, prepare(settings).data.inputs.classes)


def check_machine(settings: Settings, client_resources_num_gpus: float) -> None:
    """Refuse a GPU that is not there, unless the clients run on somebody else's Ray cluster.

    Raises:
        ValueError: If a GPU is asked for and this machine has none.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    choose_device(settings.device)
    if client_resources_num_gpus > torch.cuda.device_count():
        raise ValueError(
            f"each client asks for {client_resources_num_gpus:g} GPU(s), this machine has {torch.cuda.device_count()}; "
            "use client-resources-num-gpus = 0"
        )
