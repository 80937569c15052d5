"""The gate: whether an audit meets what was demanded, for programs that must decide. Pure functions of the record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from attacker.audit.record.counting import comparable, counts
from attacker.audit.record.flag_sentences import FLAGS
from attacker.audit.record.naming import identified_in
from attacker.audit.record.schema import AuditRecord, FederationSummary
from attacker.audit.record.view import FederationView, counterpart, is_defended
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import title_of
from attacker.wording import count, counted, interval, was


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What an audit must show; None and False demand nothing.

    Attributes:
        max_asr: Share of attacked images, in [0, 1], of which no more may have been reconstructed by any attack.
        max_identified: Share of the images that could be identified, in [0, 1], of which no more may have been, by more
            than chance.
        min_victims: Images that must have been attacked and compared with the truth.
        no_flags: Whether flags are forbidden.
        allowed_flags: Names of flags that are permitted all the same.

    Raises:
        ValueError: If a value is out of its range, a flag does not exist, or nothing is demanded.
    """

    max_asr: float | None = None
    max_identified: float | None = None
    min_victims: int | None = None
    no_flags: bool = False
    allowed_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shares = {"--max-asr": self.max_asr, "--max-identified": self.max_identified}
        if not any(share is not None for share in shares.values()) and self.min_victims is None and not self.no_flags:
            raise ValueError("nothing is demanded; give --max-asr, --max-identified, --min-victims or --no-flags")
        for option, share in shares.items():
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"expected {option} to be a share from 0 to 1, got {share}")
        if self.min_victims is not None and self.min_victims < 1:
            raise ValueError(f"expected --min-victims to be 1 or more, got {self.min_victims}")
        strange = sorted(set(self.allowed_flags) - set(FLAGS))
        if strange:
            raise ValueError(f"there is no flag {', '.join(strange)}; there are {', '.join(FLAGS)}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether one federation meets one demand.

    Attributes:
        federation: Its name for people.
        demand: What was demanded, as on the command line.
        met: Whether it does.
        reason: What was found.
    """

    federation: str
    demand: str
    met: bool
    reason: str


def judged(record: AuditRecord) -> list[FederationSummary]:
    """Federations that a gate is about: not the undefended ones that serve to compare others with."""
    compared = (counterpart(record, federation) for federation in record.federations if is_defended(federation))
    controls = {control.id for control in compared if control is not None}
    rest = [
        federation
        for federation in record.federations
        if federation.control_of is None and federation.id not in controls
    ]
    return rest or list(record.federations)


def images_reconstructed(record: AuditRecord, federation: str) -> tuple[int, int]:
    """Images that were reconstructed by any attack, and images that were attacked and compared with the truth."""
    rows = [row for row in record.results if row.federation == federation and comparable(row)]
    back = {row.victim_id for row in rows if counts(row, record.success_threshold)}
    return len(back), len({row.victim_id for row in rows})


def answers(record: AuditRecord, demands: Demands) -> list[Answer]:
    """Every demand for every federation that it is about, in the record's order."""
    return [
        Answer(federation=f"{federation.id}: {title_of(federation)}", demand=demand, met=met, reason=reason)
        for federation in judged(record)
        for demand, met, reason in _of_one(record, federation, demands)
    ]


def _of_one(record: AuditRecord, federation: FederationSummary, demands: Demands) -> Iterator[tuple[str, bool, str]]:
    back, victims = images_reconstructed(record, federation.id)
    if demands.max_asr is not None:
        met = victims > 0 and back <= demands.max_asr * victims
        yield f"--max-asr {demands.max_asr:g}", met, _shares(record, federation, back, victims)
    if demands.max_identified is not None:
        yield f"--max-identified {demands.max_identified:g}", *_identified(record, federation, demands.max_identified)
    if demands.min_victims is not None:
        met = victims >= demands.min_victims
        yield f"--min-victims {demands.min_victims}", met, f"{victims} images were attacked and compared"
    if demands.no_flags:
        recorded = [*record.flags, *flags(record)]  # a record of an older version has none of its own
        raised = {flag.name: flag.sentence for flag in recorded if flag.federation == federation.id}
        left = {name: sentence for name, sentence in raised.items() if name not in demands.allowed_flags}
        reason = " ".join(f"[{name}] {sentence}" for name, sentence in left.items())
        yield "--no-flags", not left, reason or "no flag that counts"


def _shares(record: AuditRecord, federation: FederationSummary, back: int, victims: int) -> str:
    if not victims:
        view = FederationView(record=record, federation=federation)
        why = federation.truth_note or ("no attack gave a result" if not view.tried else "nothing was compared")
        return f"how many images were reconstructed is not known: {why}"
    union = FederationView(record=record, federation=federation).union
    said = (
        f"{back} of {counted(union.images, 'image')} {was(back, union.images)} reconstructed by some attack (95 % "
        f"interval {interval(*union.interval)})"
    )
    if union.independent < union.images:
        said += f"; they count as {counted(union.independent, 'independent trial')}"
    return said + (f"; {union.images - victims} could not be attacked at all" if union.images > victims else "")


def _identified(record: AuditRecord, federation: FederationSummary, most: float) -> tuple[bool, str]:
    """Whether no more than this share of images was identified; never where nobody could be."""
    found = identified_in(FederationView(record=record, federation=federation))
    unknown = "how many images can be identified is not known: "
    if found is None:
        why = federation.identification_note or "no image was compared with candidates (--candidates)"
        return False, unknown + why[0].lower() + why[1:].rstrip(".")
    among = f"among {count(found.candidates)} candidates"
    if not found.nameable:
        return False, f"{unknown}to be told for sure from others, {among} are too few"
    if found.surest.beyond_chance and not found.count:
        first = f"{found.surest.ranks.first:.3g} of {counted(found.surest.ranks.images, 'image')}"
        return False, f"{unknown}{first} are first {among}, more than by chance, and none of them for sure"
    said = (
        f"{found.count} of {counted(found.images, 'image')} {was(found.count, found.images)} identified {among} by "
        f"some attack (95 % interval {interval(*found.interval)})"
    )
    if found.nameable < found.images:
        said += f"; {found.images - found.nameable} had too few candidates to be"
    return found.count <= most * found.nameable, said


def junit(gate_answers: Sequence[Answer], *, name: str) -> bytes:
    """The answers as JUnit XML, which CI systems show beside tests.

    Args:
        gate_answers: One test case each.
        name: Name of the suite.
    """
    failures = sum(not outcome.met for outcome in gate_answers)
    attributes = {"name": _printable(name), "tests": str(len(gate_answers)), "failures": str(failures), "errors": "0"}
    suites = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(suites, "testsuite", attributes)
    for answer in gate_answers:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _printable(answer.federation), "name": answer.demand, "time": "0"}
        )
        if answer.met:
            ElementTree.SubElement(case, "system-out").text = _printable(answer.reason)
        else:
            failure = ElementTree.SubElement(case, "failure", {"message": _printable(answer.reason), "type": "demand"})
            failure.text = _printable(answer.reason)
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _printable(text: str) -> str:
    """Text without the characters that XML cannot carry and terminals obey.

    >>> _printable("client " + chr(27) + "[31m" + chr(0) + "7")
    'client [31m7'
    """
    return "".join(character for character in text if character.isprintable() or character == " ")
