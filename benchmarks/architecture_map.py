"""The page of the map of architectures: its tables from the file of the cells, and its picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.architectures import COLUMNS, LARGE, ROWS, SMALL, Cell, cells
from benchmarks.page_tables import write_between

Entry = dict[str, Any]

RECONSTRUCTED: Final = "reconstructed"
SOME: Final = "some images"
LABELS: Final = "labels only"
DARK: Final = "dark"
UNSEARCHED: Final = "formulas get nothing"
NOT_RUN: Final = "not run here"
STATES: Final = (RECONSTRUCTED, SOME, LABELS, DARK, UNSEARCHED, NOT_RUN)
"""From the worst for the clients to what nobody has looked at."""


def state(entry: Entry | None) -> str:
    """What a cell shows; without an entry nothing was run.

    >>> state(None), state({"came_back": 1, "images": 4}), state({"came_back": 0, "images": 4, "labels_right": 4})
    ('not run here', 'some images', 'labels only')
    >>> nothing = {"came_back": 0, "images": 4, "labels_right": 3}
    >>> state(nothing | {"searched": True}), state(nothing | {"searched": False})
    ('dark', 'formulas get nothing')
    """
    if entry is None:
        return NOT_RUN
    if entry["came_back"]:
        return RECONSTRUCTED if entry["came_back"] == entry["images"] else SOME
    if entry["labels_right"] == entry["images"]:
        return LABELS
    return DARK if entry["searched"] else UNSEARCHED


def square(entry: Entry | None) -> str:
    """Text in a square of the picture: reconstructed images, labels, similarity beside the best guess."""
    if entry is None:
        return ""
    found = f"{entry['came_back']}/{entry['images']} images"
    labels = f"{entry['labels_right']}/{entry['images']} labels"
    own, guess = similarity(entry)
    beside = "" if own is None else f"\nSSIM {_two(own)} ({_two(guess)})"
    return f"{found}\n{labels}{beside}"


def similarity(entry: Entry) -> tuple[float | None, float | None]:
    """Mean SSIM of the best results on the images, and of the best guesses without the update."""
    own = [one["ssim"] for one in entry["best"]]
    guesses = [one["guess_ssim"] for one in entry["best"] if one["guess_ssim"] is not None]
    return (_mean(own), _mean(guesses))


def entry_of(content: Entry, row: str, size: int, batch: int, steps: int) -> Entry | None:
    """The cell of the file, whether it was searched here or by formulas alone."""
    found: Entry | None = content["cells"].get(Cell(row=row, size=size, batch=batch, steps=steps).key)
    return found


def table(content: Entry) -> str:
    """Every cell that was run."""
    lines = [
        "| network | normalisation | size | batch | steps | formulas that fit | images back | labels right | "
        "SSIM (best guess), PSNR | the search: iterations, distance | state | flags | CPU s |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | --- | --- | --- | --- | ---: |",
    ]
    for cell in _measured(content):
        entry = content["cells"][cell.key]
        row = ROWS[cell.row]
        own, guess = similarity(entry)
        words = [
            row.network,
            row.norm,
            cell.size,
            cell.batch,
            cell.steps,
            ", ".join(f"`{name}`" for name in entry["fits"]) or "none",
            f"{entry['came_back']} of {entry['images']}",
            f"{entry['labels_right']} of {entry['images']}",
            "–" if own is None else f"{_two(own)} ({_two(guess)}){_decibels(entry)}",
            _search(entry),
            state(entry) + ("" if entry["searched"] or entry["came_back"] else ", no search"),
            ", ".join(f"`{flag}`" for flag in entry["flags"]) or "–",
            f"{entry['cpu_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, words))} |")
    return "\n".join(lines)


def controls(content: Entry) -> str:
    """The same attacks on another client's update."""
    lines = ["| network | attack | its own update: images back, SSIM | another client's update: images back, SSIM |"]
    lines.append("| --- | --- | ---: | ---: |")
    for cell in _altered(content):
        other = content["cells"][cell.key]
        own = entry_of(content, cell.row, cell.size, cell.batch, cell.steps)
        for attempt in other["attempts"]:
            mine = [one for one in own["attempts"] if one["attack"] == attempt["attack"]] if own else []
            right = _attempt(mine[0]) if mine else NOT_RUN
            lines.append(f"| {ROWS[cell.row].network} | `{attempt['attack']}` | {right} | {_attempt(attempt)} |")
    return "\n".join(lines)


