"""Pages of the site that are no files of docs/: made from the program itself, or kept elsewhere in the repository.

A hook of MkDocs (`mkdocs.yml`). Links of a page from elsewhere are turned to where their goal is on the site.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
NOTEBOOKS: Final = ("tutorials/tutorial", "tutorials/transformer")
ELSEWHERE: Final = {
    "examples/quickstart-audit/README.md": "tutorials/quickstart-audit.md",
    "examples/quickstart-audit/audit.diff": "tutorials/audit.diff",
    "examples/wire-view/README.md": "how-to/wire-view.md",
    "examples/wire-view/wire-view.png": "how-to/wire-view.png",
    "examples/watch/README.md": "how-to/watch.md",
    "examples/watch/watch.py": "how-to/watch.py.txt",
    "examples/privacy-gate/privacy-audit.yml": "how-to/privacy-audit.yml",
    "attacker/audit/record/json_schema/audit-2.schema.json": "reference/audit-2.schema.json",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
    ".github/ISSUE_TEMPLATE/new-attack.yml": "project/new-attack.yml",
    "LICENSE": "project/LICENSE.txt",
}
"""Where files of the repository stand on the site."""

_MADE: Final = re.compile(r"<!-- made by the site: (\w+) -->")
_LINK: Final = re.compile(r"(\]\()((?!\w+:|#|/)[^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies elsewhere; notebooks become pages."""
    for source, place in ELSEWHERE.items():
        content = (ROOT / source).read_bytes()
        files.append(File.generated(config, place, content=content if place.endswith(".png") else content.decode()))
    for name in NOTEBOOKS:
        if notebook := files.get_file_from_path(f"{name}.ipynb"):
            files.remove(notebook)
        for place, content in notebook_pages(name):
            files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between docs/ and the rest of the repository to where their goal is on the site."""
    del config, files
    place = page.file.src_uri
    source = next((one for one, goal in ELSEWHERE.items() if goal == place), f"docs/{place}")

    def turned(match: re.Match[str]) -> str:
        goal = os.path.normpath(os.path.join(os.path.dirname(source), match[2]))
        goal = "docs/index.md" if goal == "README.md" else goal
        on_site = ELSEWHERE.get(goal, goal.removeprefix("docs/") if goal.startswith("docs/") else None)
        if on_site is None:
            return match[0]
        on_site = on_site.replace(".ipynb", ".md") if on_site.removesuffix(".ipynb") in NOTEBOOKS else on_site
        return match[1] + os.path.relpath(on_site, os.path.dirname(place) or ".")

    return _LINK.sub(turned, _MADE.sub(lambda match: MADE[match[1]](), markdown))


def notebook_pages(notebook: str) -> Iterable[tuple[str, str | bytes]]:
    """The page of a notebook and its pictures, which are named by it: each notebook's begin at the same number."""
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter()
    named = {"output_files_dir": "", "unique_key": os.path.basename(notebook)}
    text, resources = exporter.from_filename(str(ROOT / f"docs/{notebook}.ipynb"), resources=named)
    # Results of cells are indented by four spaces, which Markdown takes for code; a fence says so.
    yield f"{notebook}.md", f"{text}\n"
    for name, content in resources["outputs"].items():
        yield f"{os.path.dirname(notebook)}/{name}", content


def command_line() -> str:
    """All commands with their options, by typer's own description of them."""
    import typer
    from typer.cli import get_docs_for_click

    command = typer.main.get_command(import_module("attacker.cli.main").app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="fl-precode")
    return text.partition("\n\n")[2]


def attacks() -> str:
    """All registered attacks."""
    from fl_precode.attacks import ATTACKS

    rows = [
        [f"`{name}`", entry.description, ", ".join(sorted(entry.needs)) or "–",
         ", ".join(sorted(entry.answers)) or "–", entry.source]
        for name, entry in sorted(ATTACKS.items(), key=lambda item: item[1].rank)
    ]  # fmt: skip
    options = "\n## Options\n\nA spec is `NAME:option=value,option=value`.\n\n" + "".join(
        f"* `{name}`: {', '.join(f'`{one}`' for one in sorted(entry.options)) or 'none'}\n"
        for name, entry in sorted(ATTACKS.items())
    )
    return _table(["attack", "description", "needs", "answers", "source"], rows) + options


def defences() -> str:
    """All registered defences."""
    from fl_precode.defences import DEFENCES

    rows = [[f"`{name}`", entry.description] for name, entry in DEFENCES.items()]
    return _table(["defence", "description"], rows)


MADE: Final[Mapping[str, Callable[[], str]]] = {
    "command_line": command_line,
    "attacks": attacks,
    "defences": defences,
}
"""Parts of pages that are made from the program."""


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
