"""Codes and their sentences: all in one place, used as they are written, and no change without a look at the diff."""

from __future__ import annotations

import ast
import copy
import pickle
import re
import string
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from attacker.audit.execution.work import ATTACK
from attacker.audit.record.flag_sentences import FLAG_SENTENCES, FLAGS
from attacker.reasons import SENTENCES, Reason, because
from tests import generate_codes
from tests.attacker import tiny
from tests.attacker.own_attacks import Grey

ROOT = Path(__file__).resolve().parents[1]
MADE_BY = {"because": SENTENCES, "raised_flag": FLAG_SENTENCES}
"""Names of the functions that fill sentences, and their tables."""


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


def calls() -> list[tuple[str, str, list[str], set[str]]]:
    """Place, function, keys and values of every call in the sources that fills a sentence."""
    found = []
    for path in sorted((ROOT / "attacker").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MADE_BY:
                keys = [one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)]
                values = {str(one.arg) for one in node.keywords}
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", node.func.id, keys, values))
    return found


def named() -> set[str]:
    """Keys that stand in the sources other than in a table, also where one of two is chosen."""
    text = "".join(path.read_text() for path in (ROOT / "attacker").rglob("*.py"))
    return {key for table in MADE_BY.values() for key in table if re.search(f'"{re.escape(key)}"(?!:)', text)}


def test_the_golden_file_and_the_page_are_those_of_the_tables():
    assert generate_codes.golden() == generate_codes.GOLDEN.read_text(), (
        "see the diff of: python -m tests.generate_codes"
    )
    assert generate_codes.page() == generate_codes.PAGE.read_text(), "run: python -m tests.generate_codes"


def test_every_call_names_a_sentence_and_gives_just_its_values():
    made = calls()
    assert len(made) > 100
    for place, function, keys, values in made:
        assert keys, f"{place}: the sentence is not named in place"
        for key in keys:
            assert key in MADE_BY[function], f"{place}: no sentence {key!r}"
            assert fields(MADE_BY[function][key]) <= values, f"{place}: {key}"
        assert values == set().union(*(fields(MADE_BY[function][key]) for key in keys)), place


def test_every_sentence_is_said_somewhere():
    assert SENTENCES.keys() | FLAG_SENTENCES.keys() == named()


def test_codes_are_kebab_case_and_a_wrong_one_is_named():
    for key in SENTENCES:
        Reason("said", *key.split("."))
    with pytest.raises(ValueError, match=r"kebab-case.*'batch_size'"):
        Reason("said", "good-code", "batch_size")


def test_every_flag_has_its_sentences_and_no_other():
    assert {key.partition(".")[0] for key in FLAG_SENTENCES} == FLAGS.keys()


def test_a_reason_is_its_sentence_and_keeps_its_codes():
    inner = because("learning-rate-unknown")
    outer = because("scale-needed", why=inner, distance="l2")
    assert outer == str(outer) == f"{inner}: distance=l2 needs the gradient's scale, cosine does not"
    assert type(str(outer)) is str
    for other in (copy.copy(outer), copy.deepcopy(outer), pickle.loads(pickle.dumps(outer))):  # noqa: S301 - our own
        assert (other, other.codes) == (outer, ("scale-needed", "learning-rate-unknown"))


@dataclass(frozen=True)
class Refuses(Grey):
    """Refuses everything, in words that it is given."""

    says: str = ""

    def refuses(self, victim, observation):
        return self.says


@pytest.mark.parametrize(
    ("says", "codes"),
    [("it is too dark", ("attack-says",)), (Reason("it is too dark", "too-dark"), ("too-dark",))],
    ids=["plain words", "a code of its own"],
)
def test_what_a_plug_in_says_has_a_code_and_keeps_it_in_the_store(says, codes):
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    attack = Refuses(says=says)
    seen = [tiny.observe(victim, tiny.images(spec, 1), [1])]
    assert attack.why_not(victim, seen[0]).codes == codes
    found = attack(victim, seen, generator=torch.Generator())
    stored = ATTACK.decode(*ATTACK.encode(found))
    assert [(one.reason, one.reason_codes) for one in (*found, *stored)] == [("it is too dark", codes)] * 2
