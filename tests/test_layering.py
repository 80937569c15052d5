"""Who may import whom (docs/explanation/architecture.md): read from the syntax trees, so a lazy import counts too."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import QUICK

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fl_precode", "server", "clients", "attacker", "deploy")

LAYERS = (
    # What every part stands on.
    ("fl_precode.randomness",),
    (
        "fl_precode.assumption",
        "fl_precode.import_path",
        "fl_precode.places",
        "fl_precode.plugins",
        "fl_precode.private_file",
    ),
    ("fl_precode.observation", "fl_precode.spec"),
    ("fl_precode.loss",),
    ("fl_precode.group_columns", "fl_precode.objective", "fl_precode.recorded_truth", "fl_precode.true_images"),
    ("fl_precode.models",),
    ("fl_precode.defences",),
    ("fl_precode.privacy",),
    ("fl_precode.local_training",),
    ("fl_precode.tape",),
    ("fl_precode.data",),
    ("fl_precode.federation",),
    # The attacker: mathematics, then attacks, which see observations and public knowledge only.
    ("attacker.attack_sentences", "attacker.audit_sentences"),
    ("attacker", "attacker.jobs", "attacker.metrics", "attacker.model_copy", "attacker.reasons", "attacker.wording"),
    ("attacker.victim",),
    ("attacker.optim",),
    ("attacker.gradients",),
    ("attacker.objectives",),
    ("attacker.analytic",),
    ("attacker.labels",),
    ("attacker.leakage",),
    ("attacker.attacks",),
    # The audit: from here on true images may be seen.
    ("attacker.audit.record",),
    ("attacker.audit.clock", "attacker.audit.threat_model"),
    ("attacker.audit.settings",),
    ("attacker.audit.truth",),
    ("attacker.audit.inputs",),
    ("attacker.audit.execution",),
    ("attacker.audit.federations",),
    ("attacker.audit.planning",),
    ("attacker.audit.scheduler",),
    ("attacker.audit.scoring",),
    ("attacker.audit.verdict",),
    ("attacker.audit",),
    ("attacker.standard",),
    ("attacker.report",),
    ("attacker.simulate",),
    ("attacker.bench",),
    # What users import, and what Flower runs.
    ("fl_precode.auditing",),
    ("fl_precode.judgement",),
    ("fl_precode.flower",),
    ("fl_precode",),
    ("server", "clients"),
    ("deploy",),
    ("attacker.experiments",),
    ("attacker.cli",),
    ("fl_precode.cli",),
)
"""From the ground up: a module may import what stands below it, and what stands in its own package. Packages of one
line do not import each other. The longest name counts: ``fl_precode`` is the public face, and what is named below it
is not."""

ONLY = {
    "flwr": ("fl_precode.flower", "server", "clients", "deploy"),
    "ray": ("attacker.jobs.ray_workers",),
    "fl_precode.data": (
        "fl_precode.federation", "fl_precode.flower", "server", "clients", "deploy",
        "attacker.audit.truth.federation", "attacker.experiments", "attacker.cli",
    ),
    "fl_precode.federation": (
        "fl_precode.flower", "server", "clients", "deploy",
        "attacker.audit.truth.federation", "attacker.experiments", "attacker.cli",
    ),
    "fl_precode.flower": ("fl_precode", "server", "clients", "deploy", "attacker.experiments", "attacker.cli"),
    "attacker": (
        "attacker", "server.app",
        *(f"fl_precode.{face}" for face in ("attacks", "auditing", "cli", "judgement", "labels", "leakage")),
        *(f"fl_precode.{face}" for face in ("metrics", "report")),
    ),
    "server": ("server", "attacker.experiments.clients"),
    "clients": ("clients", "attacker.experiments.clients"),
    "deploy": ("deploy", "attacker.experiments", "attacker.cli.checkout"),
    "attacker.experiments": ("attacker.experiments", "attacker.cli.checkout"),
}  # fmt: skip
"""Who alone may import a package, besides itself."""

HOST_SIDE = ("deploy.compose", "deploy.demo")
"""Run by whichever Python there is, before anything is installed."""

MOST_MODULES = 20
"""Of a package, its face not counted."""

FILES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}


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


def layer_of(module: str) -> tuple[int, str]:
    """The height of a module, and the name in `LAYERS` that it goes by."""
    named = [(len(name), height, name) for height, names in enumerate(LAYERS) for name in names if within(module, name)]
    assert named, f"{module} stands in no layer: name its package in LAYERS"
    return max(named)[1:]


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


def test_modules_import_only_what_stands_below_them():
    wrong = []
    for module in MODULES:
        height, own = layer_of(module)
        for other in imported_modules(module):
            other_height, name = layer_of(other)
            if name != own and other_height >= height and not is_named_for_types(module, other):
                wrong.append(f"{module} must not import {other}, which stands no lower")
    assert not wrong, "\n".join(wrong)


def is_named_for_types(module: str, other: str) -> bool:
    """Whether the public face names what is above it, as its list of contents."""
    return module == "fl_precode" and within(other, "fl_precode")


def test_modules_import_only_what_they_may():
    wrong = [
        f"{module} must not import {name}: {package} is for {', '.join(users)}"
        for module, file in MODULES.items()
        for name in imports(file)
        for package, users in ONLY.items()
        if within(name, package)
        and not within(module, package)
        and not any(within(module, user) and (user != "fl_precode" or module == user) for user in users)
        and not (module == "fl_precode" and package == "attacker")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", HOST_SIDE)
def test_what_runs_before_anything_is_installed_imports_nothing_of_ours(module):
    assert not [name for name in imports(MODULES[module]) if within(name, "fl_precode") or within(name, "flwr")]


READ_BY_REPORTS = (
    "attacker.audit.record",
    "attacker.audit.verdict",
    "attacker.leakage.record",
    "attacker.report",
    "attacker.metrics",
    "attacker.wording",
    "attacker.attacks.registry",  # the titles of attacks
)


def test_the_report_reads_the_record_and_nothing_else_of_the_audit():
    wrong = [
        f"{module} must not import {name}"
        for module in MODULES
        if within(module, "attacker.report")
        for name in imported_modules(module)
        if within(name, "attacker") and not any(within(name, ok) for ok in READ_BY_REPORTS)
    ]
    assert not wrong, "\n".join(wrong)


def test_packages_stay_small_enough_to_be_read():
    inside = Counter(file.rpartition("/")[0] for file in FILES if not file.endswith("/__init__.py"))
    large = {package: modules for package, modules in inside.items() if modules > MOST_MODULES}
    assert not large, f"which modules of these belong together: {large}?"


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
        "    if '.flower' not in module.name and '.checkout' not in module.name:\n"
        "        importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_files_stay_below_500_lines():
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")]
    assert not [file for file in (*FILES, *tests) if len((ROOT / file).read_text().splitlines()) > 500]


def test_functions_stay_below_50_lines():
    long = []
    for file in FILES:
        for node in nodes(file):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body
                has_docstring = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
                start = body[0].end_lineno if has_docstring else node.lineno
                if (node.end_lineno or 0) - (start or 0) > 50:
                    long.append(f"{file}: {node.name}")
    assert not long, "\n".join(long)


def test_nothing_is_pickled_and_nothing_moves_itself_to_a_gpu():
    for file in FILES:
        source = (ROOT / file).read_text()
        assert not {name for name in imports(file) if within(name, "pickle") or within(name, "cloudpickle")}, file
        assert ".cuda()" not in source, file
        # The weights of a published network come as such a file, and are read without running what it says.
        assert source.count("torch.load(") == source.count("torch.load(path, weights_only=True"), file


def test_the_quick_files_are_there():
    assert {path.stem for path in (ROOT / "tests").rglob("test_*.py")} >= QUICK, "tests/quick.txt names others"
