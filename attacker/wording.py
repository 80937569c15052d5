"""Names and numbers as text, for a reader who has not seen the code."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from fl_precode.spec import split_parts

_MODELS = {"mlp": "MLP", "lenet": "LeNet", "convnet": "ConvNet", "resnet20": "ResNet20", "vit": "ViT"}
_NO_DEFENCES = {"none": "no defence", "unknown": "a defence that was not announced"}
_PROTOCOLS = {"fedsgd": "FedSGD (gradient of one batch)", "fedavg": "FedAvg (weights after local training)"}
_KNOWLEDGE = {
    "labels": "the true labels of each client's images",
    "batch-size": "how many images are behind an update",
    "buffers": "the running statistics of batch normalisation",
    "defence": "the defence that was announced",
    "learning-rate": "the learning rate of local training",
    "auxiliary-data": "images like those of the clients",
}
_STATUS = {
    "run": "Ran",
    "not_applicable": "Not applicable",
    "refused": "Refused, it needs more than is granted",
    "over_budget": "Left out, the budget was spent",
}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def model_name(spec: str) -> str:
    """A model's name for people.

    >>> model_name("lenet:activation=relu"), model_name("my_pkg.task:Net")
    ('LeNet (activation=relu)', 'my_pkg.task:Net')
    """
    return _named(spec, _MODELS)


def defence_name(spec: str) -> str:
    """A defence's name for people.

    >>> defence_name("none"), defence_name("precode:latent=64,beta=0.01")
    ('no defence', 'PRECODE (latent=64, beta=0.01)')
    >>> defence_name("precode+ppp:std=0.01")
    'PRECODE and PPP (std=0.01)'
    >>> defence_name("noise:std=1e+2")
    'Gaussian noise (std=1e+2)'
    """
    from fl_precode.defences.registry import DEFENCES

    titles = {name: entry.title for name, entry in DEFENCES.items() if entry.title} | _NO_DEFENCES
    return joined([_named(part, titles) for part in split_parts(spec)])


def defence_text(spec: str) -> str:
    """A defence as a command would name it, for lines in which a reader may copy it.

    >>> defence_text("none"), defence_text("unknown"), defence_text("precode:latent=8")
    ('no defence', 'defence not known', 'precode:latent=8')
    """
    return {"none": "no defence", "unknown": "defence not known"}.get(spec, spec)


def dataset_name(spec: str) -> str:
    """An image set's name for people: of own files the last part of the path.

    >>> dataset_name("faces"), dataset_name("npz:/data/ward 3/scans.npz"), dataset_name("folder:/data/scans/")
    ('faces', 'scans.npz', 'scans')
    """
    kind, colon, path = spec.partition(":")
    return path.rstrip("/").rpartition("/")[2] or spec if colon and kind in ("npz", "folder") else spec


def protocol_name(name: str) -> str:
    """What the clients send, for people.

    >>> protocol_name("fedsgd"), protocol_name("unknown")
    ('FedSGD (gradient of one batch)', 'unknown')
    """
    return _PROTOCOLS.get(name, name)


def knowledge(kind: str) -> str:
    """A kind of knowledge that the attacker has or has not, for people.

    >>> knowledge("auxiliary-data"), knowledge("the weather")
    ('images like those of the clients', 'the weather')
    """
    return _KNOWLEDGE.get(kind, kind)


def plan_status(status: str) -> str:
    """What became of a planned attack, for people.

    >>> plan_status("not_applicable"), plan_status("run")
    ('Not applicable', 'Ran')
    """
    return _STATUS.get(status, status)


def number_word(value: int) -> str:
    """A number up to twelve as a word.

    >>> number_word(1), number_word(13)
    ('one', '13')
    """
    return _NUMBERS[value] if 0 <= value < len(_NUMBERS) else str(value)


def _named(spec: str, names: dict[str, str]) -> str:
    name, _, options = spec.partition(":")
    if name not in names:
        return spec
    return f"{names[name]} ({options.replace(',', ', ')})" if options else names[name]


def capitalised(text: str) -> str:
    """The text with a capital first letter; the others stay as they are, and so does a name such as iDLG.

    >>> capitalised("first-layer inversion"), capitalised("iDLG")
    ('First-layer inversion', 'iDLG')
    """
    return text if text[1:2].isupper() else text[:1].upper() + text[1:]


def unbroken(text: str) -> str:
    """The text with each per-cent sign tied to its number, so that no line ends between them.

    >>> unbroken("0 to 49 %") == "0 to 49" + chr(160) + "%"
    True
    """
    return text.replace(" %", "\u00a0%")


def joined(words: Sequence[str], last: str = "and") -> str:
    """A list as it is spoken.

    >>> joined(["red", "green", "blue"]), joined(["red"])
    ('red, green and blue', 'red')
    """
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def percent(share: float) -> str:
    """A share in whole per cent.

    >>> percent(0.4899), percent(0.004)
    ('49 %', 'under 1 %')
    """
    return "under 1 %" if 0 < share < 0.005 else f"{share * 100:.0f} %"


def chance(p_value: float) -> str:
    """A p-value with one digit that counts.

    >>> chance(0.0087), chance(0.2), chance(1e-7)
    ('p = 0.009', 'p = 0.2', 'p < 0.001')
    """
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.1g}"


def interval(low: float, high: float) -> str:
    """A 95 % interval of a share.

    >>> interval(0.0, 0.49)
    '0 to 49 %'
    """
    return f"{low * 100:.0f} to {high * 100:.0f} %"


def figure(value: float | None, digits: int = 2) -> str:
    """A number with some decimals, or a dash where it is not known.

    >>> figure(-0.001), figure(None), figure(0.00012, 3)
    ('0.00', '–', '0.000')
    """
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def budget(value: float | None) -> str:
    """An epsilon, a delta or a noise multiplier, of whatever size: three digits at most, or a dash where it is none.

    >>> budget(213106544.7), budget(10.0), budget(1e-5), budget(None)
    ('2.13e8', '10', '1e−5', '–')
    """
    if value is None:
        return "–"
    mantissa, exponent, power = f"{value:.3g}".partition("e")
    return mantissa if not exponent else f"{mantissa}e{int(power)}".replace("-", "−")


def in_words(value: float | None) -> str:
    """An epsilon as it is spoken, of three digits; a dash where it is none.

    >>> in_words(213106544.7), in_words(8.52e8), in_words(10.39), in_words(87_123.0), in_words(4.2e18), in_words(None)
    ('213 million', '852 million', '10.4', '87,100', '4.2e18', '–')
    """
    if value is None:
        return "–"
    rounded = float(f"{value:.3g}")
    for unit, one in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if one <= rounded < 1000 * one:
            return f"{rounded / one:g} {unit}"
    if 100 <= rounded < 1e6:
        return f"{rounded:,.0f}"
    return budget(value)


def one_in(chance: float) -> str:
    """A small chance, as it is spoken.

    >>> one_in(1e-5), one_in(0.03), one_in(0.0)
    ('1 in 100,000', '1 in 33', 'none')
    """
    return "none" if chance <= 0 else f"1 in {round(1 / chance):,}"


def small_percent(share: float | None) -> str:
    """A share that may be far below 1 %, with two digits that count; a dash where it is none.

    >>> small_percent(4.845e-5), small_percent(0.4845), small_percent(1.1), small_percent(None)
    ('0.0048 %', '48 %', '110 %', '–')
    """
    return "–" if share is None else f"{float(f'{share * 100:.2g}'):,.10g} %"


def distance(value: float | None) -> str:
    """A matching loss, which may be tiny: with two digits that count.

    >>> distance(0.0271), distance(1.1e-14), distance(39.8), distance(151.2), distance(0.0), distance(None)
    ('0.027', '1.1e-14', '40', '151', '0', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}".replace("e-0", "e-")


