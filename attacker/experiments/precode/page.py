"""The page of an experiment: one file without network, from its summary and the pictures of a few victims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment
from pydantic import BaseModel

from attacker import wording
from attacker.experiments.precode import figures, summary_lookup
from attacker.experiments.precode.summary import Fall, SetupSummary, Summary
from attacker.experiments.precode.which_attack_breaks import knowledge, state_name
from attacker.report.html import data_uri, environment, write_html
from fl_precode.private_file import write_private

PAGE_NAME = "index.html"
RESULTS_NAME = "results.json"
_TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True, kw_only=True)
class VictimGallery:
    """Victims of one model on one image set, before and after the attacks.

    Attributes:
        truth: PNG of each victim.
        rows: Defence, state, and for each victim the PNG that is most like it (None: no image) and its SSIM.
    """

    truth: Sequence[bytes]
    rows: Sequence[tuple[str, int, Sequence[tuple[bytes | None, float | None]]]]


@dataclass(frozen=True, kw_only=True)
class SetupGroup:
    """One model on one image set.

    Attributes:
        data: Image set.
        model: Model spec.
        setups: One for each defence.
        falls: What protects here.
        pictures: Figures as data URIs by name, with the words for those who do not see them.
        gallery: Victims, or None.
    """

    data: str
    model: str
    setups: Sequence[SetupSummary]
    falls: Sequence[Fall]
    pictures: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    gallery: VictimGallery | None = None

    @property
    def title(self) -> str:
        """For people."""
        return f"{wording.model_name(self.model)} on {wording.dataset_name(self.data)}"


def render(summary: Summary, galleries: Mapping[tuple[str, str], VictimGallery]) -> str:
    """The page as HTML text; galleries by image set and model."""
    page_templates = templates(
        reading=summary_lookup, state_name=state_name, knowledge=knowledge, adaptive=summary_lookup.adaptive
    )
    groups = _groups(summary, galleries)
    return page_templates.get_template("reproduction.html.j2").render(
        s=summary, groups=groups, headline=headline(summary)
    )


def templates(**names: Any) -> Environment:
    """What the pages of experiments are made with; templates know ``words``, ``png`` and these names."""
    return environment(_TEMPLATES, png=data_uri, **names)


def write_outcome(summary: BaseModel, text: str, folder: Path) -> Path:
    """Write ``results.json`` and ``index.html``, readable by their owner only: they show people's images.

    Returns:
        Where the page is.

    Raises:
        OSError: If they cannot be written.
    """
    write_private(folder / RESULTS_NAME, (summary.model_dump_json(indent=1) + "\n").encode())
    return write_html(text, folder / PAGE_NAME)


def headline(summary: Summary) -> str:
    """The page's first sentence, from the figures."""
    defended = [fall for fall in summary.falls if fall.defence != "none"]
    by = {
        name: sum(fall.assumption == name for fall in defended)
        for name in ("plain", "adaptive", "none tried", "cannot tell")
    }
    if not defended:
        return "No defence was tried."
    parts = []
    if by["plain"]:
        parts.append(f"{wording.number_word(by['plain'])} fell to attacks that know nothing of the defence")
    if by["adaptive"]:
        parts.append(f"{wording.number_word(by['adaptive'])} fell to attacks made with the defence in mind")
    if by["none tried"]:
        parts.append(f"{wording.number_word(by['none tried'])} stood what was tried")
    if by["cannot tell"]:
        parts.append(f"about {wording.number_word(by['cannot tell'])} nothing can be said")
    many = f"{wording.number_word(len(defended))} defended model{'' if len(defended) == 1 else 's'}"
    return f"Of {many}, {wording.joined(parts)}."


def _groups(summary: Summary, galleries: Mapping[tuple[str, str], VictimGallery]) -> list[SetupGroup]:
    names = dict.fromkeys((setup.data, setup.model) for setup in summary.setups)
    return [_group(summary, data, model, galleries.get((data, model))) for data, model in names]


def _group(summary: Summary, data: str, model: str, gallery: VictimGallery | None) -> SetupGroup:
    setups = [setup for setup in summary.setups if (setup.data, setup.model) == (data, model)]
    title = f"{wording.model_name(model)} on {wording.dataset_name(data)}"
    drawn: dict[str, tuple[str | None, str]] = {
        "trade-off": (
            figures.trade_off(setups),
            f"{title}: accuracy against success of the best attack. " + "; ".join(map(_point_words, setups)),
        ),
        "central": (figures.accuracy(setups, federated=False), f"{title}: accuracy by epoch of central training"),
        "federated": (figures.accuracy(setups, federated=True), f"{title}: accuracy by round of FedAvg"),
    }
    for place, state in enumerate(setups[0].states):
        name = f"{title}, {state_name(state.epoch)}: attack success by defence, as in the table below"
        drawn[f"success-{state.epoch}"] = (figures.success(setups, place), name)
    return SetupGroup(
        data=data,
        model=model,
        setups=setups,
        falls=[fall for fall in summary.falls if (fall.data, fall.model) == (data, model)],
        pictures={name: (svg_uri(svg), text) for name, (svg, text) in drawn.items() if svg is not None},
        gallery=gallery,
    )


def _point_words(setup: SetupSummary) -> str:
    best = summary_lookup.worst(setup, lambda state: state.best_by_ssim)
    accuracy = wording.percent(setup.central.final) if setup.central.final is not None else "unknown"
    rate = wording.percent(best.rate) if best.rate is not None else "unknown"
    return f"{wording.defence_name(setup.defence)}: accuracy {accuracy}, success {rate}"


def svg_uri(svg: str) -> str:
    """A figure as a ``data:`` URI."""
    return data_uri(svg.encode(), "svg+xml")
