"""What the containers run, without containers."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from deploy import submit
from deploy.connection import write_connection
from deploy.health import healthy
from deploy.partitions import write_partitions
from deploy.run_settings import settings_from_environment
from deploy.serve import report_server
from fl_precode.federation.config import Settings, SettingsError
from fl_precode.federation.federation import prepare


def test_settings_come_from_the_environment_with_their_types():
    environment = {
        "RUN_MODEL": "mlp",
        "RUN_NUM_SERVER_ROUNDS": "5",
        "RUN_LEARNING_RATE": "0.5",
        "RUN_DEFENCE": "",
        "X": "1",
    }
    settings = settings_from_environment(environment)
    assert settings == Settings(model="mlp", num_server_rounds=5, learning_rate=0.5)


def test_wrong_settings_are_all_named():
    with pytest.raises(SettingsError, match=r"(?s)num-server-rounds: expected a whole number, got 'many'.*'speed'"):
        settings_from_environment({"RUN_NUM_SERVER_ROUNDS": "many", "RUN_SPEED": "1"})


def test_each_client_gets_its_part_and_nothing_else(tmp_path):
    settings = Settings(dataset="digits", num_clients=3)
    sizes = write_partitions(tmp_path, settings)
    federation = prepare(settings)
    assert sum(sizes) == len(federation.data.train)
    for number, indices in enumerate(federation.partitions):
        with np.load(tmp_path / f"client-{number}" / "partition.npz") as own:
            assert np.array_equal(own["images"], federation.data.train.images[indices].numpy())


@pytest.fixture
def served(tmp_path):
    (tmp_path / "index.html").write_text("<p>Ein Bild</p>")
    with report_server(tmp_path / "index.html", 0, host="127.0.0.1") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_report_is_served_and_nothing_beside_it(served):
    with urllib.request.urlopen(served + "/", timeout=5) as answer:
        assert answer.read() == b"<p>Ein Bild</p>"
        assert answer.headers["Cache-Control"] == "no-store"
    for path in ("/index.html", "/../etc/passwd", "/images/1.png"):
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(served + path, timeout=5)
        refused.value.close()


def test_health_is_what_answers(served):
    assert healthy(served + "/health")
    assert not healthy(served + "/other")
    assert not healthy("http://127.0.0.1:1/health")
    assert not healthy(served.replace("http:", "https:") + "/health")


def test_a_name_is_used_once(tmp_path, capsys):
    folder = tmp_path / "demo"
    folder.mkdir()
    assert not submit.finished_already(tmp_path, "demo")
    (folder / "result.json").write_text(json.dumps({"finished": True}))
    assert submit.main("demo", tmp_path) == 0
    assert "nothing is submitted" in capsys.readouterr().out
    (folder / "result.json").write_text(json.dumps({"finished": False}))
    assert submit.main("demo", tmp_path) == 1
    assert "has not ended well; give this one another name" in capsys.readouterr().err


def test_the_command_line_is_told_whom_to_trust(tmp_path):
    write_connection(tmp_path / "home", address="superlink:8000", certificate=tmp_path / "ca.crt")
    text = (tmp_path / "home" / "config.toml").read_text()
    assert 'address = "superlink:8000"' in text
    assert "insecure" not in text
