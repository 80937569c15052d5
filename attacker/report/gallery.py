"""True images beside what the attacks made of them: one row for each attacked image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.audit.record.counting import best_guess, comparable, counts
from attacker.audit.record.schema import AuditRecord, FederationSummary, ImageResult, VictimImage
from attacker.audit.record.view import confirms
from attacker.report.pictures import Album
from attacker.report.verdict import knows

MOST_ROWS = 1000
MOST_OTHERS = 6000
DETAILED = 96
"""Shorter side of an image, in pixels, from which its pictures are shown one below the other and 224 pixels wide."""

MOST_FIRST = 3
"""Images that the page begins with, each beside its reconstruction."""

MOST_LARGE = 4
"""Pictures that are shown large where no true image stands beside them; the rest is a click away."""
# Characters of one tile's markup without its picture, from above; a test holds the page to its bound.
_TILE_MARKUP = 480


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture, or a box that says why there is none.

    Attributes:
        title: Above it.
        alt: Text for those who do not see it.
        path: Path of the picture, or None.
        uri: The picture, or None.
        placeholder: In place of a picture.
        caption: Lines below it.
        counted: Whether the image counts as reconstructed; None for a truth or baseline, or when it is not known.
        attack: Spec of the attack; empty for truth and baseline.
        ssim: SSIM of this attack, or None.
        confirmed: Whether the update itself confirms it.
        whose: Whose image it is taken for; empty where nobody compared.
        identified: Whether that is the true image, beyond chance.
    """

    title: str
    alt: str
    path: str | None
    placeholder: str
    uri: str | None = None
    caption: tuple[str, ...] = ()
    counted: bool | None = None
    attack: str = ""
    ssim: float | None = None
    confirmed: bool = False
    whose: tuple[str, ...] = ()
    identified: bool = False

    @property
    def reconstructed(self) -> bool:
        """Whether it shows an image that the audit counts as reconstructed."""
        return bool(self.counted) or self.confirmed

    @property
    def disclosed(self) -> bool:
        """Whether it shows an image that the audit counts as reconstructed, or whose it is."""
        return self.reconstructed or self.identified


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image of the first screen beside its reconstruction.

    Attributes:
        truth: The true image; None where it is not known.
        made: What an attack made of its update.
        place: Where the image comes from, for people.
        title: Model, defence and images of the federation.
    """

    truth: Tile | None
    made: Tile
    place: str
    title: str


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """One attacked image.

    Attributes:
        federation: Its identifier.
        title: Model, defence and images of the federation.
        round: When it was used.
        node: By whom.
        place: Where it came from, for people.
        ssim: SSIM of the attack that came closest, or None.
        tiles: The truth, the plain and the adaptive attack that came closest, what was reconstructed without the
            defence, and the best guess without any update, as far as there are any.
        others: What the other attacks made of it.
        large: Whether no true image is known, so that the pictures are all there is, and shown large.
        detailed: Whether the images have more to see than small tiles can show.
        repeated: Whether an earlier row has the same image.
    """

    federation: str
    title: str
    round: int
    node: str
    place: str
    ssim: float | None
    tiles: tuple[Tile, ...]
    others: tuple[Tile, ...]
    large: bool = False
    detailed: bool = False
    repeated: bool = False


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The rows that the page shows, and what can be chosen from.

    Attributes:
        rows: In the record's order.
        titles: Federation to its title.
        nodes: Nodes of the rows.
        rounds: Rounds of the rows, ascending.
        attacks: Spec and name of those with a tile.
        hidden: Attacked images that the page has no room for.
        small_print: How the pictures are embedded, and which are not.
        without: Whether every picture was left out.
        first: The most disclosed images, with which the page begins.
    """

    rows: tuple[GalleryRow, ...]
    titles: Mapping[str, str]
    nodes: tuple[str, ...]
    rounds: tuple[int, ...]
    attacks: Mapping[str, str]
    hidden: int
    small_print: str
    without: bool = False
    first: tuple[Pair, ...] = ()

    @property
    def disclosed(self) -> int:
        """How many of the first images count as reconstructed, or are identified."""
        return sum(pair.made.disclosed for pair in self.first)

    @property
    def compared(self) -> bool:
        """Whether a true image stands beside some of the pictures."""
        return not self.rows or any(not row.large for row in self.rows)

    @property
    def alone(self) -> bool:
        """Whether some of the pictures have no true image beside them."""
        return any(row.large for row in self.rows)


