"""Sentences, by code, about audits: plans, controls, truth, what updates show of their defence, leakage indices."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

AUDIT_SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        # What a plan says.
        "not-applicable": "not applicable: {why}",
        "withheld": "it needs {kinds}, which this threat model withholds",
        "withheld.from-update": "without what this threat model withholds: {why}",
        "planned-one-by-one": "its members are planned one by one; name it with --attacks to run it",
        "another-defence": "it answers {names}, and the defence is {defence}",
        "over-budget": "expected to take {expected:.0f} s, and {left:.0f} s of the budget are left",
        "over-budget.whole": "expected to take {expected:.0f} s, more than the whole budget",
        "budget-for-some": "{why}; the budget has time for {count} of {updates} updates",
        "budget-for-some.one": "{why}; the budget ends it early, on one of {updates} updates",
        "budget-ended": "{why}; the budget ended before it was begun",
        "budget-ended.after": "{why}; the budget ended after {done} of {updates} updates",
        "unanswerable": "No search can finish on this update within the budget. The update is of {images}; one "
        "iteration goes through all of them and takes about {iteration}. The shortest search takes about {search}, "
        "{times:.0f} times the budget. A --budget of {budget} or more for one victim would suffice, or an update of "
        "fewer images and steps, such as one batch.",
        "no-defence": "there is no defence",
        "no-defence.to-answer": "there is no defence to answer",
        "answers-defence": "answers {names}",
        "ignores-defence": "ignores {names}",
        "ignores-defence.compared": "ignores {names}: what the defence is compared with",
        "nothing-answers": "no attack here knows {names}, so that nothing can show that it holds",
        "nothing-answers.as-well": "no attack here knows {names} as well, so that nothing can show that it holds",
        "defence-unknown": "the defence is not known, and this attack does not ask for it",
        "searches-dropout": "the model itself has dropout ({names}), whose masks it searches with the images",
        # Why there is no undefended control.
        "bound-without-mechanism": "nothing in the defence bounds what an image adds and covers it with noise, so that "
        "it guarantees nothing",
        "bound-without-prior": "how many victims a guess reaches is not known, because their truth is not",
        "bound-without-steps": "how many steps one round has was not announced, and each is a release",
        "bound-noise-from-seed": "the server can draw the noise again and take it away",
        "bound-beside-statistics": "running statistics of {layers} layers leave the client beside what is protected",
        "canaries-unreadable": "the canaries cannot be looked for: {error}",
        "canaries-secret-unknown": "which canaries were in is not known: give the clients' secret (--canary-secret "
        "FILE), or the evaluation.json of a reference federation",
        "canaries-in-no-update": "the tape has no update of round {round}, in which the canaries enter",
        "canaries-lost": "no number of any canary was returned",
        "canaries-clipped": "each canary has a norm of {norm:g} and is clipped to {clip:g}, as an example is: it "
        "measures what one of that norm does",
        "canaries-clipped.together": "the canaries of an update together have a norm of {norm:,.6g} and the clip is "
        "{clip:g}; they take the place of most of the update, and each is left with a share of the clip",
        "canaries-small": "each canary has a norm of {norm:g}, below the clip of {clip:g}: larger ones would measure "
        "more",
        "canaries-all-right": "all {guesses} guesses are right: the test can refute no larger epsilon with so few "
        "canaries, and the true one may be anything above",
        "canaries-unseen": "canaries that are in score no higher than those that are out (separation at most "
        "{most:.2g}); the app drops them, or they drown in the update",
        "canaries-unseen.images": "images that are in score no higher than chance allows; the noise hides them, the "
        "model tells them apart by their labels alone, or the app drops them",
        "canaries-images": "the canaries are random images with random labels, whose gradients are much alike; only "
        "counted guesses bound epsilon, and canaries as gradients refute more",
        "canaries-outside": "canaries that should be out show as well; the secret is that of other clients, or the app "
        "puts in all of them; those that should be in are compared with them",
        "canaries-silent": "the canaries do not show in {count} of {of} updates ({updates}): there the app drops them",
        "control-not-wanted": "it was left out",
        "control-needs-defence": "there is no defence to leave out",
        "control-needs-defence.unknown": "the defence is not known, so it cannot be left out",
        "control-needs-truth": "the true images are not known, from which it would be computed",
        "control-needs-weights": "the weights of the defended model are not those of the undefended one and the "
        "defence's own",
        "control-needs-training": "the normalisation of the images is not known, so the clients' training cannot be "
        "repeated",
        "control-needs-training.frozen": "a part of the model is not trained or not sent, and what the clients do with "
        "it is not known",
        "control-needs-training.rate": "the clients' learning rate is not announced, so their training cannot be "
        "repeated",
        "control-needs-training.steps": "the number of the clients' local steps is not announced, so their training "
        "cannot be repeated",
        "control-needs-training.batches": "the clients make {steps} local steps and the truth tells the batch of "
        "{recorded}, so their training cannot be repeated; record_truth called with every batch tells them all",
        "control-needs-time": "repeating one client's training would take about {needed:.0f} s, and {left:.0f} s of "
        "the budget are left for it; a longer --budget gives it more",
        "control-raised": "computing it failed: {kind}: {error}",
        # Why the truth of an update is not scored.
        "truth-left-out": "The audit was asked to leave the truth out.",
        "truth-not-there": "There is no {evaluation} beside the tape and no {folder}, so the true images are not "
        "known. A client of yours can record them (record_truth, docs/how-to/truth.md); a real server never has them.",
        "truth-unreadable": "The true images are not known: {error}.",
        "truth-unreadable.update": "{error}",
        "truth-of-another-run": "{path} holds nothing that was recorded for an update of this tape; is it of another "
        "run?",
        "truth-of-another-run.attacked": "The truth in {origin} has nothing about any attacked update; is it that of "
        "another run?",
        "truth-needs-time": "The budget had no time to compare the truth in {origin} with {unchecked} of the {updates} "
        "attacked updates; whether it is theirs is not known.",
        "truth-refused": "The truth in {origin} is not that of {which} attacked {updates}, which {are} therefore not "
        "compared with it. {said}{more}",
        "truth-refused.update": "Round {round}, client {node}: {why}.",
        "truth-missing": "it has none",
        "truth-does-not-fit": "a replay of the client's work on them is no nearer to the update than one on {what}",
        "truth-of-other-number": "it has {images}, and the update is of {behind}",
        "truth-of-other-number.batches": "it has {images}, and the update is of {behind} (where clients report batches "
        'as examples, write examples = "batches" into the notes)',
        "truth-of-other-shape": "its images have the shape {shape}, and the model takes {expected}",
        "truth-of-other-classes": "it has a label {label}, and the model has {classes} classes, from 0 on; for images "
        "with several classes, name the loss that takes rows of zeros and ones, such as torch.nn:BCEWithLogitsLoss",
        "truth-too-large": "it has {images} images, and no more than {most} are compared one by one",
        # What is not said of whose images were reconstructed.
        "identification-left-out": "The audit was asked not to tell images from others (--candidates 0).",
        "identification-needs-truth": "Whose images they are cannot be said: the true images are not known.",
        "identification-needs-others": "Whose image it is cannot be said of every image: the evaluation knows no other "
        "one that it could be taken for.",
        "identification-few": "The true image is told from {others} others of its class, or more. To be first among "
        "fewer than {needed:,} may be chance. An attack has to put several images first to identify any.",
        "identification-no-features": "Images were compared by pixels only; the extra identification (pip install "
        "'fl-precode[identification]') compares features as well.",
        "identification-needs-time": "The budget had no time to compare features.",
        # What an update shows of its defence.
        "not-checked": "whether {what} shows in the update could not be checked: {kind}: {error}",
        "pruning-not-applied": "pruning of {share:.0%} was announced, and the update has fewer zeros than that",
        "clipping-not-applied": "a norm of at most {largest:g} was announced, and the update is larger",
        "rounding-not-applied": "rounding to {bits} bits was announced, and the update has more different values",
        "signs-not-applied": "signs were announced, and the update has more than one magnitude in a tensor",
        "soteria-not-applied": "soteria on {share:.0%} of a layer's columns was announced, and no layer has as many "
        "columns of zeros",
        "local-dp-not-applied": "an update of norm {clip:g} and noise of norm {noise:.3g} at most was announced, and "
        "it has norm {length:.3g}",
        "percentile-not-applied.larger": "a percentile filter that cuts to {limit:g} was announced, and the update has "
        "{largest:.3g}",
        "percentile-not-applied.zeros": "a percentile filter that zeroes {share:g} % was announced, and the update has "
        "fewer zeros than that",
        "svt-not-applied": "sparse vectors were announced, with {count} draws of numbers that get noise and are cut to "
        "{limit:g}, and the update has {small} numbers that small",
        "noise-not-applied": "noise (std {std:g}) was announced, and the update shows {least:.1g} in a Linear layer",
        "noise-not-applied.some-layers": "noise on some layers (std {std:g}) was announced, and no Linear layer shows "
        "any",
        "was-pruned": "the smallest numbers of the update are missing, in scattered places; it was pruned (as a "
        "defence, or to send less), and no such defence was announced",
        "was-rounded": "the update consists of few different values: it was rounded (as a defence, or to send less), "
        "and no such defence was announced",
        "was-rounded.adaptive": "the update consists of few different values; it was rounded (as a defence, or to send "
        "less), or this is the first step of an adaptive optimiser: {evidence}",
        "innocent-rest": "{rest}. An innocent reason shows: {reasons}",
        "open-rest": "{rest}. It may be noise, or {reasons}",
        "unexplained-rest": "{rest}. No innocent reason explains it. Excluded: {reasons}",
        "unexplained-rest.denied": "{rest}. It looks as after what was said not to be: {reasons}",
        "more-than-its-inputs": "the update {layer} is not a sum of at most {most} outer products, as many as it has "
        "inputs; the rest has a root mean square of {size:.1g}, {share:.2g} times that of the update",
        # What leakage indices lack.
        "leakage-too-large": "too large for an audit, with {unknowns:,} numbers in an image and {numbers:,} in an "
        "update; fl-precode analyse takes more time for it",
        "leakage-needs-truth": "the true images are not known, and the indices are about them",
        "leakage-needs-time": "not computed: the budget had no time left for it; a longer --budget or fl-precode "
        "analyse has",
        "leakage-raised": "{what} could not be analysed: {kind}: {error}",
        "leakage-of-all": "Computed for {images} images",
        "leakage-of-some": "Computed for {count} of {images} attacked images",
        "gradient-vanishes": "{count} of them have a gradient of zero or infinity and are left out",
        "noise-fitted": "for an attacker who fits the noise that the model draws along with the image",
        "each-image-alone": "each image by itself, as if nothing else were in its update",
        "one-gradient-for-all": "one gradient at the weights that were sent, whatever steps followed",
        "no-defence-on-gradient": "no known defence changes the gradient, so that no error is predicted from one",
        "too-few-to-correlate": "fewer than {least} different errors were predicted and measured to be compared",
        "noise-attack-needs-time": "searches would take longer than {seconds:.3g} s",
        # Why an update tells no labels by itself.
        "labels-unread": "{error}",
        "labels-unread.bias": "the classifier has no bias, or the images behind the update are not known",
        "labels-unread.optimiser": "the optimiser weighs its steps unequally",
    }
)
"""Sentences by code, as in `attacker.reasons.SENTENCES`."""
