"""Who may import whom (docs/architecture.md): read from the syntax trees, so that a lazy import counts too."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import QUICK

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fl_precode", "server", "clients", "attacker", "deploy")
SEARCHES = {"attacker/cli_reproduce.py", "attacker/cli_comparisons.py", "attacker/cli_recommend.py"}
FRONT_END = SEARCHES | {
    "attacker/cli_analyse.py", "attacker/cli_federation.py", "attacker/cli_lists.py", "attacker/cli_run.py",
    "attacker/demo.py",
}  # fmt: skip
"""Commands, not attacks: they may start federations and list data sets."""

HOST_SIDE = {"deploy/demo.py", "deploy/compose.py"}
"""Run by whichever Python there is, before anything is installed."""

ABOVE_JOBS = tuple(f"attacker.{one}" for one in ("attacks", "audit", "engine", "labels", "leakage", "report"))

FACES = {f"fl_precode/{name}.py" for name in ("attacks", "auditing", "cli", "labels", "leakage", "metrics", "report")}
"""What users import of the private package, each loaded when it is first used; the package itself names them for types.
"""

INSIDE = (
    (("attacker/engine/", "attacker/metrics.py"), ("attacker.attacks", "attacker.audit", "attacker.report")),
    (
        ("attacker/jobs/",),
        ABOVE_JOBS,
    ),
    (("attacker/leakage/",), ("attacker.attacks", "attacker.audit", "attacker.labels", "attacker.report")),
    (("attacker/engine/",), ("attacker.leakage",)),
    (("attacker/attacks/", "attacker/labels/"), ("attacker.audit", "attacker.report")),
    (("attacker/audit/",), ("attacker.report",)),
)
"""Parts of the attacker, and parts that they must not import."""

FILES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def nodes(file: str) -> list[ast.AST]:
    """The syntax tree of a file, which several rules read."""
    return list(ast.walk(ast.parse((ROOT / file).read_text())))


@cache
def imports(file: str) -> set[str]:
    """Dotted names of everything a file imports, absolute."""
    found: set[str] = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide who imports whom"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def forbidden(file: str) -> list[str]:
    """Packages that the file must not import."""
    if file.startswith("fl_precode/flower/"):
        return ["attacker", "server", "clients"]
    if file in FACES:
        return ["flwr", "ray", "fl_precode.flower", "server", "clients", "scipy"]
    if file == "fl_precode/__init__.py":
        return ["flwr", "ray", "server", "clients", "scipy", "pydantic"]
    if file.startswith("fl_precode/"):
        return ["flwr", "ray", "fl_precode.flower", "attacker", "server", "clients", "scipy", "pydantic"]
    if file.startswith("server/"):
        return ["clients", "ray"] + ([] if file == "server/app.py" else ["attacker"])
    if file.startswith("clients/"):
        return ["server", "attacker", "ray"]
    if file.startswith("deploy/"):
        return ["attacker", "server", "clients", "ray", *([] if file not in HOST_SIDE else ["fl_precode", "flwr"])]
    return forbidden_to_the_attacker(file)


def forbidden_to_the_attacker(file: str) -> list[str]:
    if file.startswith("attacker/reproduce/"):
        # Evaluation that knows the images and runs federations. The clients' own code comes in by one file.
        return ["flwr", "ray"] + ([] if file == "attacker/reproduce/client.py" else ["server", "clients"])
    banned = ["flwr", "server", "clients"] + ([] if file == "attacker/jobs/ray_workers.py" else ["ray"])
    if file not in SEARCHES:
        banned.append("attacker.reproduce")
    if file not in FRONT_END:
        banned.append("fl_precode.flower")
        if file != "attacker/audit/truth_federation.py":
            banned += ["fl_precode.data", "fl_precode.federation", "fl_precode.config"]
    banned += [package for folders, packages in INSIDE for package in packages if file.startswith(folders)]
    return banned


def is_wording(name: str) -> bool:
    """How names and numbers are written: text to text, which verdicts need as much as pages do."""
    return within(name, "attacker.report.words")


@pytest.mark.parametrize("file", FILES)
def test_imports_only_what_its_layer_may(file):
    allowed = is_wording if file.startswith("attacker/audit/") else lambda _name: False
    wrong = sorted(
        name for name in imports(file) for package in forbidden(file) if within(name, package) and not allowed(name)
    )
    assert not wrong, f"{file} must not import {wrong}"


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("attacker/report/")])
def test_the_report_reads_the_record_and_nothing_else_of_the_attacker(file):
    of_the_record = tuple(f"attacker.audit.{name}" for name in ("record", "counting", "view", "verdict", "compare"))
    names_of_attacks = "attacker.attacks.registry.attack_title"
    allowed = (*of_the_record, names_of_attacks, "attacker.leakage.record", "attacker.report", "attacker.metrics")
    wrong = sorted(
        name
        for name in imports(file)
        if within(name, "attacker")
        and name not in ("attacker", "attacker.attacks.registry")
        and not any(within(name, ok) for ok in allowed)
    )
    assert not wrong, f"{file} must not import {wrong}"


def test_wording_stands_on_the_ground():
    """Verdicts, pages and commands write by it: what it imported, all of them would stand on."""
    assert not [name for name in imports("attacker/report/words.py") if within(name, "attacker")]


MODULES = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}


def imported_modules(module: str) -> set[str]:
    """Modules of ours that a module imports: at once, in a function, or for its types alone."""
    found: set[str] = set()
    for node in nodes(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & MODULES.keys()) | ({node.module or ""} if whole - MODULES.keys() else set())
    return (found & MODULES.keys()) - {module}


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: sorted(imported_modules(module)) for module in MODULES}
    assert sum(map(len, graph.values())) > 2 * len(MODULES), "hardly any import was found"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"each of these is imported by the next: {' -> '.join(error.args[1])}; move what they share down")


@pytest.mark.parametrize("package", ["fl_precode", "attacker"])
def test_the_libraries_import_without_flower_and_ray(package):
    import subprocess
    import sys

    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('flwr', 'ray'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"import {package}, pkgutil, importlib\n"
        f"for module in pkgutil.walk_packages({package}.__path__, '{package}.'):\n"
        "    if '.flower' not in module.name and not module.name.endswith(('.cli_run', '.demo', '.__main__')):\n"
        "        importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", [*FILES, *(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("*.py"))])
def test_files_stay_below_500_lines(file):
    assert len((ROOT / file).read_text().splitlines()) <= 500, file


@pytest.mark.parametrize("file", FILES)
def test_functions_stay_below_50_lines(file):
    for node in nodes(file):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            has_docstring = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
            start = body[0].end_lineno if has_docstring else node.lineno
            assert (node.end_lineno or 0) - (start or 0) <= 50, f"{file}: {node.name}"


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_pickled_and_nothing_moves_itself_to_a_gpu(file):
    source = (ROOT / file).read_text()
    assert not {name for name in imports(file) if within(name, "pickle") or within(name, "cloudpickle")}
    assert ".cuda()" not in source
    assert "torch.load(" not in source


def test_the_quick_files_are_there():
    assert {path.stem for path in (ROOT / "tests").rglob("test_*.py")} >= QUICK, "tests/quick.txt names others"
