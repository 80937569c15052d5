"""Work on an existing Ray cluster. Ray carries text only; tapes and finished chunks lie where all nodes see them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from attacker.audit.chunk import Chunk
from attacker.audit.chunk_store import ChunkFolder
from attacker.audit.crew import Event, work


class RayCluster:
    """A cluster that is running already; each chunk is a task on one of its processors, or on a GPU.

    Args:
        address: ``auto`` or ``host:port``, as `ray.init` takes it.
        folder: Of finished chunks, on storage that all nodes share.
        gpu: Whether tasks ask for a GPU.

    Raises:
        RuntimeError: On entering, if there is no Ray here, or no such cluster.
    """

    def __init__(self, address: str, folder: Path, *, gpu: bool = False) -> None:
        self._address = address
        self._folder = folder
        self._gpu = gpu
        self._running: dict[Any, str] = {}

    def __enter__(self) -> RayCluster:
        try:
            import ray
        except ImportError as error:
            raise RuntimeError(f"--ray-address needs Ray on this machine: {error}") from None
        root = str(Path(__file__).resolve().parents[2])
        environment = {"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}}
        try:
            ray.init(address=self._address, runtime_env=environment, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"there is no Ray cluster at {self._address!r} ({error}); start one with `ray start --head`, or leave "
                "--ray-address out to work on this machine alone"
            ) from error
        self._ray: Any = ray  # partly untyped
        # A task that died is begun again by the campaign, which counts how often.
        options: dict[str, Any] = {"max_retries": 0, **({"num_gpus": 1} if self._gpu else {"num_cpus": 1})}
        self._task = ray.remote(**options)(run_text)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._running = {}
        self._ray.shutdown()

    def free(self) -> bool:
        """Whether another chunk can be begun: twice the cluster's slots are, so that none waits for this process."""
        slots = self._ray.cluster_resources().get("GPU" if self._gpu else "CPU", 1)
        return len(self._running) < 2 * max(1, int(slots))

    def begin(self, chunk: Chunk) -> None:
        """See `Crew`."""
        self._running[self._task.remote(chunk.to_json(), str(self._folder))] = chunk.id

    def wait(self) -> Sequence[Event]:
        """See `Crew`; also returns, with nothing, after a few seconds."""
        ready, _ = self._ray.wait(list(self._running), timeout=5.0)
        return [self._event(one) for one in ready]

    def _event(self, reference: Any) -> Event:
        chunk = self._running.pop(reference)
        try:
            problem = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Event("died", chunk, text=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return Event("raised", chunk, text=problem) if problem else Event("done", chunk)


def run_text(chunk: str, folder: str) -> str:
    """The task: work on a chunk given as text; returns what it raised as text, empty when it is done."""
    if not Path(folder).is_dir():
        return (
            f"FileNotFoundError: {folder} is not there on this node of the Ray cluster; --out and the tape must lie on "
            "storage that all nodes share, under the same path"
        )
    event = work(Chunk.from_json(chunk), ChunkFolder(Path(folder)))
    return event.text
