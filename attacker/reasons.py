"""Why an attack was not made, or how it ended: stable codes for programs, and the sentences that people read.

Whoever says something gives the code and its values; how it is worded stands here and nowhere else. Codes stay as they
are, sentences may be worded better at any time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Self

PLAIN: Final = "attack-says"
"""Code of what an attack says in words of its own, as plug-ins may."""

_CODE: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        # What the model returns, and what clients minimise.
        "no-class-scores": "the model returns {what}, not class scores: its loss is not known, and no gradient of a "
        "candidate can be compared. first-layer and layerwise-inversion need no loss",
        "needs-cross-entropy": "{what} needs cross-entropy, and the clients minimise {loss!r}",
        # What was sent.
        "another-model": "the update belongs to another model: parameters {names} differ in name or shape",
        "update-not-finite": "the update is not finite in {names}",
        "only-complex-moved": "only complex parameters moved ({names}), and attacks compare real gradients",
        "complex-left-out": "the change of complex parameters was left out ({names})",
        "no-parameters": "the model has no layer with parameters",
        "nothing-moved": "the update is zero everywhere, no parameter moved: every layer is frozen, or was not sent",
        "no-direction": "the update is zero everywhere that counts: it has no direction to match",
        "no-such-layers": "{error}",
        "statistics-missing": "the model has no BatchNorm layer with running statistics",
        "statistics-missing.not-sent": "the running statistics of {names} are not in the observation",
        "statistics-not-returned": "the running statistics of {names} did not come back from the client",
        "statistics-not-returned.still": "the running statistics came back as they were sent: the client normalised by "
        "them, or sends none of its own",
        "statistics-uncounted": "how many batches are in the running statistics that came back was neither "
        "announced nor counted",
        "statistics-uncounted.before": "layer {name} keeps a mean of all batches (momentum=None), and how many "
        "there were before was not sent",
        "statistics-unexplained": "what came back for layer {name} is not what {passes} batch(es) and its "
        "momentum make of its running statistics: a variance would be below zero or not finite",
        "statistics-mixed": "the statistics that came back are a weighted mean over {passes} batches, and a replay "
        "normalises by those of one",
        "statistics-mixed.uneven": "the statistics that came back are a weighted mean over {passes} batches, and which "
        "images each of them has was not announced, or they are of unequal size",
        "statistics-needed": "{option} takes the statistics of the batch that came back: {why}",
        "statistics-fitted": "the statistics of the images differ from those that came back by {missed:.2g} standard "
        "deviations (root mean square); no gradient was used",
        "prior-has-no-reference": "batch_norm={weight:g} has nothing to compare with: {why}; batch_norm=0 does without",
        # What clients did.
        "batch-size-unknown": "the batch size is unknown, and candidates need one",
        "learning-rate-unknown": "the learning rate was not announced",
        "steps-unknown": "the images of one local step were not announced, hence the number of steps is unknown",
        "scale-needed": "{why}: distance={distance} needs the gradient's scale, cosine does not",
        "scale-needed.classifier": "{why}: a classifier without a bias that moves needs the gradient's scale",
        "scale-needed.features": "{why}: the softmax of a head needs the gradient's scale to tell features apart",
        "scale-needed.bottleneck": "the equations are those of one gradient of known scale: {why}",
        "local-adam": "local Adam divides every entry by its own size, so that the update is no sum of gradients",
        "local-adam.quotient": "local Adam divides every entry by its own size, and the quotient of two of them says "
        "nothing",
        "local-adam.replay": "a replay of local training knows SGD, the clients announced Adam",
        "several-steps": "made for the gradient of one step, the update sums {steps} local steps",
        "several-steps.unknown": "made for the gradient of one step, the update comes from {epochs} local epoch(s) of "
        "a number of steps that was not announced",
        "weight-decay": "weight decay is part of the update, and without the learning rate its share is unknown",
        "weight-decay.several-steps": "weight decay over several local steps adds weights to the update that nobody "
        "sends",
        "one-gradient": "made for local training, the update is one gradient",
        "one-gradient.surrogate": "surrogate weights lie between those sent and those received: the update is one "
        "gradient",
        "training-unknown": "not announced, and a replay of local training needs it: {what}",
        # How many images there are.
        "several-images": "made for one image: the gradient of {size} images mixes their equations",
        "several-images.first-layer": "made for one image: the first layer's gradient of {size} images has rank up to "
        "{size}",
        "several-images.bottleneck": "made for one image: the bottleneck's gradients of {size} images have rank up to "
        "{size}",
        "several-images.rank": "made for one image: the gradient of {name} has rank {rank}, one image gives rank 1",
        "several-images.bottleneck-rank": "made for one image: the gradient of {name} has rank {rank}, one image and "
        "one step give rank 1 (more images or steps, or noise and other changes on the update, raise it)",
        "too-many-images": "made for at most {most} images (most_images), the update is of {size}",
        "too-many-images.classes": "needs fewer images than classes: {images} images, {classes} classes",
        "rank-too-high": "the gradient of {name} has rank {rank}, more than the {size} images announced",
        "rank-too-high.not-that": "the gradient of {name} has rank {rank}, not {size}",
        "rank-fills-width": "the gradient of {name} has rank {rank}, all that {width} outputs allow, and the update "
        "is of {images} images: what leaves the activation is not told apart",
        "rank-fills-width.units": "the gradients of {rank} images fill what {units} units can tell: no direction is "
        "left that an image's activations have to avoid",
        "rank-unclear.noise": "the gradient of {name} has no singular value above its noise (the largest is "
        "{first:.2g}, an entry's noise {noise:.1g})",
        "rank-unclear": "the gradient of {name} has no step in its singular values up to rank {rank} ({first:.2g} to "
        "{last:.2g}): more images than that, or noise",
        # The first layer.
        "first-layer-not-linear": "the first layer {name!r} is a {kind}, the attack needs a Linear layer",
        "first-layer-did-not-move": "the {what} of the first layer {name!r} did not move, its gradient is zero "
        "everywhere: it is frozen, was not sent, or no unit of the first layer was active",
        "first-layer-weight-computed": "the first layer {name!r} computes its weight anew from other parameters",
        "first-layer-without-bias": "the first layer {name!r} has no bias: its gradient shows each image up to a "
        "factor, which the bias gradient tells",
        "first-layer-sees-no-image": "the first layer {name!r} does not see the flattened image itself",
        "first-layer-behind-dropout": "dropout ({name}) runs before the first layer, which sees the image without a "
        "part of its pixels",
        "first-layer-without-relu": "the layer {name!r} is not followed by a ReLU: gradients pass where its output is "
        "negative",
        "first-layer-without-relu.silent": "no unit of the layer {name!r} passes a gradient on random images",
        "no-second-layer": "no Linear layer runs behind {name!r}: no gradient sees what leaves its activation",
        "no-second-layer.activation": "what {second!r} sees is not what {name!r} returns after an elementwise "
        "activation alone",
        "no-second-layer.dropout": "dropout ({dropout}) runs between {name!r} and {second!r}, whose masks are not "
        "known",
        "no-token-perceptron": "block {block} of a transformer was asked for, and {blocks} pairs of Linear layers see "
        "tokens with an elementwise activation alone between them",
        "gradient-is-zero": "the gradient of {name} is zero everywhere: nothing can be divided by it",
        "gradient-is-zero.first-layer": "the gradient of {name} is zero everywhere: no unit of the first layer was "
        "active",
        "gradient-is-zero.matrix": "the gradient of {name} is zero everywhere",
        "gradient-is-zero.bottleneck": "the gradient behind {name} is zero everywhere: nothing passed the bottleneck",
        # Patches and their positions.
        "no-patch-layer": "the first layer {name!r} is a {kind}, the attack needs a Linear or convolutional layer that "
        "sees patches of the image",
        "no-patch-layer.unlike": "the layer {name!r} does not see pixels of the image times constants: a normalisation "
        "or another function stands before it",
        "no-patch-layer.groups": "the convolution {name!r} has groups, each of which sees a part of the channels alone",
        "no-positions": "no learned position embedding is added to what the patch layer {name!r} returns, number by "
        "number: positions are absent, computed, shared by several patches, or relative",
        "no-positions.changed": "what the patch layer {name!r} returns goes through another function before positions "
        "are added to it, or has none",
        "positions-did-not-move": "the position embedding {name!r} did not move: it is fixed, frozen or was not sent, "
        "and its gradient would be that of the patches",
        "positions-behind-dropout": "dropout runs between the patch layer {name!r} and the position embedding "
        "{positions!r}: the gradient of the one is not that of the other",
        "rank-below-patches": "the patch layer {name!r} returns {width} numbers for each of {patches} patches: at most "
        "{share:.0%} of what they hold is determined, below {least:.0%} (least_share)",
        "rank-below-patches.solved": "{rank} of {patches} directions of the patches stand above the noise, which is "
        "{noise:.1g} of the gradient; what they leave open is as {how} as possible",
        "several-images.patches": "made for one image: the gradient of {positions} explains all but {share:.2g} of "
        "that of {name}, and of one image would explain all of it (more images, or noise and other changes on the "
        "update)",
        "batch-size-unknown.patches": "the number of images is unknown, and {width} numbers for each of {patches} "
        "patches are too few to tell it",
        "patches-solved": "{patches} patches by the gradient of {positions}, relative residual {residual:.1e} of that "
        "of {name}",
        "pixels-not-in-patches": "{count} pixels are in no patch",
        # Heads behind a trunk.
        "trunk-was-trained": "layers before the head were trained too, from {name!r} ({kind}) on: gradient matching "
        "compares their gradients, and with any_trunk=true this attack does without",
        "no-trunk": "no layer runs before {name!r}: there is no trunk whose features could be inverted",
        "features-behind-noise": "{before!r} drops or draws values before {name!r}, whose gradient shows features that "
        "no replay gives",
        "features-share-rank": "the gradient of {name} has rank {rank}, less than its {size} images: those without a "
        "gradient, and those of one class that get the same scores, are not told apart",
        "head-not-classifier": "{name!r} is not the classifier, whose softmax alone tells the features of several "
        "images apart",
        "several-batches": "the update sums {steps} local steps, and the features of {images} images are told apart "
        "where each step is known to use all of them",
        "features-found": "what entered {name!r} explains its gradient to {residual:.1e}, and the images give these "
        "features to {distance:.1e}",
        "features-found.not": "what entered {name!r} was not found: the best of {starts} starts explains its gradient "
        "to {residual:.1e}, solutions to less than {solved:g}; the images give these features to {distance:.1e}",
        # The chain of layers.
        "chain-broken": "what reaches {after!r} is not what {before!r} returned: a shortcut, several branches, or a "
        "function that is no layer stands between them",
        "chain-broken.batch": "{name!r} does not take and return one batch of values",
        "chain-bypassed": "the gradient of {name} does not come through the layers behind it alone: a shortcut passes "
        "them by",
        "layer-shared": "{name!r} runs or is used more than once, and its gradient is a sum",
        "layer-shared.first": "the layer that the attack starts from runs {times} times",
        "layer-weight-computed": "{name!r} ({kind}) computes its weight anew from other parameters, whose gradient was "
        "sent",
        "layer-not-solvable": "{name!r} ({kind}) is no layer that is solved for its input",
        "layer-not-solvable.error": "{name!r} ({kind}): {error}",
        "layer-normalises-by-batch": "{name!r} ({kind}) normalises by the batch, which mixes values",
        "layer-keeps-largest": "{name!r} ({kind}) keeps the largest values and does not tell where they were",
        "no-linear-layer": "no Linear layer with a bias, and no Linear classifier, tells what entered it",
        "no-linear-layer.still": "no Linear layer that moved tells what entered it; {names} did not move",
        "buffers-missing": "the buffers {names} were not sent, and the layers before {name} need them",
        # Noise of the model, and the announced defence.
        "no-bottleneck": "the model has no variational bottleneck",
        "no-bottleneck.plain": "the model has no variational bottleneck, and without one this is inverting-gradients",
        "no-bottleneck.announced": "a bottleneck was announced ({defence!r}), and the model has none",
        "bottleneck-noise-unknown": "{name!r} ({kind}) adds noise that is not known; through-bottleneck enters at its "
        "encoder",
        "bottleneck-did-not-move": "{name!r} did not move: its gradient, where the attack would start, is not in the "
        "update",
        "bottleneck-did-not-move.weight": "the weight of {name} did not move: no gradient tells what entered it",
        "bottleneck-did-not-move.gradient": "the gradient of {name} is not in the update: it did not move",
        "bottleneck-is-convolutional": "{name!r} ({kind}) has an encoder that is not fully connected: it does not tell "
        "its input",
        "bottleneck-is-convolutional.positions": "{name!r} is a {kind}: its layers sum over positions, so that one "
        "image's gradient does not have rank 1",
        "bottleneck-without-bias": "{name} has no bias, whose gradient would tell the scale of what entered",
        "bottleneck-without-bias.behind": "{name} has no bias, and no Linear layer with a bias stands directly behind "
        "the bottleneck",
        "bottleneck-not-one": "made for one variational bottleneck before a Linear classifier",
        "bottleneck-not-last": "the bottleneck {name!r} is not right before the classifier {classifier!r}",
        "bottleneck-without-kl": "the bottleneck {name!r} has no KL term (beta=0), by which images are told apart",
        "bottleneck-noise-not-finite": "the noise of {name!r} is not finite: a standard deviation is zero",
        "no-outer-product": "the gradient of {name} is not its input times the gradient behind it (relative residual "
        "{residual:.2g})",
        "mixing-not-solved": "the Gram matrix of the mixing is not positive: the equations do not hold for this update",
        "mixing-not-solved.rotations": "no rotation of {tried} fulfils the equations: the best leaves {least:.2g} of "
        "them, above {solved}",
        "nothing-before-noise": "no layer with parameters runs before the noise of {name!r} is drawn",
        "no-dropout": "no dropout layer runs in the model: nothing is masked (dropout called as a function of torch is "
        "no layer and cannot be replaced)",
        "no-defence-announced": "no defence was announced: nothing to adapt to",
        "defence-leaves-all": "nothing to adapt to: {defence!r} leaves what this attack matches as it is",
        "defence-leaves-nothing": "{defence!r} leaves no parameter to match",
        "defended-layer-missing": "the layer that soteria defends, {layer!r}, is not in the model",
        # Memory, time and members.
        "out-of-memory": "the memory does not hold {what} of {images} image(s) with its gradient",
        "out-of-memory.equations": "the equations of one layer need {needed:.1f} GiB, more than the budget of "
        "{budget:.1f}",
        "time-ended": "its time ended after {steps} of {total} iterations, and the best until then is kept",
        "time-ended.attack": "its time ended before it was done, and the best until then is kept",
        "member": "{method}: {why}",
        "member.not-replayed": "{method}: its result cannot be replayed: {error}",
        # How an attack ended.
        "attack-raised": "{kind}: {error}",
        "process-died": "{how}, {times} times, perhaps for want of memory",
        "stopped-by-force": "its time in the budget ended, and it had to be stopped by force before it gave anything",
        "distance-not-finite": "the gradient distance became non-finite in all of {restarts} restart(s); the best "
        "iterate before that is kept",
        "distance-not-finite.never": "the gradient distance became non-finite in all of {restarts} restart(s); it was "
        "finite at no iterate",
        "image-not-finite": "the image is not finite",
        "image-not-finite.one": "an image is not finite",
        "image-not-finite.quotient": "the quotient is not finite",
        "images-do-not-fit": "the attack gave {got} images for an update of {expected}",
        "rank-deficient": "{name!r} has {rank} independent equations for {unknowns} unknowns",
        "saturated-left-out": "{count} saturated values behind {name!r} were left out",
        "residuals": "residuals: {residuals}",
        "columns-not-found": "found {known} of {rank} sparse columns in {samples} samples",
        "columns-not-found.doubtful": "the best {rank} of {known} sparse columns explain {share:.0%} of the ReLU "
        "pattern after {samples} samples, below {enough:.0%}",
        "inputs-not-found": "found {found} of {rank} images in {starts} starts",
        "update-not-explained": "the {count} images found leave {residual:.1%} of the gradient of {name} unexplained",
        "some-images": "{count} of {size} images have a gradient of their own",
        "labels-unknown": "the labels are unknown: none were granted, and {why}",
        "labels-tried": "the labels match best of all possible ones, which were tried; recovery said: {why}",
        "distance-chosen": "matched by {distance}",
        "prior-chosen": "total variation weighs {weight:g}, the best of {weights}",
        "noise-recovered": "the noise of {name!r} was recovered with a relative residual of {residual:.1e}",
        "noise-recovered.not": "not recovered: {why}",
        "estimate-clamped": "the estimate, clamped",
        "estimate-refined": "refined",
        "estimate-smooth": "what the equations leave open is as smooth as possible",
        "plain-matching": "plain gradient matching",
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
        "unanswerable": "No search here can answer this update in its time: it is of {images}, one iteration goes "
        "through all of them and takes about {iteration}, and the shortest search takes about {search}, {times:.0f} "
        "times the budget; what would change that is a --budget of {budget} or more for one victim, or an update of "
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
        "canaries-lost": "no number of any canary came back",
        "canaries-clipped": "each canary has a norm of {norm:g} and is clipped to {clip:g}, as an example is: it "
        "measures what one of that norm does",
        "canaries-clipped.together": "the canaries of an update together have a norm of {norm:.3g} and the clip is "
        "{clip:g}: they take the place of most of the update, and each is left with a share of the clip",
        "canaries-small": "each canary has a norm of {norm:g}, below the clip of {clip:g}: larger ones would measure "
        "more",
        "canaries-all-right": "all {guesses} guesses are right: the test can refute no larger epsilon with so few "
        "canaries, and the true one may be anything above",
        "canaries-unseen": "canaries that are in score no higher than those that are out (separation at most "
        "{most:.2g}): the app drops them, or they drown in the update",
        "canaries-outside": "canaries that should be out show as well: the secret is that of other clients, or the app "
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
        "known. A client of yours can record them (record_truth, docs/truth.md); a real server never has them.",
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
        "truth-of-other-classes": "it has a label {label}, and the model has {classes} classes, from 0 on (an image "
        "with several classes has a number behind theirs: name the loss that takes rows of zeros and ones, such as "
        "torch.nn:BCEWithLogitsLoss)",
        "truth-too-large": "it has {images} images, and no more than {most} are compared one by one",
        # What an update shows of its defence.
        "not-checked": "whether {what} shows in the update could not be checked: {kind}: {error}",
        "pruning-not-applied": "pruning of {share:.0%} was announced, and the update has fewer zeros than that",
        "clipping-not-applied": "a norm of at most {largest:g} was announced, and the update is larger",
        "rounding-not-applied": "rounding to {bits} bits was announced, and the update has more different values",
        "signs-not-applied": "signs were announced, and the update has more than one magnitude in a tensor",
        "soteria-not-applied": "soteria on {share:.0%} of a layer's columns was announced, and no layer has as many "
        "columns of zeros",
        "noise-not-applied": "noise (std {std:g}) was announced, and the update shows {least:.1g} in a Linear layer",
        "noise-not-applied.some-layers": "noise on some layers (std {std:g}) was announced, and no Linear layer shows "
        "any",
        "was-pruned": "the smallest numbers of the update are missing, in scattered places: it was pruned (as a "
        "defence, or to send less), and no such defence was announced",
        "was-rounded": "the update consists of few different values: it was rounded (as a defence, or to send less), "
        "and no such defence was announced",
        "was-rounded.adaptive": "the update consists of few different values: it was rounded (as a defence, or to send "
        "less), or this is the first step of an adaptive optimiser: {evidence}",
        "innocent-rest": "{rest}. An innocent reason shows: {reasons}",
        "open-rest": "{rest}. It may be noise, or {reasons}",
        "unexplained-rest": "{rest}. No innocent reason explains it. Excluded: {reasons}",
        "unexplained-rest.denied": "{rest}. It looks as after what was said not to be: {reasons}",
        "more-than-its-inputs": "the update {layer} is not a sum of at most {most} outer products, as many as it has "
        "inputs: what stands beyond them has a root mean square of {size:.1g}, {share:.2g} times that of the update",
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
"""Sentences by code. Behind a dot stands which of several sentences of one code it is."""


class Reason(str):
    """A sentence that knows its code, for whatever has to tell reasons apart.

    It is the sentence wherever text is wanted. What is said of a part, or handed on, keeps the codes of its parts.
    """

    __slots__ = ("_codes",)
    _codes: tuple[str, ...]

    def __new__(cls, sentence: str, *codes: str) -> Self:
        """A sentence with its codes.

        Args:
            sentence: For people.
            codes: Kebab-case, the code of the whole first, then those of what it mentions.

        Raises:
            ValueError: If a code is not kebab-case.
        """
        if wrong := [code for code in codes if not _CODE.fullmatch(code)]:
            raise ValueError(f"expected a code in kebab-case, such as batch-size-unknown, got {wrong[0]!r}")
        made = super().__new__(cls, sentence)
        made._codes = tuple(dict.fromkeys(codes))
        return made

    def __getnewargs__(self) -> tuple[str, ...]:  # type: ignore[override]
        """What a copy is made of."""
        return str(self), *self._codes

    @property
    def code(self) -> str:
        """The code of the whole; empty where nothing is said."""
        return self._codes[0] if self._codes else ""

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes, that of the whole first."""
        return self._codes