def make_gallery(record: AuditRecord, titles: Mapping[str, str], album: Album, room: int) -> Gallery:
    """The gallery.

    Args:
        record: The audit.
        titles: Names of the federations to show, by identifier; controls appear beside what they are the control of.
        album: Album of the page; pictures are admitted to it.
        room: Characters of HTML, about, pictures included.
    """
    shown = [summary for summary in record.federations if summary.id in titles]
    rows_of: dict[str, list[ImageResult]] = {}
    for result in record.results:
        if result.outcome != "not_applicable":
            rows_of.setdefault(result.victim_id, []).append(result)
    controls = _controls(record, rows_of)
    most = MOST_ROWS // max(len(shown), 1)
    rows: list[GalleryRow] = []
    hidden = 0
    for federation in shown:
        victims = [victim for victim in record.victims if victim.federation == federation.id]
        hidden += max(len(victims) - most, 0)
        rows += [
            _row(
                record,
                federation,
                titles[federation.id],
                victim,
                rows_of.get(victim.id, []),
                controls.get((federation.id, victim.round, victim.node, victim.image)),
            )
            for victim in victims[:most]
        ]
    first = most_disclosed(rows)
    rows, small_print = _with_pictures(rows, album, room, first)
    return Gallery(
        rows=tuple(rows),
        titles={row.federation: row.title for row in rows},
        nodes=tuple(dict.fromkeys(row.node for row in rows)),
        rounds=tuple(sorted({row.round for row in rows})),
        attacks=_attacks(rows),
        hidden=hidden,
        small_print=small_print,
        without=album.empty,
        first=tuple(
            replace(
                pair,
                made=_embedded(pair.made, album),
                truth=None if pair.truth is None else _embedded(pair.truth, album),
            )
            for pair in first
        ),
    )


def most_disclosed(rows: Iterable[GalleryRow]) -> list[Pair]:
    """The images that a page begins with: first what counts as reconstructed, of each federation in turn."""
    ranked: list[tuple[tuple[bool, int, bool, float], Pair]] = []
    for of_one in _by_federation(row for row in rows if not row.repeated):
        pairs = sorted(filter(None, map(_pair, of_one)), key=_undisclosed)
        # A federation of which nothing was reconstructed stands behind the others, whatever its turn.
        ranked += [((_undisclosed(pair)[0], turn, *_undisclosed(pair)[1:]), pair) for turn, pair in enumerate(pairs)]
    return [pair for _, pair in sorted(ranked, key=lambda one: one[0])[:MOST_FIRST]]


def _by_federation(rows: Iterable[GalleryRow]) -> Iterable[list[GalleryRow]]:
    found: dict[str, list[GalleryRow]] = {}
    for row in rows:
        found.setdefault(row.federation, []).append(row)
    return found.values()


def _pair(row: GalleryRow) -> Pair | None:
    """The image beside the attack that came closest; None where no attack made a picture."""
    made = [tile for tile in row.tiles if tile.attack and tile.path is not None]
    if not made:
        return None
    # Where the truth is not known, the most credible picture stands first.
    best = made[0] if row.large else max(made, key=lambda tile: (tile.reconstructed, tile.identified, tile.ssim or 0.0))
    return Pair(truth=None if row.large else row.tiles[0], made=best, place=row.place, title=row.title)


def _undisclosed(pair: Pair) -> tuple[bool, bool, float]:
    """Sorts pairs: reconstructed, then identified, then by similarity."""
    return not pair.made.reconstructed, not pair.made.identified, -(pair.made.ssim or 0.0)


def _controls(
    record: AuditRecord, rows_of: Mapping[str, Sequence[ImageResult]]
) -> dict[tuple[str, int, str, int], ImageResult]:
    """The best result of the undefended control, by defended federation and place of the image."""
    parents = {
        federation.id: federation.control_of for federation in record.federations if federation.control_of is not None
    }
    controls: dict[tuple[str, int, str, int], ImageResult] = {}
    for victim in record.victims:
        best = _closest(rows_of.get(victim.id, []))
        if victim.federation in parents and best is not None:
            controls[parents[victim.federation], victim.round, victim.node, victim.image] = best
    return controls


