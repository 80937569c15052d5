"""A reference federation in one process."""

from __future__ import annotations

import logging

import pytest
from flwr.app import Context, RecordDict

from clients.app import app as client_app
from fl_precode.federation.config import Settings
from server.app import app as server_app
from tests.local_grid import LocalGrid


class Lines(logging.Handler):
    """What the guard says in Flower's log."""

    def __init__(self):
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record):
        if record.getMessage().startswith("Leakage guard"):
            self.records.append(record)

    @property
    def last(self) -> str:
        return self.records[-1].getMessage()


@pytest.fixture
def run_locally(tmp_path):
    """Run server and clients through real messages; returns (grid, output folder)."""

    def run(client=client_app, **settings):
        out = tmp_path / settings.pop("out", "out")
        chosen = Settings(
            **{"num_clients": 3, "num_server_rounds": 2, "dataset": "digits", "device": "cpu", **settings},
            output_dir=str(out),
        )
        config = chosen.to_run_config()
        grid = LocalGrid(client, chosen.num_clients, config)
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
        server_app(grid, context)
        return grid, out

    return run


@pytest.fixture
def said():
    """The guard's lines in Flower's log, which goes to no other logger."""
    lines, logger = Lines(), logging.getLogger("flwr")
    logger.addHandler(lines)
    yield lines
    logger.removeHandler(lines)
