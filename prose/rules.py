"""House rules of prose, as checks of proselint, and those of proselint's own that hold here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proselint.checks import lexical_illusions, mixed_metaphors, nonwords, redundancy
from proselint.registry.checks import Check, Padding
from proselint.registry.checks.engine import Fancy, RegexOptions
from proselint.registry.checks.types import Existence, PreferredForms

from prose.passages import CELL, DOCSTRING, FIELD, HELP, MESSAGE, MODULE, PAGE, TEMPLATE, Passage

WORDS: Final = 25
"""Words that a sentence has on average, at most: of a page, or of a text that stands alone."""
LONGEST: Final = 60
"""Words of the longest sentence."""
_ALL: Final = frozenset({PAGE, HELP, MESSAGE, MODULE, DOCSTRING, TEMPLATE, CELL, FIELD})
_SENTENCES: Final = frozenset({PAGE, HELP, MESSAGE, TEMPLATE})
_CASED: Final = Fancy(RegexOptions(case_insensitive=False))


def _refused(path: str, message: str, *items: str, cased: bool = False) -> Check:
    engine = _CASED if cased else Fancy()
    return Check(check_type=Existence(items=items, padding=Padding.RAW), engine=engine, path=path, message=message)


_BRITISH: Final = {
    "behavior": "behaviour",
    "colors?": "colour",
    "center": "centre",
    "defenses?": "defence",
    "favor": "favour",
    "gray": "grey",
    "honor": "honour",
    "labeled": "labelled",
    "modeling": "modelling",
    "neighbor": "neighbour",
    "analyze[sd]?": "analyse",
    "maximize[sd]?": "maximise",
    "minimize[sd]?": "minimise",
    "normalize[sd]?": "normalise",
    "optimizer?s?": "optimise",
    "organize[sd]?": "organise",
    "recognize[sd]?": "recognise",
    "summarize[sd]?": "summarise",
}
HOUSE: Final[tuple[tuple[Check, frozenset[str]], ...]] = (
    (
        _refused(
            "house.elliptical",
            "Elliptical '{}': begin with the noun that is meant ('Random seed', not 'Of everything random').",
            # "Of 16 images, 3 were reconstructed" is a sentence.
            r"(?:\A\s*|[.!?]\s+)Of\b(?! (?:them|these|those|(?:all |the )?[0-9⟨])[^.;]*, )",
            cased=True,
        ),
        _ALL,
    ),
    (
        _refused(
            "house.came_back",
            "'{}': images are reconstructed, labels recovered, statistics returned.",
            r"\b(?:came|comes?|coming)\s+back\b",
            r"\b(?:bring|brings|brought|bringing)\s+(?:\w+\s+){0,3}back\b",
        ),
        _ALL,
    ),
    (_refused("house.so_many", "'{}': name the number ('at most 4', 'Maximum number of').", r"\bso many\b"), _ALL),
    (
        _refused(
            "house.noun_first",
            "'{}': begin with the field's noun or with a verb.",
            r"\A\s*(?:What|Which|How|Whether|Where|Whose|Why|When|That)\b",
            cased=True,
        ),
        frozenset({HELP, MODULE}),
    ),
    (_refused("house.present", "'{}': the present tense will do.", r"\bwill\s+(?:be|have|not|\w+)\b"), _SENTENCES),
    (
        _refused(
            "house.diary",
            "'{}': pages say what holds now.",
            r"\b(?:yesterday|today(?!'s)|until now|by now|meanwhile|no longer|any more|at last)\b",
            r"\b(?:on the way|in the meantime)\b",
            r"\b(?:we|I) (?:tried|found|saw|thought|noticed)\b",
        ),
        frozenset({PAGE, CELL, HELP, TEMPLATE}),
    ),
    (
        _refused(
            "house.personified",
            "'{}': programs have no wishes, thoughts or voices.",
            r"\b(?:programs?|pages?|audits?|reports?|attacks?|verdicts?|commands?|tapes?|records?|tools?|plans?|gates?|"
            r"searches|search|models?|flags?|figures?|sheets?) "
            r"(?:wants?|thinks?|thought|believes?|minds?|admits?|promises?|forgets?|speaks?|cares?|hopes?|complains?)\b",
        ),
        _ALL,
    ),
    (
        Check(
            check_type=PreferredForms(items=dict(_BRITISH)),
            path="house.british",
            message="British spelling: '{}' for '{}'.",
        ),
        _SENTENCES | {MODULE, DOCSTRING},
    ),
)
SHIPPED: Final[tuple[Check, ...]] = tuple(
    check for module in (lexical_illusions, mixed_metaphors, nonwords, redundancy) for check in module.__register__
)
"""Checks that proselint brings: doubled words, mixed metaphors, words that are none, redundant phrases."""


@dataclass(frozen=True)
class Finding:
    """One place where a text does not keep a rule."""

    path: Path
    line: int
    rule: str
    message: str


def findings(passages: Iterable[Passage]) -> list[Finding]:
    """What does not keep the rules, in the order of files and lines."""
    found: set[Finding] = set()
    pages: dict[Path, list[int]] = {}
    for passage in passages:
        found.update(_of_words(passage))
        lengths = [len(_words(one)) for one in _sentences(passage)]
        if passage.kind == PAGE:
            pages.setdefault(passage.path, []).extend(lengths)
        elif passage.kind in _SENTENCES:
            found.update(_too_long(passage.path, passage.line, lengths))
    for path, lengths in pages.items():
        found.update(_too_long(path, 1, lengths))
    return sorted(found, key=lambda one: (str(one.path), one.line, one.rule))


def _of_words(passage: Passage) -> Iterator[Finding]:
    text = f"\n{passage.text}\n"
    kept = [check for check, kinds in HOUSE if passage.kind in kinds]
    for check in (*kept, *(SHIPPED if passage.kind in _SENTENCES else ())):
        for hit in check.check_with_flags(text):
            if hit.check_path == "lexical_illusions" and not re.search(r"[a-z]{2}", text[slice(*hit.span)]):
                continue  # figures may stand twice, and so may symbols
            line = passage.line + text[1 : hit.span[0]].count("\n")
            yield Finding(passage.path, line, hit.check_path, " ".join(hit.message.split()))
    for one in _sentences(passage):
        if len(_words(one)) > LONGEST:
            yield Finding(passage.path, passage.line, "house.longest", f"{len(_words(one))} words: {one[:60]}...")


def _too_long(path: Path, line: int, lengths: list[int]) -> Iterator[Finding]:
    if lengths and sum(lengths) > WORDS * len(lengths):
        yield Finding(path, line, "house.length", f"{sum(lengths) / len(lengths):.0f} words a sentence, above {WORDS}")


def _sentences(passage: Passage) -> list[str]:
    if passage.kind not in _SENTENCES:
        return []
    text = " ".join(passage.text.split())
    # Messages say what was expected, what was got and what to do, each behind a semicolon.
    ends = r"(?<=[.!?])[\"')]?\s+(?=[A-Z0-9\"'(*])" + (r"|;\s+" if passage.kind == MESSAGE else "")
    return [one for one in re.split(ends, text) if _words(one)]


def _words(sentence: str) -> list[str]:
    return [one for one in sentence.split() if re.search(r"[\w⟨]", one)]