def middle(values: Iterable[float | None]) -> float | None:
    """The median of those that are known.

    >>> middle([3.0, None, 1.0, 2.0]), middle([None])
    (2.0, None)
    """
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def decibels(psnr: float | None, mse: float | None) -> str:
    """PSNR; a null PSNR beside a mean squared error of zero means identical pictures.

    >>> decibels(12.34, 0.1), decibels(162.0, 0.0), decibels(None, 0.0), decibels(None, None)
    ('12.3 dB', 'over 100 dB', 'infinite (identical)', '–')
    """
    if psnr is not None:
        return "over 100 dB" if psnr > 100 else f"{figure(psnr, 1)} dB"
    return "infinite (identical)" if mse == 0 else "–"


def count(value: int) -> str:
    """A whole number with thousands set apart.

    >>> count(4206602)
    '4,206,602'
    """
    return f"{value:,}"


def kept_of(updates: int, seen: int, by: str) -> str:
    """How many of the updates that a server received are on its tape.

    >>> kept_of(120, 1000, "reservoir:n=120")
    '120 of 1,000 updates were kept on the tape (reservoir:n=120)'
    """
    return f"{count(updates)} of {counted(seen, 'update')} {'was' if updates == 1 else 'were'} kept on the tape ({by})"


def counted(value: int, one: str, many: str = "") -> str:
    """A number of things.

    >>> counted(1, "update"), counted(1200, "update"), counted(0, "reply", "replies")
    ('1 update', '1,200 updates', '0 replies')
    """
    return f"{count(value)} {one if value == 1 else many or f'{one}s'}"


def was(some: int, images: int) -> str:
    """The verb behind "some of these images".

    >>> was(1, 4), was(0, 1), was(2, 4), was(0, 4)
    ('was', 'was', 'were', 'were')
    """
    return "was" if some == 1 or images == 1 else "were"


def size(value: int) -> str:
    """A number of bytes in a readable unit (powers of 1,000).

    >>> size(2427720), size(512)
    ('2.4 MB', '512 B')
    """
    number, unit = float(value), 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {_UNITS[unit]}" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


def ratio(value: int, base: int) -> str:
    """How many times the base, or the surplus in per cent where that is less than double.

    >>> ratio(606930, 15826), ratio(119, 100), ratio(100, 100), ratio(5, 0)
    ('× 38', '+ 19 %', 'the same', '–')
    """
    if base == 0:
        return "–"
    times = value / base
    if value == base:
        return "the same"
    if times >= 2:
        return f"× {times:.0f}" if times >= 10 else f"× {times:.1f}"
    return f"{'+' if times > 1 else '−'} {abs(times - 1) * 100:.0f} %"


def duration(seconds: float) -> str:
    """A time in a readable unit.

    >>> duration(0.0004), duration(3.2), duration(150)
    ('under 0.1 s', '3.2 s', '2 min 30 s')
    """
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def short_node(node: str) -> str:
    """A node id cut in the middle; Flower's have twenty digits.

    >>> short_node("12345678901234567890"), short_node("hospital-a")
    ('12345…7890', 'hospital-a')
    """
    return node if len(node) <= 14 else f"{node[:5]}…{node[-4:]}"
