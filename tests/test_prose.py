"""The linter of prose refuses what the house refuses, and names the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer

from prose import __main__ as linter
from prose.passages import Passage, of_commands, of_markdown, of_python, of_template
from prose.rules import findings


def rules(passages: list[Passage]) -> list[tuple[int, str]]:
    return [(one.line, one.rule) for one in findings(passages)]


def test_a_help_text_without_its_noun_is_refused_where_it_is_written(tmp_path):
    app = typer.Typer()

    @app.command()
    def run(seed: Annotated[int, typer.Option(help="Of everything random.")] = 0) -> None:
        """Run a federation."""

    (tmp_path / "run.py").write_text('\nSEED = option(help="Of everything random.")\n')
    found = findings(of_commands(app, tmp_path))
    assert [(one.path.name, one.line, one.rule) for one in found] == [("run.py", 2, "house.elliptical")]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Three images came back.", "house.came_back"),
        ("It brings every image\nback.", "house.came_back"),
        ("At most so many updates.", "house.so_many"),
        ("The audit wants a tape.", "house.personified"),
        ("The page will show it.", "house.present"),
        ("An image no longer counts.", "house.diary"),
        ("The behavior is the same.", "house.british"),
        ("It names the the tape.", "lexical_illusions"),
        ("One " + "word " * 61 + "more.", "house.longest"),
    ],
)
def test_a_page_is_refused_by(tmp_path, text, rule):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\nA short sentence. Another one. And a third one here.\n\n{text}\n")
    assert (5, rule) in rules(list(of_markdown(page)))


def test_a_page_of_long_sentences_is_refused_as_a_whole(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Images" + "".join(f" of client {number}" for number in range(9)) + ".\n")
    assert rules(list(of_markdown(page))) == [(1, "house.length")]


def test_good_pages_code_and_partitive_sentences_pass(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Of 16 images, 3 were reconstructed by `came back`.\n\n```\nso many: came back\n```\n")
    assert rules(list(of_markdown(page))) == []


def test_errors_and_docstrings_are_read_from_the_source(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        '"""What comes back.\n\nArgs:\n    seed: Of everything random.\n"""\n\n\n'
        "def check(path):\n"
        '    """Whether the path is there."""\n'
        '    raise ValueError(f"the tape {path!r} will be refused")\n'
    )
    assert rules(list(of_python(source))) == [
        (1, "house.came_back"),
        (1, "house.noun_first"),
        (4, "house.elliptical"),
        (10, "house.present"),
    ]


def test_all_strings_of_a_table_of_sentences_are_read(tmp_path):
    source = tmp_path / "sentences.py"
    source.write_text('TABLE = {\n    "lost": "no number of {name} came back from them",\n}\n')
    assert rules(list(of_python(source))) == []
    assert rules(list(of_python(source, sentences=True))) == [(2, "house.came_back")]


def test_templates_are_read_between_their_tags(tmp_path):
    template = tmp_path / "page.html.j2"
    template.write_text(
        "<style>so many came back</style>\n{% if one %}\n<p>The image <em>came</em> back from {{ one.name }}.</p>\n"
        "{# it came back #}{% endif %}\n"
    )
    assert rules(list(of_template(template))) == [(3, "house.came_back")]


def test_the_command_fails_by_its_findings_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(linter, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    page: Path = tmp_path / "docs" / "page.md"
    page.write_text("Every image is reconstructed.\n")
    assert linter.main() == 0
    page.write_text("Every image came back.\n")
    assert linter.main() == 1
    assert "docs/page.md:1: house.came_back" in capsys.readouterr().out