def _closest(rows: Iterable[ImageResult]) -> ImageResult | None:
    """The result most like the truth; without one the first that has a picture, in the order of the attacks."""
    return max(
        rows,
        key=lambda row: (row.ssim if row.ssim is not None else float("-inf"), row.reconstruction is not None),
        default=None,
    )


def _row(
    record: AuditRecord,
    federation: FederationSummary,
    title: str,
    victim: VictimImage,
    results: Sequence[ImageResult],
    control: ImageResult | None,
) -> GalleryRow:
    where = f"round {victim.round}, client {wording.short_node(victim.node)}"
    if federation.batch_size != 1:
        where += f", image {victim.image + 1}"
    if not federation.truth_known:
        return _row_alone(record, title, victim, results, where)
    chosen = {
        title: closest
        for title, adaptive in (("Plain attack", False), ("Adaptive attack", True))
        if (closest := _closest(row for row in results if knows(record, federation, row.attack) == adaptive))
        is not None
    }
    picked = [result.attack for result in chosen.values()]
    similarities = [row.ssim for row in results if row.ssim is not None]
    # Own files name their classes by number, which says nothing by itself.
    known = victim.label_name if victim.label_name and not victim.label_name.isdigit() else ""
    name = known or (f"class {victim.label}" if victim.label is not None else "")
    truth = Tile(
        title="True image", alt=f"True image: {where}", path=victim.truth, placeholder="not known", caption=(name,)
    )
    baseline = (*(() if control is None else _control(control, where)), *_guess(victim, results, where))
    return GalleryRow(
        federation=federation.id,
        title=title,
        round=victim.round,
        node=victim.node,
        place=wording.capitalised(where),
        ssim=max(similarities, default=None),
        tiles=(truth, *(_attack(record, title, result, where) for title, result in chosen.items()), *baseline),
        others=tuple(_attack(record, "", row, where) for row in results if row.attack not in picked),
        detailed=min(federation.shape[1:]) >= DETAILED,
        repeated=victim.same_as is not None,
    )


def _row_alone(
    record: AuditRecord, title: str, victim: VictimImage, results: Sequence[ImageResult], where: str
) -> GalleryRow:
    """An image whose truth is not known: the most credible pictures first."""
    ranked = sorted((row for row in results if row.reconstruction is not None), key=_doubt)
    rest = [row for row in results if row.reconstruction is None]
    return GalleryRow(
        federation=victim.federation,
        title=title,
        round=victim.round,
        node=victim.node,
        place=f"{wording.capitalised(where)}. True image not known",
        ssim=None,
        tiles=tuple(_attack(record, "", row, where) for row in ranked[:MOST_LARGE]),
        others=tuple(_attack(record, "", row, where) for row in (*ranked[MOST_LARGE:], *rest)),
        large=True,
        repeated=victim.same_as is not None,
    )


def _doubt(row: ImageResult) -> tuple[bool, float]:
    """Sorts results without truth: what the update confirms, then by how far the distance fell on the way."""
    if confirms(row):
        return False, 0.0
    if row.matching_loss is None:
        return True, float("inf")
    return True, row.matching_loss / row.starting_loss if row.starting_loss else row.matching_loss


def _attack(record: AuditRecord, title: str, row: ImageResult, where: str) -> Tile:
    name = wording.capitalised(attack_title(row.attack))
    counted = None
    if row.baseline_ssim is not None:
        counted = counts(row, record.success_threshold)
    by = (f"by {attack_title(row.method)}",) if row.method else ()
    return Tile(
        title=title or name,
        alt=f"Reconstruction by {name}: {where}",
        path=row.reconstruction,
        placeholder="the attack failed" if row.outcome in ("failed", "diverged") else "no picture",
        caption=(
            *((name,) if title else ()),
            *by,
            *_scores(row),
            *_named(row),
            *_beside(row, record.success_threshold),
        ),
        counted=counted,
        attack=row.attack,
        ssim=row.ssim,
        confirmed=row.baseline_ssim is None and confirms(row),
        whose=_named(row),
        identified=bool(row.identified),
    )


