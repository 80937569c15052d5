"""Flags of an audit: their names, which are stable codes, and all their sentences (docs/reference/flags.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Found = tuple[str, str, str | None]
"""Name of a flag, its sentence, and the attack that it is about."""


@dataclass(frozen=True)
class FlagKind:
    """What a flag means wherever it is raised.

    Attributes:
        phrase: What a verdict's sentence says of it.
        weak: Whether it alone forbids to say that a defence held.
    """

    phrase: str
    weak: bool = True


FLAGS: Mapping[str, FlagKind] = MappingProxyType(
    {
        "no-adaptive-attack": FlagKind("no attack that knows the whole defence gave a result"),
        "model-is-random": FlagKind("the model is random and no attack accounts for it"),
        "loss-did-not-fall": FlagKind("a search came no closer to the update"),
        "budget-edge": FlagKind("a search was still coming closer when its budget ended"),
        "search-cut": FlagKind("the budget ended a search before its time"),
        "single-start": FlagKind("a search had one start only"),
        "weaker-beats-stronger": FlagKind("a weaker attack did better than a stronger one"),
        "no-control": FlagKind("there is no undefended control"),
        "control-not-reconstructed": FlagKind("the attacks fail without a defence too"),
        "control-untrained": FlagKind("the undefended control is not as well trained"),
        "control-hardly-reconstructed": FlagKind("without the defence the attack works too rarely to tell"),
        "too-few-victims": FlagKind("too few images were attacked"),
        "near-miss": FlagKind("images came close to what counts as reconstructed"),
        "images-identified": FlagKind("images are identified that were not reconstructed", weak=False),
        "true-images-first": FlagKind("true images are first among others more often than by chance"),
        "victims-left-out": FlagKind("some updates were not attacked at all"),
        "loss-assumed": FlagKind("the loss that clients minimise is assumed"),
        "labels-unknown": FlagKind("the attacker did not have the right labels"),
        "buffers-withheld": FlagKind("statistics that the clients normalise by are withheld"),
        "multi-step-update": FlagKind("updates sum several local steps", weak=False),
        "attack-failed": FlagKind("an attack failed"),
        "attack-left-out": FlagKind("an attack was left out for lack of time"),
        "defence-doubted": FlagKind("the updates contradict the announced defence"),
        "not-announced": FlagKind("the updates show something that was not announced", weak=False),
        "noise-from-a-seed": FlagKind("the noise was drawn from a seed that the server has"),
        "above-the-bound": FlagKind("more was reconstructed than the promised privacy allows"),
        "claim-refuted": FlagKind("canaries refute the epsilon"),
        "canaries-missing": FlagKind("the canaries do not show", weak=False),
        "canaries-present": FlagKind("canaries disturb the updates that were attacked"),
        "uneven-disclosure": FlagKind("one group of images was disclosed more often than the rest", weak=False),
        "tape-damaged": FlagKind("the tape is damaged"),
    }
)
"""Every flag by its name in records and in docs/reference/flags.md."""

FLAG_SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        "no-adaptive-attack": "No attack that takes {defence} into account gave a result: an attacker who knows of it "
        "was not tried.",
        "no-adaptive-attack.halves": "No attack that gave a result knows the whole defence, which is {defence}. A part "
        "of it is taken into account each time: {halves}. Attacks that know a part each do not make up for one that "
        "knows all of it.",
        "model-is-random": "The model gives another gradient each time for the same images, and no attack that ran "
        "takes this randomness into account. The attacks may have failed at it alone.",
        "loss-did-not-fall": "The search of {attack} came no closer to the update than it began, by less than {share} "
        "on most images. It found no direction to follow, and its failure shows nothing.",
        "budget-edge": "The distance of {attack} still fell by {share} over the last tenth of its search: with more "
        "iterations it may have reconstructed images.",
        "search-cut": "The budget ended {attack} before its time on {cut} of {images}; what it had found until then is "
        "kept.",
        "single-start": "Each search of {attacks} had one start. Searches end in places that depend on where they "
        "began; others may have reconstructed images.",
        "weaker-beats-stronger": "{weaker} did better than {stronger}, which has the larger budget.",
        "weaker-beats-stronger.plain": "Attacks that ignore the defence did better than those that know it: the latter "
        "did not do what they can.",
        "no-control": "There is no undefended run of the same model: this may be the defence's doing or the attacks' "
        "weakness.",
        "control-not-reconstructed": "None of the plain attacks that were tried here reconstructed an image from the "
        "undefended model. They were too weak to conclude anything about the defence.",
        "control-not-reconstructed.undefended": "Without a defence images are expected to be reconstructed, and none "
        "was. The attacks were too weak to conclude anything, about this model or about a defence on it.",
        "control-hardly-reconstructed": "{attack} reconstructed {back} of {images} without the defence, so that none "
        "of {here} with it may be chance.",
        "control-hardly-reconstructed.rare": "{attack} reconstructed {back} of {images} without the defence, fewer "
        "than {least}, so that none of {here} with it may be the weakness of the attack.",
        "control-untrained": "The control is the defended model without its bottleneck, and is not as well trained: "
        "its loss on the clients' images is {loss} nats, that of the defended model {defended} (round {round}, after "
        "{steps} steps of training without the defence). Images may be reconstructed from it that no undefended "
        "federation would give away. A tape of a federation without the defence, audited beside this one, is a better "
        "control.",
        "too-few-victims": "None of {images} was reconstructed{worth}, which leaves room for up to {share} of all "
        "updates to give images away (95 % confidence). Up to {enough} would be small enough, which takes 60 updates "
        "with an image of their own.",
        "near-miss": "{attacks} came close on {near} of {images}: up to SSIM {ssim}, clearly beyond every guess, and "
        "less than {least:g} below what counts as reconstructed. A little more time or a better start may do.",
        "images-identified": "{attack} identified {named} of {images}: the true image is the nearest to its "
        "reconstruction among {candidates} candidates ({chance}). None was reconstructed, and whoever has the images "
        "can tell all the same which ones they are.",
        "images-identified.beyond": "{attack} identified {named} of {images}: the true image is the nearest to its "
        "reconstruction among {candidates} candidates ({chance}). Of them, {missed} {were} not reconstructed.",
        "true-images-first": "{attack} put {first} of {images} first among {candidates} candidates, more than chance "
        "does ({chance}). No single image is identified beyond doubt, and the pictures say something of whose they "
        "are.",
        "victims-left-out": "On {missing} of {images} no attack was tried, because none fits or there was no time: "
        "nothing is known about them.",
        "loss-assumed": "{assumed} A search that replays another loss than theirs looks for images that do not exist.",
        "labels-unknown": "{attack} recovered the labels itself, and whether they are right is not known.",
        "labels-unknown.granted": "{attack} used other labels than it was granted ({share} of them right where it "
        "did). A search with wrong labels looks for images that do not exist.",
        "labels-unknown.in-part": "{attack} recovered the labels only in part ({share} of them right where it did). A "
        "search with wrong labels looks for images that do not exist.",
        "buffers-withheld": "The running statistics that clients normalise by are not on the tape, so that no replay "
        "is exact. A server that holds them does better.",
        "multi-step-update": "An update sums {steps} local steps, which makes reconstruction harder whatever the "
        "defence. What is said here holds for such updates only.",
        "attack-failed": "{attack} failed or diverged on {failed} of {images} images, which count as not "
        "reconstructed.",
        "attack-left-out": "{attack} would have fitted and was left out: {why}.",
        "defence-doubted": "What was attacked may not be what was announced, so that this says little about {defence}: "
        "{doubts}.",
        "not-announced": "An honest client can show what was not announced here: {sightings}.",
        "noise-from-a-seed": "The defence's noise was drawn from the run configuration's seed, so that the run can be "
        "repeated. Whoever has that seed, as the server has, takes the noise away; the attacks here did not. Run the "
        "federation without seeded-noise to learn what the defence is worth.",
        "above-the-bound": "{attack} reconstructed {measured} of the images, at least {least} by its interval, and the "
        "differential privacy of this defence allows any attack {most}. Its noise or its clip is not what was "
        "announced, or the audit has an error.",
        "claim-refuted": "Canaries show that epsilon is at least {least} a round (95 % confidence), and {epsilon} is "
        "claimed.",
        "claim-refuted.formula": "Canaries show that epsilon is at least {least} a round (95 % confidence), and "
        "{epsilon} would follow from clip and noise. They are not what was announced.",
        "canaries-missing": "The lower bound of epsilon says little: {why}.",
        "canaries-present": "Canaries are in {updates} of {of} updates, as noise that attacks do not expect. Attack a "
        "run without canaries to learn what is reconstructed.",
        "uneven-disclosure": "Images of {group} were {way} more often than the rest: {some} of {images} against "
        "{others} of {rest} ({chance}).",
        "tape-damaged": "The tape is damaged, and what it lost was not attacked: {problem}.",
    }
)
"""Sentences by the flag's name. Behind a dot stands which of several sentences of one flag it is."""


def raised_flag(key: str, attack: str | None = None, /, **values: object) -> Found:
    """A flag with its sentence, filled with values.

    Args:
        key: Key of `FLAG_SENTENCES`.
        attack: Spec of the attack that it is about; None where it is about all.
        values: Values of its sentence.
    """
    return key.partition(".")[0], FLAG_SENTENCES[key].format(**values), attack