def because(key: str, /, **values: object) -> Reason:
    """The sentence of a code, filled with values; the codes of values that are reasons come with it.

    >>> found = because("scale-needed", why=because("learning-rate-unknown"), distance="l2")
    >>> found
    "the learning rate was not announced: distance=l2 needs the gradient's scale, cosine does not"
    >>> found.codes
    ('scale-needed', 'learning-rate-unknown')
    """
    inner = [code for value in values.values() if isinstance(value, Reason) for code in value.codes]
    return Reason(SENTENCES[key].format(**values), key.partition(".")[0], *inner)


def codes_of(reasons: Iterable[Reason]) -> list[str]:
    """The codes of several reasons, each once."""
    return list(dict.fromkeys(code for reason in reasons for code in reason.codes))


def raised(error: BaseException) -> Reason:
    """That an attack raised, in the words of the error."""
    return because("attack-raised", kind=type(error).__name__, error=error)


def coded(text: str) -> Reason:
    """The same with a code, that of plain words where it has none.

    >>> coded("my layer is missing").code, coded("").codes
    ('attack-says', ())
    """
    if isinstance(text, Reason):
        return text
    return Reason(text, PLAIN) if text else Reason(text)


def joined(parts: Iterable[str], between: str = "; ") -> Reason:
    """Several reasons as one, without those that are empty.

    >>> joined(["", because("estimate-refined"), "by hand"]), joined(["", because("estimate-refined"), "by hand"]).codes
    ('refined; by hand', ('estimate-refined', 'attack-says'))
    """
    reasons = [coded(part) for part in parts if part]
    return Reason(between.join(reasons), *(code for part in reasons for code in part.codes))
