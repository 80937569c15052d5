"""What an extra installs is not needed without it: the others are imported where its packages are absent."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import attacker, fl_precode
for package in (fl_precode, attacker):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.startswith({left_out!r}):
            importlib.import_module(found.name)
print(len(sys.modules))
"""
PAGES = ("attacker.report", "attacker.reproduce")
REPORT = {"jinja2", "matplotlib"}
OTHERS = {"ray", "sklearn", "torchvision", "medmnist", "opacus"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("absent", "left_out"), [(REPORT | OTHERS, PAGES), (OTHERS, ("nothing",))], ids=["base", "with the extra report"]
)
def test_modules_are_imported_without_the_packages_of_other_extras(absent, left_out):
    program = PROGRAM.format(absent=absent, left_out=left_out)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
