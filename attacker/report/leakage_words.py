"""Meaning of a leakage analysis, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from attacker.audit.record.schema import NoiseAttack, PositionLeakage, SpanLeakage
from attacker.leakage.record import ImageLeak, Leakage, PositionRank, SpanRank, outliers
from attacker.wording import capitalised, count, counted, figure, joined

# Errors of pixels on the scale [0, 1]. A picture with 0.02 looks the same, one with 0.1 is noisy but plain to see; an
# image and a grey square differ by about 0.25.
_SAME, _PLAIN, _NOTHING = 0.02, 0.1, 0.25


def headline(leakage: Leakage) -> str:
    """One sentence for the top."""
    image = _usable(leakage)
    if image is None:
        return "Nothing can be said: the gradients of these images are zero."
    if image.rank is None:
        return "Too large for exact ranks: errors are bounds from below, true ones may be over ten times larger."
    if leakage.noise is not None:
        if leakage.noise.fitted == image.unknowns:
            return (
                "The bottleneck does not stop an attacker who fits its noise along with the image: the gradient still "
                "determines both."
            )
        return (
            f"With its noise unknown, the gradient determines {count(leakage.noise.fitted)} of {count(image.unknowns)} "
            "numbers of the image."
        )
    if image.rank == image.unknowns:
        return "The gradient determines the whole image: without noise it can be recovered exactly."
    return f"The gradient determines {count(image.rank)} of {count(image.unknowns)} numbers of the image."


def advice(leakage: Leakage) -> list[str]:
    """What follows, one paragraph each."""
    image = _usable(leakage)
    if image is None:
        return [f"Image {leak.index}: {leak.reason}." for leak in leakage.images if leak.reason]
    told = [*(_noise(leakage) or [_rank(image)]), *exactly_determined(leakage.positions, leakage.spans)]
    told.append(_error(leakage, image))
    if leakage.defence != "none" and image.influence is not None:
        told.append(
            "What the defence does to the finished gradient moves the image that fits it by an RMSE of "
            f"{rmse_size(image.influence)}: {seen_at(image.influence)}."
        )
    told += _samples(leakage)
    told.append(
        "Full rank says that no other image nearby has the same gradient, not that an attack finds it. The lost part "
        "is out of reach for every attack that has only this gradient, as far as small changes of the image go. Errors "
        "are of the linear theory: above about 0.25 they say that nothing is determined, not by how much. Other "
        "weights, later in training, give other numbers."
    )
    return [paragraph for paragraph in told if paragraph]


def exactly_determined(
    positions: PositionRank | PositionLeakage | None, spans: Sequence[SpanRank | SpanLeakage]
) -> list[str]:
    """What formulas take from one gradient, a sentence for each; empty where none fits the model.

    Args:
        positions: Patches by the gradient of their positions, or None.
        spans: Pairs of layers that take batches apart.
    """
    told = [] if positions is None else [_patches(positions)]
    return told + [_apart(span) for span in spans]


def _patches(rank: PositionRank | PositionLeakage) -> str:
    patches = counted(rank.patches, "patch", "patches")
    numbers = f"the gradient of {rank.positions} has rank {count(rank.rank)} for {patches}"
    if rank.exact:
        return (
            f"One image is exactly determined, however large: {numbers}, so that one linear system gives all of them "
            "(patch-embedding)."
        )
    return (
        f"Patches are not exactly determined: {numbers} of {counted(rank.width, 'number')} a token. One linear system "
        "gives that many combinations of them (patch-embedding); the others have to be guessed."
    )


def _apart(span: SpanRank | SpanLeakage) -> str:
    layers = f"{span.first} and {span.second}, with {span.activation} between them,"
    if not span.tokens:
        return (
            f"{capitalised(counted(span.most, 'image'))} of one batch are exactly determined: {layers} take as many "
            "apart (activation-span)."
        )
    sizes = f"{layers} take up to {counted(span.most, 'token')} apart, and an image has {count(span.each)}"
    if span.images == 1:
        return f"All tokens of one image are exactly determined, too: {sizes}."
    if span.images:
        return f"The tokens of {counted(span.images, 'image')} of one batch are exactly determined: {sizes}."
    return f"Tokens of batches are not exactly determined: {sizes}."


def warning(leakage: Leakage) -> str:
    """What c(M) is worth."""
    return (
        f"c(M) = {leakage.solubility:.1f}. It is given for comparison with the literature and is no measure of "
        "security: it looks at each layer alone, while later gradients bind the image through several layers at once. "
        "One net of the paper that proposed it scores -6211, the most secure of all, and its gradient determines all "
        "but 189 of 3,072 numbers of the image. The rank above is the test."
    )


def _usable(leakage: Leakage) -> ImageLeak | None:
    return next((image for image in leakage.images if image.reason is None), None)


def _rank(image: ImageLeak) -> str:
    if image.rank is None:
        return (
            "The Jacobian was used by a few products only. Errors are bounds from below: true ones may be over ten "
            "times larger. They order images by risk, roughly; for exact values take a smaller model or smaller images."
        )
    if image.rank == image.unknowns:
        return f"Recoverable exactly from a noise-free gradient: the Jacobian has full rank, {count(image.rank)}."
    lost = image.unknowns - image.rank
    return (
        f"{count(lost)} of {count(image.unknowns)} numbers of the image leave no trace in the gradient "
        f"({lost / image.unknowns:.0%}); no attack can recover them but by guessing what images look like. The map "
        "of the page shows where."
    )


def _noise(leakage: Leakage) -> list[str]:
    ranks = leakage.noise
    if ranks is None:
        return []
    return [
        f"The bottlenecks draw {count(ranks.noise)} random numbers for an image. An attacker who knew them would "
        f"determine {count(ranks.known)} numbers of it, from the layers before the noise alone {count(ranks.before)}. "
        f"One who fits them along with the image keeps {count(ranks.fitted)}, with errors "
        f"{ranks.fitted_rmse / ranks.known_rmse:.2g} times as large under noise on the gradient.",
        "An attacker who ignores the noise, and replays with zeros, fits an image that is off by an RMSE of "
        f"{rmse_size(ranks.sampling)}: {seen_at(ranks.sampling)}. That stops naive attacks and is no "
        "protection by itself.",
    ]


def _error(leaks: Leakage, image: ImageLeak) -> str:
    if image.unit_rmse is None:
        return ""
    known = " if the bottlenecks' noise is known" if leaks.noise else ""
    parts = " of the part that is determined" if image.rank is not None and image.rank < image.unknowns else ""
    rmse = leaks.std * image.unit_rmse
    return (
        f"Gaussian noise of standard deviation {leaks.std:g} on each number of the gradient leaves an attacker without "
        f"any idea of what images look like (without a prior) with an RMSE of {rmse_size(rmse)}{parts}{known}, on the "
        f"scale from 0 to 1: {seen_at(rmse)}. That attacker's RMSE is {_PLAIN}, at which an image is still plain to "
        f"see, at {_PLAIN / image.unit_rmse:.2g}, and {_NOTHING} at {_NOTHING / image.unit_rmse:.2g}. This is no "
        "advice: a search with a prior reconstructed images with an SSIM of .8 and more at noise where it is "
        f"{_NOTHING} (docs/explanation/leakage.md). The gradient itself has a norm of {image.gradient_norm:.3g} over "
        f"{count(leaks.parameters)} numbers."
    )


def noise_without_prior(unit_rmse: float, measured: NoiseAttack | None = None) -> str:
    """What noise does to an attacker who knows nothing of images, and what it does to one who does; never as advice.

    Args:
        unit_rmse: Error for noise of standard deviation 1.
        measured: What a search with a prior made of such noise; None where none was tried.

    >>> noise_without_prior(50.0)
    'Gaussian noise of standard deviation 0.002 on each number of the update puts an attacker without a prior off by \
an RMSE of 0.1 on average, on the scale from 0 to 1. Noise of 0.005 puts this attacker off by 0.25. This is no advice: \
an attacker with a prior sees more at the same noise. None was tried here.'
    """
    return (
        f"Gaussian noise of standard deviation {_plainly(_PLAIN / unit_rmse)} on each number of the update puts an "
        f"attacker without a prior off by an RMSE of {_PLAIN} on average, on the scale from 0 to 1. Noise of "
        f"{_plainly(_NOTHING / unit_rmse)} puts this attacker off by {_NOTHING}. This is no advice: an attacker with a "
        f"prior sees more at the same noise. {_with_prior(measured)}"
    )


def _with_prior(measured: NoiseAttack | None) -> str:
    if measured is None:
        return "None was tried here."
    if not measured.ssim:
        return f"None was tried here: {measured.reason}."
    scores = joined(["nothing" if score is None else figure(score) for score in measured.ssim])
    which = "an attacked image" if len(measured.ssim) == 1 else f"{len(measured.ssim)} attacked images"
    return (
        f"At {_plainly(measured.std)} short searches with such a prior, of {count(measured.iterations)} iterations, "
        f"reconstructed {which} with an SSIM of {scores} (1 is the image itself)."
    )


def _plainly(value: float) -> str:
    """Two digits without an exponent.

    >>> _plainly(4.27e-05), _plainly(12.0)
    ('0.000043', '12')
    """
    return format(Decimal(f"{value:.2g}"), "f")


def rmse_size(rmse: float) -> str:
    """An error that linear theory predicts.

    >>> rmse_size(0.0123), rmse_size(7.0)
    ('about 0.012', 'more than 1')
    """
    return f"about {rmse:.2g}" if rmse < 1 else "more than 1"


def seen_at(rmse: float) -> str:
    """What is to be seen of an image with such an error.

    >>> seen_at(0.01), seen_at(0.3)
    ('hardly to be told from the original', 'nothing to be seen')
    """
    if rmse < _SAME:
        return "hardly to be told from the original"
    if rmse < _PLAIN:
        return "noisy, and plain to see"
    return "hard to recognise" if rmse < _NOTHING else "nothing to be seen"


def _samples(leakage: Leakage) -> list[str]:
    usable = [image.unit_rmse for image in leakage.images if image.unit_rmse]
    if len(usable) < 3:
        return []
    most, least = outliers(leakage.images)
    spread = (
        f"The same noise acts on images differently: over {len(usable)} images, the largest error is "
        f"{max(usable) / min(usable):.3g} times the smallest."
    )
    if most:
        spread += f" Far more at risk than most: {_listed(most)}."
    if least:
        spread += f" Far less: {_listed(least)}."
    return [spread]


def _listed(indices: tuple[int, ...]) -> str:
    return f"image{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