def equations(content: Entry) -> str:
    """What the layers' own equations leave open, and what formulas take exactly."""
    lines = [
        "| network | normalisation | size | layers | of these open | numbers | open numbers | patches by positions | "
        "images by spans, at most |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row, own in ROWS.items():
        for size in (SMALL, LARGE):
            if (found := content["equations"].get(f"{row} | {size}")) is not None:
                numbers = [found[name] for name in ("layers", "open", "unknowns", "missing")]
                positions, spans = found["positions"], found["spans"]
                patches = "none" if positions is None else f"{positions['rank']} of {positions['patches']}"
                images = max((one["images"] for one in spans), default=None)
                words = [own.network, own.norm, size, *(f"{number:,}" for number in numbers), patches]
                lines.append(
                    f"| {' | '.join(map(str, words))} | {'no two such layers' if images is None else images} |"
                )
    return "\n".join(lines)


def peers(content: Entry) -> str:
    """Other people's code on the same victims, for as many CPU seconds."""
    if not content.get("peers"):
        return "Not run here."
    lines = ["| network | normalisation | code | attack | iterations | CPU s | SSIM | PSNR | best guess, SSIM |"]
    lines.append("| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for one in content["peers"].values():
        row = ROWS[one["row"]]
        figures = [one["iterations"], f"{one['cpu_seconds']:.0f}", _two(one["ssim"]), f"{one['psnr']:.1f}"]
        words = [row.network, row.norm, one["code"], one["attack"], *figures, _two(one["guess_ssim"])]
        lines.append(f"| {' | '.join(map(str, words))} |")
    return "\n".join(lines)


def counted(content: Entry) -> str:
    """How many cells there are of each state, and what they cost."""
    found = [content["cells"][cell.key] for cell in _measured(content)]
    searched = [entry for entry in found if entry["searched"]]
    everywhere = len(ROWS) * len(COLUMNS)
    words = [f"{sum(state(entry) == one for entry in found)} {one}" for one in STATES[:-1]]
    seconds = sum(entry["cpu_seconds"] for entry in content["cells"].values())
    machine = content["machine"]
    return (
        f"Of {everywhere} cells {len(found)} were run, {len(searched)} of them with a search: {', '.join(words)}. "
        f"{everywhere - len(found)} were not run here. {seconds / 60:.0f} CPU minutes in all, on {machine['cpu']} "
        f"({machine['cores']} cores, shared); torch {content['torch']}, seed {content['seed']}."
    )


def write_page(content: Entry, page: Path) -> None:
    """Put the tables into the page and the picture beside it, under the page's name."""
    parts = {"counts": counted, "map": table, "controls": controls, "equations": equations, "peers": peers}
    for name, make in parts.items():
        write_between(page, name, make(content))
    from benchmarks.plots import plot_map

    plot_map(content, page.with_suffix(".png"))


def _measured(content: Entry) -> Iterator[Cell]:
    for row in ROWS:
        for size, batch, steps in COLUMNS:
            cell = Cell(row=row, size=size, batch=batch, steps=steps)
            if cell.key in content["cells"]:
                yield cell


def _altered(content: Entry) -> Iterator[Cell]:
    yield from (cell for cell in cells("cpu") if cell.alter and cell.key in content["cells"])


def _search(entry: Entry) -> str:
    """What the search did, or why it is not there."""
    made = [one for one in entry["attempts"] if one["spec"].partition(":")[0] == "inverting-gradients"]
    if not made:
        return "not run"
    (one,) = made
    if one["matching_loss"] is None or one["starting_loss"] is None:
        return f"{one['outcome'].replace('_', ' ')} (`{one['codes'][0]}`)" if one["codes"] else one["outcome"]
    cut = ", cut" if one["cut"] else ""
    return f"{one['iterations']}{cut}, {one['starting_loss']:.2g} to {one['matching_loss']:.2g}"


def _decibels(entry: Entry) -> str:
    """The least PSNR of the images that were reconstructed."""
    found = [one["psnr"] for one in entry["best"] if one["came_back"] and one["psnr"] is not None]
    return f", {min(found):.0f} dB" if found else ""


def _attempt(one: Mapping[str, Any]) -> str:
    return f"{one['came_back']}, {_two(one['ssim'])}"


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
