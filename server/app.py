"""The reference ServerApp: trains with FedSGD or FedAvg, lets an interceptor listen, evaluates centrally."""

from __future__ import annotations

import time

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fl_precode.federation.accounting import privacy_spent
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import Federation, choose_device, prepare
from fl_precode.flower.fedsgd import FedSgd
from fl_precode.flower.fingerprint import FINGERPRINT_KEY, running_fingerprint
from fl_precode.flower.interceptor import Interceptor
from fl_precode.flower.screening import ScreenedReplies
from fl_precode.tape import TapeHeader
from fl_precode.tape.spool import tape_writer
from server.audits import AuditRuns
from server.evaluate import accuracy_and_loss
from server.results import RunResults

NODE_WAIT_SECONDS = 60.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; raises when a round has no usable reply, so that Flower reports the run as failed."""
    settings = Settings.from_run_config(context.run_config)
    fingerprint = running_fingerprint()
    if settings.code_fingerprint not in ("", fingerprint):
        page = "docs/explanation/architecture.md"
        raise RuntimeError(f"the server runs other code than the launcher submitted; see {page}, T2")
    federation = prepare(settings)
    wait_for_nodes(grid, settings.num_clients)

    model = federation.model()
    buffers = [name for name, _ in model.named_buffers()]
    screened = ScreenedReplies(_strategy(settings, buffers), fingerprint=fingerprint)
    strategy: Strategy = screened
    tape = tape_writer(settings.tape, tape_header(federation)) if settings.tape else None
    if tape is not None:
        strategy = Interceptor(screened, tape, buffers=buffers, sampling=settings.tape_sampling)

    arrays = ArrayRecord(model.state_dict())
    results = RunResults(settings, screened, arrays, parameters=sum(p.numel() for p in model.parameters()))
    audits = AuditRuns(every=settings.audit_every, tape=settings.tape, output_dir=settings.output_dir)
    model.to(choose_device("cpu" if settings.device == "cpu" else "auto"))

    def evaluate(server_round: int, current: ArrayRecord) -> MetricRecord:
        accuracy, loss = accuracy_and_loss(
            model,
            current.to_torch_state_dict(),
            federation.data.test,
            federation.data.inputs,
            seed=settings.seed,
        )
        results.tape_lost = None if tape is None else tape.lost
        results.privacy = privacy_spent(federation, server_round)
        results.add_round(server_round, current, accuracy, loss)
        audits.after_round(server_round)
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    with audits:
        strategy.start(
            grid=grid,
            initial_arrays=arrays,
            num_rounds=settings.num_server_rounds,
            train_config=ConfigRecord({FINGERPRINT_KEY: fingerprint}),
            evaluate_fn=evaluate,
        )
        results.finish()


def _strategy(settings: Settings, buffers: list[str]) -> Strategy:
    if settings.protocol == "fedsgd":
        return FedSgd(learning_rate=settings.learning_rate, buffers=buffers)
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)


def tape_header(federation: Federation) -> TapeHeader:
    """What is public about this federation; seeds and paths are not."""
    settings = federation.settings
    private = {"seed", "data-root", "tape", "output-dir", "code-fingerprint"}
    return TapeHeader(
        model=settings.model,
        defence=settings.defence,
        kind=settings.kind,
        # Said, and not left to be seen: under strong noise weights point elsewhere than those that were sent.
        reply=settings.kind,
        protocol=settings.announced,
        inputs=federation.data.inputs,
        settings={key: value for key, value in settings.to_run_config().items() if key not in private},
    )


def wait_for_nodes(grid: Grid, wanted: int, *, seconds: float = NODE_WAIT_SECONDS) -> None:
    """Wait for the clients to connect; Flower's own strategies would wait without end.

    Raises:
        RuntimeError: If they do not come in time.
    """
    deadline = time.monotonic() + seconds
    while (connected := len(list(grid.get_node_ids()))) < wanted:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"expected {wanted} clients (num-clients), {connected} connected within {seconds:g} s; "
                f'in simulation, run with --federation-config "num-supernodes={wanted}"'
            )
        time.sleep(0.5)
