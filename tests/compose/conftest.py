"""One federation for all tests of this folder; they run in the order of the file and each leaves it usable."""

from __future__ import annotations

import json

import pytest

from deploy.compose import NotPossible
from tests.compose.engine import running_engine
from tests.compose.federation import PROJECT, ROOT, Federation


@pytest.fixture(scope="session")
def engine():
    try:
        with running_engine() as found:
            yield found
    except NotPossible as error:
        pytest.fail(f"compose-test needs a Docker engine: {error}")


@pytest.fixture(scope="session")
def federation(engine):
    made = Federation(engine)
    made.demo("down")
    yield made
    made.demo("down")
    engine.seconds = dict(engine.seconds)
    out = ROOT / "outputs"
    out.mkdir(exist_ok=True)
    (out / "compose-test.json").write_text(json.dumps({"project": PROJECT, "seconds": engine.seconds}, indent=2))
