"""The figures of the comparison of analytic inversion with searches, as its ``results.json`` has them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from attacker.audit.record import Count, Entry, Machine, Number, Setting


class AttackFigures(Entry):
    """One attack on one net; PSNR in dB."""

    attack: str
    std: Number
    images: Count = Field(description="that it gave; 0 where it does not apply")
    psnr: Number | None
    least: Number | None
    most: Number | None
    each: list[Number]
    ssim: Number | None
    cpu_seconds: Number
    reason: str


class NetFigures(Entry):
    """One net."""

    name: str
    unknowns: Count
    rank: Count
    solubility: Number
    missing: list[int]
    attacks: list[AttackFigures]


class InversionSummary(Entry):
    """The whole comparison."""

    format: Literal["fl-precode-inversions"] = "fl-precode-inversions"
    version: Literal[1] = 1
    created: str
    scale: str
    data: str
    attacks: list[str]
    nets: list[NetFigures]
    noise: list[AttackFigures]
    settings: dict[str, Setting]
    versions: dict[str, str]
    machine: Machine
    seconds: Number
