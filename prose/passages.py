"""Where people read prose in this repository: passages with the file and line that each comes from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import click
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

PAGE, HELP, MESSAGE, MODULE, DOCSTRING, TEMPLATE = "page", "help", "message", "module", "docstring", "template"
CELL, FIELD = "cell", "field"
"""Kinds of passages. A cell of a table, a heading, and the text of a field or argument, need not be sentences."""
CODE: Final = "⟨⟩"
"""What stands for code and for values within a sentence."""
_SPOKEN: Final = ("because", "raised_flag", "fail", "BadParameter", "echo", "print")
"""Functions whose strings people read, beside exceptions that are raised."""


@dataclass(frozen=True)
class Passage:
    """A text that is read as one, and where it is written."""

    path: Path
    line: int
    kind: str
    text: str


def of_markdown(path: Path) -> Iterator[Passage]:
    """Paragraphs, list items, headings and cells of a page; code is left out."""
    kinds: list[str] = []
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
        if token.nesting:
            kinds = [*kinds, token.type] if token.nesting == 1 else kinds[:-1]
        elif token.type == "inline" and token.map:
            loose = {"heading_open", "th_open", "td_open"} & set(kinds)
            yield Passage(path, token.map[0] + 1, CELL if loose else PAGE, _inline(token))


def _inline(token: Token) -> str:
    words = {"code_inline": CODE, "softbreak": "\n", "hardbreak": "\n", "image": ""}
    return "".join(words.get(child.type, child.content) for child in token.children or [])


def of_template(path: Path) -> Iterator[Passage]:
    """Sentences of a Jinja template: what stands between its tags."""
    text = re.sub(r"\{#.*?#\}", lambda hit: "\n" * hit[0].count("\n"), path.read_text(), flags=re.DOTALL)
    text = re.sub(r"\{%-? *(?:else|elif).*?%\}", " – ", text)
    text = re.sub(r"\{%.*?%\}", lambda hit: " " + "\n" * hit[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"\{\{.*?\}\}", lambda hit: CODE + "\n" * hit[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"<(style|script)\b.*?</\1>", lambda hit: "\n" * hit[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"</?(a|abbr|b|cite|code|em|i|q|span|strong|sub|sup|var)\b[^>]*>", "", text)
    line = 1
    for piece in re.split(r"(<[^>]*>)", text):
        if not piece.startswith("<") and len(piece.split()) > 3:
            ahead = len(piece) - len(piece.lstrip())
            yield Passage(path, line + piece[:ahead].count("\n"), TEMPLATE, piece.strip())
        line += piece.count("\n")


def of_python(path: Path, sentences: bool = False) -> Iterator[Passage]:
    """First lines of docstrings, what attributes and arguments are said to be, and messages.

    Args:
        path: A module.
        sentences: Whether all strings of several words in it are read by people, as in a table of sentences.
    """
    tree = ast.parse(path.read_text())
    docstrings: set[int] = set()
    strings: dict[int, ast.Constant | ast.JoinedStr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and isinstance(node.body[0], ast.Expr):
                docstrings.add(id(node.body[0].value))
                yield from _of_docstring(path, node.body[0].lineno, text, MODULE if node is tree else DOCSTRING)
    for node in ast.walk(tree):
        read = isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _name(node) in _SPOKEN)
        strings.update({id(one): one for one in _strings(node)} if read or (sentences and node is tree) else {})
    for place, node in strings.items():
        if place not in docstrings:
            yield from _message(path, node)


def _of_docstring(path: Path, line: int, text: str, kind: str) -> Iterator[Passage]:
    yield Passage(path, line, kind, text.splitlines()[0])
    for number, one in enumerate(text.splitlines()):
        if number and (said := re.match(r"\s{4,}\w+: (.+)", one)):
            yield Passage(path, line + number, FIELD, said[1])


def _strings(node: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Strings in a piece of code; those that an f-string is made of are no strings of their own."""
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield node
        return
    for inner in ast.iter_child_nodes(node):
        yield from _strings(inner)


def _message(path: Path, node: ast.Constant | ast.JoinedStr) -> Iterator[Passage]:
    text = _spoken(node)
    if len(text.split()) > 3 and "<" not in text:
        yield Passage(path, node.lineno, MESSAGE, text)


def _spoken(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        text = node.value if isinstance(node.value, str) else ""
    else:
        text = "".join(str(one.value) if isinstance(one, ast.Constant) else CODE for one in node.values)
    return re.sub(r"\{[a-z_]*[^{}]*\}|`[^`]*`", CODE, text)


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def of_commands(app: typer.Typer, folder: Path) -> Iterator[Passage]:
    """Help texts of all commands and options, as they are shown; folder: the sources of the command line."""
    for text in _texts(typer.main.get_command(app)):
        path, line = _written(folder).get(" ".join(text.split()), (folder, 1))
        for paragraph in re.split(r"\n\s*\n", text):
            yield Passage(path, line, HELP, re.sub(r"`[^`]*`", CODE, paragraph))


def _texts(command: click.Command) -> Iterator[str]:
    yield from filter(None, [command.help, *(getattr(one, "help", None) for one in command.params)])
    for inner in getattr(command, "commands", {}).values():
        yield from _texts(inner)


@cache
def _written(folder: Path) -> dict[str, tuple[Path, int]]:
    """Where each string is written, by its words."""
    return {
        " ".join(node.value.replace("\b", " ").split()): (path, node.lineno)
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
