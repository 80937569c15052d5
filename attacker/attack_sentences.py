"""Sentences, by code, about attacks: what keeps one from an update, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ATTACK_SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        # What the model returns, and what clients minimise.
        "no-class-scores": "the model returns {what}, not class scores. Its loss is not known, and no gradient of a "
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
        "statistics-not-returned": "the running statistics of {names} were not returned by the client",
        "statistics-not-returned.still": "the client returned the running statistics as they were sent: it normalised "
        "by them, or sends none of its own",
        "statistics-uncounted": "how many batches the returned running statistics cover was neither "
        "announced nor counted",
        "statistics-uncounted.before": "layer {name} keeps a mean of all batches (momentum=None), and how many "
        "there were before was not sent",
        "statistics-unexplained": "the returned statistics of layer {name} do not follow from {passes} batch(es) and "
        "its momentum: a variance would be below zero or not finite",
        "statistics-mixed": "the returned statistics are a weighted mean over {passes} batches, and a replay "
        "normalises by those of one",
        "statistics-mixed.uneven": "the returned statistics are a weighted mean over {passes} batches, whose images "
        "were not announced, or whose sizes differ",
        "statistics-needed": "{option} takes the returned statistics of the batch: {why}",
        "statistics-fitted": "the statistics of the images differ from the returned ones by {missed:.2g} standard "
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
        "normalised-by-batch": "the clients normalise by the batch: what leaves a convolution then depends on what "
        "entered it for all images",
        "layers-draw": "the model has layers that draw noise, and what is behind a map must follow from it",
        "no-convolutions": "the model has no convolution",
        "convolutions-not-fed": "no convolution of the model is fed by a ReLU or a max pooling",
        "convolution-tells-no-map": "the model has no convolution of stride 1, one group and a kernel of 2 x 2 or more "
        "behind a ReLU or a pooling",
        "convolution-too-narrow": "no convolution has as many outputs as positions: here {positions} positions of all "
        "images, {outputs} outputs and patches of {numbers} numbers",
        "span-hidden": "the gradient of {name} has no rank of {rank}: noise hides it, or fewer outputs had a gradient",
        "span-not-settled": "the eigenvectors of {name} did not settle",
        "span-ambiguous": "several maps have patches in the row space of {name} (expected error {error:.1g})",
        "maps-not-told-apart": "the zeros of the maps told {found} of {images} images apart",
        "maps-negative": "the maps in the row space fall below zero, which no ReLU returns",
        "maps-unexplained": "the layers behind {name} do not give its gradient at any size of the map (residual "
        "{residual:.1g})",
        "maps-bypassed": "every map that a row space tells is bypassed by a shortcut",
        "map-inverted": "the map that enters {name} was known (residual {residual:.1e}); the images leave "
        "{distance:.1e} of its squared distance from grey",
        # How many images there are.
        "several-images": "made for one image: the gradient of {size} images mixes their equations",
        "several-images.first-layer": "made for one image: the first layer's gradient of {size} images has rank up to "
        "{size}",
        "several-images.bottleneck": "made for one image: the bottleneck's gradients of {size} images have rank up to "
        "{size}",
        "several-images.rank": "made for one image: the gradient of {name} has rank {rank}, one image gives rank 1",
        "several-images.bottleneck-rank": "made for one image: the gradient of {name} has rank {rank}; one image and "
        "one step give rank 1, which more images, more steps or noise on the update raise",
        "too-many-images": "made for at most {most} images (most_images), the update is of {size}",
        "too-many-images.classes": "needs fewer images than classes: {images} images, {classes} classes",
        "rank-too-high": "the gradient of {name} has rank {rank}, more than the {size} images announced",
        "rank-too-high.not-that": "the gradient of {name} has rank {rank}, not {size}",
        "rank-too-high.tokens": "the gradient of {name} has rank {rank}, more than the {tokens} tokens of the {size} "
        "images announced",
        "rank-fills-width": "the gradient of {name} has rank {rank}, all that {width} outputs allow; the outputs of "
        "the activation for {images} images cannot be told apart",
        "rank-fills-width.units": "the gradients of {rank} images fill what {units} units can tell: no direction is "
        "left that an image's activations have to avoid",
        "rank-unclear.noise": "the gradient of {name} has no singular value above its noise (the largest is "
        "{first:.2g}, an entry's noise {noise:.1g})",
        "rank-unclear": "the gradient of {name} has no step in its singular values up to rank {rank} ({first:.2g} to "
        "{last:.2g}): more images than that, or noise",
        # The first layer.
        "first-layer-not-linear": "the first layer {name!r} is a {kind}, the attack needs a Linear layer",
        "first-layer-did-not-move": "the {what} of the first layer {name!r} did not move, its gradient is zero "
        "everywhere; it is frozen, was not sent, no unit of the first layer was active, or a later layer is zero, as "
        "some heads are before their first step",
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
        "second-layer-behind-dropout": "dropout ({dropout}) runs between {name!r} and {second!r}, whose masks are not "
        "known",
        "no-token-perceptron": "block {block} of a transformer was asked for, and {blocks} pairs of Linear layers see "
        "tokens with an elementwise activation alone between them",
        "token-block-unlike": "the input of {name!r} is no LayerNorm of tokens that another LayerNorm saw before; the "
        "block does not normalise before its attention and before its perceptron",
        "token-block-unlike.attention": "no softmax attention over all tokens of an image is added to the tokens "
        "behind {name!r}, but windows, relative positions or another mixing",
        "token-block-unlike.sum": "what {name!r} returns is not added to the tokens times constants",
        "token-block-unlike.embedding": "the tokens of the first block that moves are no sums of constants and of what "
        "the patch layer {name!r} returns, one patch each",
        "token-block-random": "training draws something anew up to {name!r} (dropout, stochastic depth), so that "
        "tokens went another way than a pass of the model shows",
        "token-block-frozen": "the layer {name!r} of the first block did not move, and its gradient tells tokens apart",
        "tokens-fill-width": "{size} image(s) have {tokens} tokens, and a width of {width} tells at most {most} apart: "
        "{images} image(s) of {each} tokens",
        "patches-fill-width": "the patches of the batch fill the width of {width} of the patch layer {name!r}: no "
        "direction is left that tells their places",
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
        "no-positions": "no learned position embedding is added to the output of the patch layer {name!r}, number by "
        "number; positions are absent, computed, shared by several patches, or relative",
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
        "that of {name}; that of one image, without noise or other changes, would explain all of it",
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
        "features-share-rank": "the gradient of {name} has rank {rank}, less than its {size} images; images without a "
        "gradient, or of one class with equal scores, are not told apart",
        "head-not-classifier": "{name!r} is not the classifier, whose softmax tells the features of several images "
        "apart, and the layer behind it does not: {why}",
        "several-batches": "the update sums {steps} local steps, and the features of {images} images are told apart "
        "where each step is known to use all of them",
        "features-found": "what entered {name!r} explains its gradient to {residual:.1e}, and the images give these "
        "features to {distance:.1e}",
        "features-found.not": "what entered {name!r} was not found: the best of {starts} starts explains its gradient "
        "to {residual:.1e}, and rounding explains {solved:.1e}; the images give these features to {distance:.1e}",
        "features-uncertain": "the features of {count} of {size} images are known to {known:.0%}: the rounding of the "
        "update leaves a standard error of {worst:.1e} to the worst",
        # Low-rank branches.
        "no-branch": "no frozen Linear layer has a trained low-rank branch beside it",
        "branch-drops": "{dropout!r} drops values before {name!r}, so that its gradient and that of {other!r} are of "
        "different vectors",
        "branch-is-zero": "{name!r} is zero, as before the first round, and so is the gradient of the layer before it; "
        "the input is known by its {rank} products with that layer alone",
        "branch-rank-cut": "{vectors} vectors entered {name!r}, and a branch of rank {rank} determines the gradient of "
        "no more than that",
        "branches-solved": "the gradients of {names} follow from those of low-rank branches to {error:.1e}",
        "branches-not-enough": "with the gradients of frozen layers by their branches no attack fits: {why}",
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
        "fewer-images": "{got} of {expected} images were found, and the others count as not reconstructed",
        "rank-deficient": "{name!r} has {rank} independent equations for {unknowns} unknowns",
        "saturated-left-out": "{count} saturated values behind {name!r} were left out",
        "residuals": "residuals: {residuals}",
        "columns-not-found": "found {known} of {rank} sparse columns in {samples} samples",
        "columns-not-found.doubtful": "the best {rank} of {known} sparse columns explain {share:.0%} of the ReLU "
        "pattern after {samples} samples, below {enough:.0%}",
        "inputs-not-found": "found {found} of {rank} images in {starts} starts",
        "inputs-not-found.tokens": "found {found} of {rank} tokens in {starts} starts",
        "steps-half-way": "{steps} local steps were taken as one gradient at the weights half way",
        "tokens-to-images": "{found} tokens give {count} of {size} images, relative residuals: {residuals}",
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
    }
)
"""Sentences by code, as in `attacker.reasons.SENTENCES`."""
