"""Write docs/reference/codes.md and the golden file of all sentences: ``python -m tests.generate_codes``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from attacker.audit.record.flag_sentences import FLAG_SENTENCES
from attacker.reasons import PLAIN, SENTENCES

PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "codes.md"
GOLDEN: Final = Path(__file__).with_name("sentences.txt")
_HEAD: Final = """# Codes

Made by `tests/generate_codes.py` from the tables of sentences. A code keeps its meaning within a minor version; how its
sentence is worded does not. Programs read the code, people the sentence. *Slanted* words stand for values.
"""
_REASONS: Final = f"""## Reasons

Why an attack was not made, how it ended, what a plan says of it, and what an audit lacks. Here they are found:

* `reason_codes` of each result, summary, planned attack and leakage summary in `audit.json`, and a column of
  `results.csv`;
* `truth_codes`, `doubt_codes` and `not_announced_codes` of each federation there, and `why_codes` of a reading;
* `Reconstruction.reason_codes` and `Choice.reason_codes` in Python;
* `code` and `codes` of what `Attack.why_not` returns.

The first code is that of the whole; those of what it mentions follow. An attack that gives plain text has
`{PLAIN}`; one that returns `fl_precode.attacks.Reason(sentence, code)` has a code of its own.
"""
_FLAGS: Final = """## Flags

`name` of each flag in `audit.json`: [flags and verdicts](flags.md) say when it is raised. What an audit assumes, and
what would let an attack run (`mends`), has the codes of [assumptions](assumptions.md).
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, _REASONS, *_table(SENTENCES), _FLAGS, *_table(FLAG_SENTENCES)])


def golden() -> str:
    """Every key with its sentence, a line each."""
    return "".join(f"{key}: {sentence}\n" for table in (SENTENCES, FLAG_SENTENCES) for key, sentence in table.items())


def _table(sentences: Mapping[str, str]) -> Iterator[str]:
    yield "| code | sentence |"
    yield "| --- | --- |"
    codes: dict[str, list[str]] = {}
    for key, sentence in sentences.items():
        codes.setdefault(key.partition(".")[0], []).append(_as_text(sentence))
    for code, own in codes.items():
        yield f"| `{code}` | {'<br>'.join(own)} |"
    yield ""


def _as_text(sentence: str) -> str:
    return re.sub(r"\{(\w+)[^}]*\}", r"*\1*", sentence).replace("**", "* *").replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page())
    GOLDEN.write_text(golden())
