"""The pack's files, read by the programs that they are for. Each is skipped, saying why, where its program is not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from typer.testing import CliRunner

from attacker.audit.record.json_file import write_record
from attacker.audit.record.schema import VerdictEntry
from attacker.audit.scoring.similarity import summarise
from attacker.audit.verdict.finish import finish_record
from attacker.cli.main import app
from attacker.report.pack.evidence import evidence_page, make_pack, write_pack
from attacker.report.pack.tracking import NotLogged, figures, log_run
from attacker.report.verdict import Finding
from tests.attacker.records import each, federation, record, summary
from tests.attacker.rich_records import rich_record


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("audit")
    own = rich_record(place, victims=6)
    write_record(own, place)
    return place, own


def written(found, place, own=None):
    """A pack without its PDF, which takes seconds and is read by people."""
    folder, whole = found
    own = own or whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "weasyprint", None)
        return write_pack(make_pack(own, source=b"{}", page=evidence_page(own, folder, redact=True)), place)


def told(own, finding):
    verdicts = [
        VerdictEntry(federation=one.id, verdict=finding.value.lower(), sentence="A sentence.", cautions=[])
        for one in own.federations
    ]
    return own.model_copy(update={"verdicts": verdicts})


class TestSacro:
    @pytest.fixture(autouse=True)
    def _installed(self, monkeypatch, tmp_path):
        monkeypatch.setenv("MPLBACKEND", "Agg")
        monkeypatch.chdir(tmp_path)  # it writes where it is called
        self.formatter = pytest.importorskip(
            "sacroml.attacks.attack_report_formatter", reason="SACRO-ML is not installed (pip install sacroml)"
        )

    def judged(self, place):
        report = self.formatter.GenerateTextReport()
        report.process_attack_target_json(str(place / "attack_results.json"), str(place / "target.yaml"))
        report.export_to_file(str(place / "summary.txt"))
        return report, (place / "summary.txt").read_text()

    def test_a_leak_counts_against_release(self, found, tmp_path):
        report, text = self.judged(written(found, tmp_path / "pack"))
        assert "model_name: lenet" in text
        assert len(report.support_rejection) == 4  # two sentences for each of two federations
        assert report.support_release == []
        assert report.immediate_rejection == []

    @pytest.mark.parametrize("finding", [Finding.NOT_SHOWN, Finding.NOT_KNOWN])
    def test_weak_evidence_counts_for_nothing(self, found, tmp_path, finding):
        report, _ = self.judged(written(found, tmp_path / "pack", told(found[1], finding)))
        assert (report.support_rejection, report.support_release) == ([], [])

    def test_a_defence_that_held_counts_for_release(self, found, tmp_path):
        own = told(found[1], Finding.HELD)
        plain = [row.model_copy(update={"ssim": 0.05}) for row in own.results]
        report, _ = self.judged(written(found, tmp_path / "pack", own.model_copy(update={"results": plain})))
        assert len(report.support_release) == 2
        assert report.support_rejection == []

    def test_images_that_are_only_identified_count_against_release(self, found, tmp_path):
        """Nothing is more similar than the guess: what the attack made is nearest to its own image all the same."""
        fields = {"candidates": 1001, "candidates_of_class": 1001, "rank_tied": 0, "ssim": 0.05, "baseline_ssim": 0.1}
        results = each("f1", "dlg", 16, rank=[1.0] * 5 + [300.0] * 11, identified=[True] * 5 + [False] * 11, **fields)
        own = finish_record(record([federation("f1")], [summarise("f1", "dlg", results)], results=results))
        report, _ = self.judged(written(found, tmp_path / "pack", own))
        assert own.verdicts[0].verdict == "leaks in part"
        assert len(report.support_rejection) == 2
        assert report.support_release == []

    def test_a_leak_of_too_few_updates_counts_for_nothing(self, found, tmp_path):
        own = record([federation("f1")], [summary("f1", "dlg", 1, 1)])
        report, _ = self.judged(written(found, tmp_path / "pack", told(own, Finding.LEAKS)))
        assert (report.support_rejection, report.support_release) == ([], [])

    def test_its_summaries_and_its_target_read_the_files(self, found, tmp_path):
        from sacroml.attacks.target import Target

        place = written(found, tmp_path / "pack")
        results = json.loads((place / "attack_results.json").read_text())
        metrics = self.formatter.SummariseUnivariateMetricsModule(results).process_dict()
        assert [one["AUC"]["max"] for one in metrics.values()] == [1.0, 1.0]
        values = self.formatter.SummariseAUCPvalsModule(results).process_dict()
        assert values["n_sig_uncorrected"] == values["n_total"] == 5
        target = Target()
        target.load(str(place))
        assert (target.dataset_name, target.has_model(), target.has_data()) == ("faces", False, False)


class TestCrate:
    def test_the_library_reads_every_file_and_what_made_it(self, found, tmp_path):
        module = pytest.importorskip("rocrate.rocrate", reason="ro-crate-py is not installed (pip install rocrate)")
        place = written(found, tmp_path / "pack")
        crate = module.ROCrate(str(place))
        files = {entity.id for entity in crate.data_entities}
        assert files == {path.name for path in place.iterdir()} - {"ro-crate-metadata.json"}
        action = crate.get("#audit")
        assert action.type == "CreateAction"
        assert action["instrument"]["name"] == "fl-precode"
        assert {one.id for one in action["result"]} == files
        assert [one.id for one in action["object"]] == ["#tape-f1", "#tape-f2"]

    def test_the_validator_finds_nothing_that_is_required(self, found, tmp_path):
        program = shutil.which("rocrate-validator")
        if program is None:
            pytest.skip("rocrate-validator is not on the path (pipx install roc-validator; it cannot live beside flwr)")
        place = written(found, tmp_path / "pack")
        asked = ["validate", "-p", "process-run-crate-0.5", "-l", "REQUIRED", "--no-paging", str(place)]
        done = subprocess.run([program, *asked], capture_output=True, text=True, timeout=300)
        said = " ".join((done.stdout + done.stderr).split())
        if "URLError" in said or "not known" in said:
            pytest.skip("the validator could not fetch the specification's context: there is no net")
        assert done.returncode == 0, said


@pytest.mark.parametrize("pack", [None, "pack.zip"])
def test_a_server_that_is_away_is_told_and_the_pack_is_there(found, tmp_path, monkeypatch, pack):
    pytest.importorskip("mlflow", reason="MLflow's client is not installed (pip install mlflow-skinny)")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    address = f"http://127.0.0.1:{free_port()}"
    place = [] if pack is None else ["--pack", str(tmp_path / pack)]
    done = CliRunner().invoke(app, ["report", str(found[0]), "--redact", "--mlflow", address, *place])
    assert done.exit_code == 1
    assert f"nothing more was logged to MLflow at {address}" in done.stderr
    assert ("fl-precode[pdf]" in done.stderr) == (pack is not None)
    assert [path.name for path in tmp_path.iterdir()] == ([] if pack is None else [pack])


def test_without_the_client_it_says_what_to_install(found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(NotLogged, match=r"pip install 'fl-precode\[mlflow\]'"):
        log_run(found[1], "<p>", "page.html", "http://127.0.0.1:9")


def test_figures_have_names_that_mlflow_takes(found):
    names = figures(found[1])
    assert names["f1/images"] == 6
    assert names["f2/inverting-gradients_iterations_600/share_reconstructed"] == 0
    assert not [name for name in names if set(name) & set(":=,+")]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    """A real MLflow server."""
    pytest.importorskip("mlflow.server", reason="MLflow's server is not installed (pip install mlflow)")
    port, store = free_port(), tmp_path / "store"
    store.mkdir()
    command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{store}/runs.db", "--artifacts-destination", str(store / "artifacts")]
    # It starts its workers by their names; runners of jobs are not needed.
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    names = os.environ | {"PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(store / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command, *places], stdout=log, stderr=log, env=names, start_new_session=True
        )
    try:
        yield wait_for(process, f"http://127.0.0.1:{port}", store / "log")
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def wait_for(process, address, log):
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return address
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


@pytest.mark.slow
@pytest.mark.federation
def test_a_real_server_gets_the_figures_and_the_page(found, server, tmp_path):
    from mlflow import MlflowClient

    done = CliRunner().invoke(app, ["report", str(found[0]), "--redact", "--mlflow", server])
    assert f"MLflow run: {server}/#/experiments/" in done.output
    client = MlflowClient(tracking_uri=server)
    (run,) = client.search_runs([client.get_experiment_by_name("fl-precode").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(figures(found[1]))
    assert run.data.params["f2/defence"] == "precode"
    assert run.data.tags["fl-precode.f1.verdict"] == "Leaks"
    page = client.download_artifacts(run.info.run_id, "evidence.html", str(tmp_path))
    with open(page) as text:
        assert "Decision sheet" in text.read()
