"""Logs an audit to an MLflow server: its figures and its page (extra ``mlflow``)."""

from __future__ import annotations

import os
import re
from typing import Any, Final

from attacker.audit.record.naming import identified_in
from attacker.audit.record.schema import AuditRecord
from attacker.report.pack.answers import audited

EXPERIMENT: Final = "fl-precode"
_UNLESS_SAID: Final = {
    # A server that is away shall not cost minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
}
"""Settings of MLflow's client, unless the user has set them."""

_LONGEST: Final = 500
_SAFE: Final = re.compile(r"[^A-Za-z0-9_\-. /]")


class NotLogged(Exception):
    """The MLflow server did not take the run; the text says what to do."""


def log_run(record: AuditRecord, page: str, page_name: str, uri: str) -> str:
    """Log one run to the experiment ``fl-precode``; its address on a server, else its identifier.

    Args:
        record: The audit.
        page: HTML text.
        page_name: Its file name.
        uri: URI of the server, as MLflow takes it.

    Raises:
        NotLogged: If MLflow is not installed, or the server is away or refuses.
    """
    for name, value in _UNLESS_SAID.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise NotLogged(
            "nothing was logged to MLflow: its client is not installed. Install it with "
            "pip install 'fl-precode[mlflow]'"
        ) from None
    try:
        return _logged(MlflowClient(tracking_uri=uri), uri, record, page, page_name)
    except (MlflowException, OSError) as error:
        said = " ".join(str(error).split())[:300]
        raise NotLogged(
            f"nothing more was logged to MLflow at {uri}: {said}. Look whether the server runs there and takes "
            "artifacts (mlflow server), then give the command again without --pack"
        ) from None


def _logged(client: Any, uri: str, record: AuditRecord, page: str, page_name: str) -> str:
    from mlflow.entities import Metric, Param, RunTag

    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
    run = client.create_run(number, run_name=record.title[:_LONGEST])
    identifier = str(run.info.run_id)
    try:
        moment = run.info.start_time
        tags = {"fl-precode.created": record.created} | {
            f"fl-precode.{one.federation.id}.verdict": one.verdict.finding.value for one in audited(record)
        }
        client.log_batch(
            identifier,
            metrics=[Metric(name, value, moment, 0) for name, value in figures(record).items()],
            params=[Param(name, value[:_LONGEST]) for name, value in settings(record).items()],
            tags=[RunTag(name, value[:_LONGEST]) for name, value in tags.items()],
        )
        client.log_text(identifier, page, page_name)
    except BaseException:
        client.set_terminated(identifier, status="FAILED")
        raise
    client.set_terminated(identifier)
    return f"{uri.rstrip('/')}/#/experiments/{number}/runs/{identifier}" if uri.startswith("http") else identifier


def settings(record: AuditRecord) -> dict[str, str]:
    """What was audited, by name."""
    found = {name: str(value) for name, value in record.settings.items()}
    for one in audited(record):
        federation = one.federation
        for name in ("model", "defence", "dataset", "protocol", "batch_size"):
            found[f"{federation.id}/{name}"] = str(getattr(federation, name))
    return {_safe(name): value for name, value in sorted(found.items())}


def figures(record: AuditRecord) -> dict[str, float]:
    """The figures of a record, by name: those of each federation, and the similarity that each attack came to."""
    found: dict[str, float | None] = {}
    for one in audited(record):
        start, union = one.federation.id, one.view.union
        found[f"{start}/images"] = float(union.images)
        if one.view.scored:
            low, high = union.interval
            found[f"{start}/images_reconstructed"] = float(union.back)
            found[f"{start}/share_reconstructed"] = union.success_rate
            found[f"{start}/share_low"], found[f"{start}/share_high"] = low, high
        if (named := identified_in(one.view)) is not None:
            found[f"{start}/images_identified"] = float(named.count)
            found[f"{start}/share_identified"] = named.count / named.images
        found[f"{start}/accuracy"] = one.federation.final_accuracy
        for summary in one.view.summaries:
            found[f"{start}/{summary.attack}/mean_ssim"] = summary.mean_ssim
            found[f"{start}/{summary.attack}/share_reconstructed"] = summary.success_rate
    return {_safe(name): value for name, value in sorted(found.items()) if value is not None}


def _safe(name: str) -> str:
    """A name that MLflow takes.

    >>> _safe("f1/dlg:iterations=9/mean_ssim")
    'f1/dlg_iterations_9/mean_ssim'
    """
    return _SAFE.sub("_", name)[:250]
