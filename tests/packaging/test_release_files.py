"""What a release stands on besides code: workflows run what the Makefile runs, pages and forms say what is so."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DECLARED["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
PRIVATE_PAGES = ("SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", ".github/pull_request_template.md")

sys.path.append(str(ROOT / "docs" / "reference"))
import generate_licences  # noqa: E402


def steps(workflow):
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


def commands(workflow):
    return [step["run"].strip() for step in steps(workflow) if "run" in step]


def recipe(target):
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found, f"no target {target} in the Makefile"
    return found[1]


def test_each_workflow_checks_by_the_makefile():
    assert commands("lint") == ["make lint"]
    assert commands("tests") == ["make suite", "make lowest"]
    assert commands("docs") == ["make site"]
    assert commands("wheel") == ["make dist", "make try-dist"]
    assert {"make test", "make dist", "make try-dist", "make sbom"} < set(commands("release"))
    made = {line.split()[1] for name in WORKFLOWS for line in commands(name) if line.startswith("make ")}
    assert all(recipe(target) for target in made)


def test_the_targets_of_the_workflows_run_what_they_promise():
    assert all(tool in recipe("lint") for tool in ("ruff check .", "ruff format --check .", "mypy"))
    assert all("$(SUITE)" in recipe(target) for target in ("suite", "test", "lowest"))
    assert "--resolution lowest-direct" in recipe("lowest")
    assert all(tool in recipe("dist") for tool in ("-m build", "twine check --strict", "check-wheel-contents"))
    assert "fl-precode --version" in recipe("try-dist")
    written = re.search(r"--output-file (\S+)", recipe("sbom"))[1]
    assert written in [step.get("with", {}).get("path") for step in steps("release")]


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_a_workflow_may_do_little_and_ends(name):
    """Reading the code at most; only jobs that publish may do more, one thing each."""
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert workflow["concurrency"]["cancel-in-progress"] is (name != "release")
    for key, job in workflow["jobs"].items():
        more = {"publish": {"id-token": "write"}, "announce": {"contents": "write"}}
        more |= {"deploy": {"pages": "write", "id-token": "write"}}
        assert job.get("permissions", {"contents": "read"}) == more.get(key, {"contents": "read"})
        assert job["timeout-minutes"] <= 60
    for used in (step["uses"] for step in steps(name) if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+", used), "by the platform itself, and by major version"
    checkouts = [step for step in steps(name) if step.get("uses", "").startswith("actions/checkout")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_only_the_job_that_runs_no_code_of_the_repository_may_publish():
    job = WORKFLOWS["release"]["jobs"]["publish"]
    assert [step.get("uses", "").partition("@")[0] for step in job["steps"]][:2] == [
        "actions/download-artifact",
        "actions/setup-python",
    ]
    assert not any("make" in step.get("run", "") for step in job["steps"])
    assert job["environment"] == "release"
    assert job["needs"] == "build"


def test_every_python_of_the_classifiers_is_tested():
    classified = {one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)}
    for workflow, job in (("tests", "suite"), ("wheel", "wheel")):
        assert set(WORKFLOWS[workflow]["jobs"][job]["strategy"]["matrix"]["python"]) == classified
    assert PROJECT["requires-python"] == f">={min(classified, key=lambda one: int(one[2:]))}"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_asks_and_asks_for_no_private_file(form):
    content = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert content == {"blank_issues_enabled": False}
        return
    names = [part["id"] for part in content["body"] if part["type"] != "markdown"]
    assert len(set(names)) == len(names) >= 2
    assert any(part.get("validations", {}).get("required") for part in content["body"])
    if form.stem != "new-attack":
        assert "no tape, no audit folder and no report of real people" in " ".join(form.read_text().split())


def test_the_hooks_are_the_tools_of_the_development_environment():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    entries = [hook["entry"] for hook in local["hooks"]]
    assert [" ".join(entry.split()[:2]) for entry in entries] == [
        ".venv/bin/ruff check",
        ".venv/bin/ruff format",
        ".venv/bin/mypy",
    ]
    tools = {Requirement(one).name for one in PROJECT["optional-dependencies"]["dev"]}
    assert {Path(entry.split()[0]).name for entry in entries} <= tools


def test_the_citation_is_of_the_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == PROJECT["version"]
    assert cited["license"] == "Apache-2.0"
    assert f"## [{cited['version']}] - {cited['date-released']}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_changes_of_the_version_are_read_in_five_minutes():
    _, unreleased, latest, *_ = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert unreleased.startswith("[Unreleased]")
    assert latest.startswith(f"[{PROJECT['version']}]")
    assert len(latest.split()) <= 900


def test_the_image_of_the_containers_is_named_by_the_version():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    images = set(re.findall(r"fl-precode:[\w.]+", json.dumps(services)))
    assert images == {f"fl-precode:{PROJECT['version']}"}


@pytest.mark.parametrize("page", PRIVATE_PAGES)
def test_links_of_the_pages_for_contributors_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target
    assert "@" not in text, "no address is promised"
    for target in re.findall(r"^make ([\w-]+)", text.replace("&& make", "\nmake"), re.MULTILINE):
        assert recipe(target)


def rows():
    """Cells of each package of docs/reference/licences.md by its name."""
    lines = [line for line in generate_licences.PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells if row[0] not in ("package", "---")}


def test_the_page_of_licences_has_every_package_that_an_installation_names():
    listed = rows()
    named: dict[str, set[str]] = {}
    for extra, texts in {"base": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        for one in map(Requirement, texts if extra not in generate_licences.FOR_WORK else ()):
            if one.name == PROJECT["name"]:
                continue
            name = canonicalize_name(one.name)
            assert sorted(listed[name][0].split(", ")) == sorted(map(str, one.specifier)), name
            named.setdefault(name, set()).add(extra)
    for name, extras in named.items():
        assert "base" in extras or extras <= set(listed[name][2].split(", ")), name
        assert listed[name][2] == "base" or "base" not in extras, name


def test_no_licence_is_unknown():
    for name, (_, licence, extras) in rows().items():
        assert licence not in ("", "UNKNOWN", "None"), name
        assert extras, name


def test_a_licence_is_read_from_the_installed_package():
    assert generate_licences.licence_of(distribution("pytest")) == "MIT"
    assert generate_licences.licence_of(distribution("safetensors")) == "Apache-2.0", "of a classifier"


def test_what_a_package_brings_is_needed_too_and_by_whom_is_known():
    needed = {one.name: one for one in generate_licences.needed_by("base", "audit")}
    assert needed["torch"].named_by == {"base"}
    assert needed["sympy"].asked_by.keys() >= {"torch"}
    assert (needed["sympy"].named_by, needed["sympy"].needed_by) == (set(), {"base"})
    assert needed["scipy"].needed_by == {"audit"}


def test_a_package_without_a_licence_is_an_error(tmp_path):
    folder = tmp_path / "nameless-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: nameless\nVersion: 1.0\nLicense: UNKNOWN\n")
    (found,) = distributions(path=[str(tmp_path)])
    with pytest.raises(ValueError, match="nameless 1.0 states no licence"):
        generate_licences.licence_of(found)
