"""Gaps in an audit's knowledge of a tape, and their remedies: lines for the notes beside the tape, and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Mend:
    """Something that an audit may not know, and how to tell it.

    Attributes:
        lacking: What is not known, after "not known:".
        line: For the notes beside the tape; empty where no line helps. What stands below ``[protocol]`` begins so.
        remark: What to write there.
        option: Option of the command, which does the same; empty where there is none.
    """

    lacking: str
    line: str = ""
    remark: str = ""
    option: str = ""


MENDS: Mapping[str, Mend] = MappingProxyType(
    {
        "model": Mend(
            lacking="the model that the clients train",
            line='model = "package.module:factory"',
            remark="the function or class that builds it, importable where the audit runs",
            option="--model package.module:factory",
        ),
        "input": Mend(
            lacking="the shape of the images and the number of classes",
            line='input = "3x32x32"\nclasses = 10',
            remark="channels x height x width",
            option="--input 3x32x32 --classes 10",
        ),
        "local-epochs": Mend(
            lacking="how many images are behind an update",
            line="[protocol]\nlocal-epochs = 1",
            remark="how often a client goes through its images in one round",
        ),
        "learning-rate": Mend(
            lacking="the learning rate of the clients",
            line="[protocol]\nlearning-rate = 0.1",
            remark="as the clients' optimiser has it",
        ),
        "batch-size": Mend(
            lacking="how many images one local step uses",
            line="[protocol]\nbatch-size = 32",
            remark="as the clients' data loader has it",
        ),
        "scale": Mend(
            lacking="how the clients normalise their images",
            line="mean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]",
            remark="by channel, on the scale from 0 to 1, as in the clients' transforms",
            option="--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 beside --input",
        ),
        "withheld": Mend(
            lacking="what --withhold takes from the attacker, or --know would give",
            option="another --withhold or --know",
        ),
        "budget": Mend(lacking="the time for it", option="a longer --budget"),
        "defence": Mend(
            lacking="the defence that the clients apply, if any",
            line='defence = "none"',
            remark="none, or the defence as `fl-precode defences` lists it",
            option="--defence none",
        ),
    }
)
"""By code, the most important first."""