def _control(row: ImageResult, where: str) -> tuple[Tile, ...]:
    return (
        Tile(
            title="Without defence",
            alt=f"Reconstruction without the defence: {where}",
            path=row.reconstruction,
            placeholder="no picture",
            caption=(wording.capitalised(attack_title(row.attack)), *_scores(row)),
        ),
    )


def _guess(victim: VictimImage, results: Sequence[ImageResult], where: str) -> tuple[Tile, ...]:
    """The best guess without any update; in older records the average training image, the only one that they know."""
    picture, similarity, name = victim.guess, victim.guess_ssim, victim.guess_name
    if similarity is None:
        similarity = next((row.baseline_ssim for row in results if row.baseline_ssim is not None), None)
        picture, name = victim.baseline, "mean image"
    if similarity is None and picture is None:
        return ()
    return (
        Tile(
            title="Best guess",
            alt=f"Best guess without the update, beside: {where}",
            path=picture,
            placeholder="no picture",
            caption=(name, f"SSIM {wording.figure(similarity)}"),
        ),
    )


def _beside(row: ImageResult, threshold: float) -> tuple[str, ...]:
    """Why an image that reaches the threshold does not count."""
    guess = best_guess(row)
    if not comparable(row) or row.ssim is None or row.ssim < threshold or guess is None or counts(row, threshold):
        return ()
    return (f"no better than a guess: {row.guess or 'mean image'}, SSIM {wording.figure(guess)}",)


def _named(row: ImageResult) -> tuple[str, ...]:
    """Whose image the picture is taken for."""
    if row.rank is None or row.candidates is None:
        return ()
    place = f"place {row.rank:,.6g} of {wording.count(row.candidates)}"
    return (f"image identified: {place}" if row.identified else place,)


def _scores(row: ImageResult) -> tuple[str, ...]:
    if row.mse is not None:
        return (f"SSIM {wording.figure(row.ssim)}", f"PSNR {wording.decibels(row.psnr, row.mse)}")
    label = () if row.recovered_label is None else (f"taken for class {row.recovered_label}",)
    if row.matching_loss is None:
        return label
    began = () if row.starting_loss is None else (f"from {_loss(row.starting_loss)} at the start to",)
    return (*label, *began, f"matching loss {_loss(row.matching_loss)}")


def _loss(value: float) -> str:
    return wording.figure(value, 3) if 0.001 <= value < 1 else wording.distance(value)


def _with_pictures(
    rows: Sequence[GalleryRow], album: Album, room: int, begin: Sequence[Pair]
) -> tuple[list[GalleryRow], str]:
    """The rows with their pictures, and how those are embedded; those that the page begins with come once more."""
    room -= _TILE_MARKUP * sum(len(row.tiles) for row in rows)
    tiles = [tile for pair in begin for tile in (pair.truth, pair.made) if tile is not None]
    tiles += [tile for row in rows for tile in row.tiles]
    first = [tile.path for tile in tiles if tile.path is not None]
    room = album.admit(first, room)
    sentences = [album.encoding.words] if first else []
    others = sum(len(row.others) for row in rows)
    if others > MOST_OTHERS or _TILE_MARKUP * others > room:
        rows = [replace(row, others=()) for row in rows]
        sentences.append("Only the attacks that came closest are shown; the record has all of them.")
    else:
        room -= _TILE_MARKUP * others
        more = [tile.path for row in rows for tile in row.others if tile.path is not None]
        if not album.admit_more(more, room):
            sentences.append("There was no room for the pictures of the other attacks.")
    with_uris = [
        replace(
            row,
            tiles=tuple(_embedded(tile, album) for tile in row.tiles),
            others=tuple(_embedded(tile, album) for tile in row.others),
        )
        for row in rows
    ]
    return with_uris, " ".join(sentences)


def _embedded(tile: Tile, album: Album) -> Tile:
    """The tile with its picture; where the album is empty, it says that a picture was left out."""
    if album.empty and tile.path is not None:
        return replace(tile, placeholder="left out")
    return replace(tile, uri=album.uri(tile.path))


def _attacks(rows: Iterable[GalleryRow]) -> dict[str, str]:
    specs = {tile.attack for row in rows for tile in (*row.tiles, *row.others) if tile.attack}
    names = {spec: wording.capitalised(attack_title(spec)) for spec in sorted(specs)}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {spec: f"{name} ({spec})" if name in twice else name for spec, name in names.items()}
