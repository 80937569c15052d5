"""Terms of the report, for readers who are not researchers."""

GLOSSARY = (
    (
        "Federated learning",
        "Several parties train one model together. Each keeps its images and sends only numbers, called an update, to "
        "a server, which combines them.",
    ),
    (
        "Gradient, update",
        "The numbers that a client sends: how each parameter of the model should change to fit the client's images. "
        "They are computed from the images, so they can give them away.",
    ),
    (
        "Honest-but-curious server",
        "A server that runs the training exactly as agreed, and looks at everything it receives. This audit takes its "
        "place. It does not consider servers that cheat, nor outsiders.",
    ),
    (
        "Reconstruction attack",
        "A calculation that turns an update back into the images behind it. First-layer inversion divides numbers of "
        "the first layer and is exact where it fits. Inverting Gradients searches for an image with the same update.",
    ),
    (
        "Reconstructed",
        "An image counts as reconstructed when the similarity of a reconstruction to the true one (SSIM) reaches the "
        "threshold stated, and is beyond the best guess. A person may recognise an image well below it, so a low "
        "score is no all-clear.",
    ),
    (
        "Best guess",
        "The most similar of the pictures that need no update. They are the average image, the average of the class, a "
        "plain one, other images of the class, and results of the same attack for other updates. A reconstruction has "
        "to close a quarter of what the guess leaves open: beside a guess of SSIM 0.8, 0.85 is needed.",
    ),
    (
        "Candidates",
        "The true image and up to 1,000 others of the same data set and class, drawn by lot. A reconstruction is "
        "compared with each of them, and the true one has a place: the nearest is the first.",
    ),
    (
        "Identified",
        "An image is identified when it is the first of its candidates and chance does not explain it. Random pictures "
        "would put as many attacked images first in less than one of 1,000 cases. Whoever has the images can tell then "
        "which one was trained on, even from a picture that resembles it little. In a verdict it counts only where all "
        "comparisons of the audit together do not explain it by chance.",
    ),
    (
        "Bound on attacks",
        "What no attack can exceed while the defence does what it promises: the more noise covers what one image or "
        "one client adds, the nearer it is to what a guess without any update reaches. It is no measurement.",
    ),
    (
        "Canary",
        "A known gradient that enters an update with probability 1/2. How well an auditor tells which were in shows an "
        "epsilon that the defence cannot be below.",
    ),
    (
        "SSIM",
        "Structural similarity of two pictures: 1 for identical ones, about 0 for those that have nothing in common.",
    ),
    (
        "PSNR",
        "Another measure of similarity, in decibels. Above about 30 dB, two pictures are hard to tell apart.",
    ),
    (
        "RMSE",
        "Root mean squared error of pixels, on the scale from 0 (black) to 1 (white). Two pictures with 0.02 look the "
        "same, one with 0.1 is noisy and plain to see, and from about 0.25 on nothing is to be seen.",
    ),
    (
        "Attack success rate and 95 % interval",
        "The share of attacked images that were reconstructed. Few images were attacked, so the true share may "
        "differ; with 95 % confidence (Clopper and Pearson's exact method) it lies in the interval. 0 of 4 still "
        "allows for 60 %.",
    ),
    (
        "PRECODE",
        "A defence: an extra part of the model that mixes random noise into what the later layers see, and so into "
        "their part of the update. Layers in front of it are reached only indirectly.",
    ),
    (
        "Adaptive attack",
        "An attack made with the defence in mind. A defence that only stops attacks that ignore it has not been "
        "tested.",
    ),
    (
        "Undefended control",
        "The same updates computed again without the defence, and attacked in the same way. If no image is "
        "reconstructed from it either, the attacks were weak, and their failure says nothing about the defence.",
    ),
    (
        "Flag",
        "A reason to distrust a low score: something about the audit that would also be so if the attacks were merely "
        "weak. docs/reference/flags.md explains each.",
    ),
    (
        "Threat model",
        "What the attacker is taken to know and to be able to do. A finding holds for this attacker, not for a "
        "stronger one.",
    ),
    (
        "Matching loss",
        "How far the update of a reconstruction is from the update that was received. Small is no success by itself: "
        "different images can have nearly the same update.",
    ),
    (
        "Rank, leakage indices",
        "How many independent equations a gradient gives for an image. As many as the image has numbers: it is "
        "determined, and only noise or rounding stand in the way. I2F predicts how large an error they lead to.",
    ),
    (
        "Labels granted or recovered",
        "Whether the attacker is told what each image shows, or has to find out from the update. Granting it is the "
        "more cautious assumption.",
    ),
    (
        "Tape",
        "The recording of everything the server received, on which this audit was made.",
    ),
)
"""Term and explanation, in the order in which they are best read."""
