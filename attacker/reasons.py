"""Reasons why an attack was not made, or how it ended: stable codes for programs, and sentences for people.

Whoever says something gives the code and its values; how it is worded stands in the two files of
sentences and nowhere else. Codes stay as they are, sentences may be worded better at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Self

from attacker.attack_sentences import ATTACK_SENTENCES
from attacker.audit_sentences import AUDIT_SENTENCES

PLAIN: Final = "attack-says"
"""Code of what an attack says in words of its own, as plug-ins may."""

_CODE: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

SENTENCES: Mapping[str, str] = MappingProxyType({**ATTACK_SENTENCES, **AUDIT_SENTENCES})
"""Sentences by code. Behind a dot stands which of several sentences of one code it is."""


class Reason(str):
    """A sentence that knows its code, for whatever has to tell reasons apart.

    It is the sentence wherever text is wanted. What is said of a part, or handed on, keeps the codes of its parts.
    """

    __slots__ = ("_codes",)
    _codes: tuple[str, ...]

    def __new__(cls, sentence: str, *codes: str) -> Self:
        """A sentence with its codes.

        Args:
            sentence: For people.
            codes: Kebab-case, the code of the whole first, then those of what it mentions.

        Raises:
            ValueError: If a code is not kebab-case.
        """
        if wrong := [code for code in codes if not _CODE.fullmatch(code)]:
            raise ValueError(f"expected a code in kebab-case, such as batch-size-unknown, got {wrong[0]!r}")
        made = super().__new__(cls, sentence)
        made._codes = tuple(dict.fromkeys(codes))
        return made

    def __getnewargs__(self) -> tuple[str, ...]:  # type: ignore[override]
        """What a copy is made of."""
        return str(self), *self._codes

    @property
    def code(self) -> str:
        """The code of the whole; empty where nothing is said."""
        return self._codes[0] if self._codes else ""

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes, that of the whole first."""
        return self._codes


def because(key: str, /, **values: object) -> Reason:
    """The sentence of a code, filled with values; the codes of values that are reasons come with it.

    >>> found = because("scale-needed", why=because("learning-rate-unknown"), distance="l2")
    >>> found
    "the learning rate was not announced: distance=l2 needs the gradient's scale, cosine does not"
    >>> found.codes
    ('scale-needed', 'learning-rate-unknown')
    """
    inner = [code for value in values.values() if isinstance(value, Reason) for code in value.codes]
    return Reason(SENTENCES[key].format(**values), key.partition(".")[0], *inner)


def codes_of(reasons: Iterable[Reason]) -> list[str]:
    """The codes of several reasons, each once."""
    return list(dict.fromkeys(code for reason in reasons for code in reason.codes))


def raised(error: BaseException) -> Reason:
    """That an attack raised, in the words of the error."""
    return because("attack-raised", kind=type(error).__name__, error=error)


def coded(text: str) -> Reason:
    """The same with a code, that of plain words where it has none.

    >>> coded("my layer is missing").code, coded("").codes
    ('attack-says', ())
    """
    if isinstance(text, Reason):
        return text
    return Reason(text, PLAIN) if text else Reason(text)


def joined(parts: Iterable[str], between: str = "; ") -> Reason:
    """Several reasons as one, without those that are empty.

    >>> joined(["", because("estimate-refined"), "by hand"]), joined(["", because("estimate-refined"), "by hand"]).codes
    ('refined; by hand', ('estimate-refined', 'attack-says'))
    """
    reasons = [coded(part) for part in parts if part]
    return Reason(between.join(reasons), *(code for part in reasons for code in part.codes))
