"""Published settings of gradient matching by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.gradient_matching.parts import (
    L2,
    LBFGS,
    Adam,
    BNStatistics,
    GroupConsistency,
    ImageNorm,
    Restarts,
    TotalVariation,
)
from attacker.optim.first_order import SoftSign
from attacker.optim.initialisation import Patterned

_DLG = GradientMatching(
    distance=L2(converged_below=1e-6), optimiser=LBFGS(iterations=6_000, history=100), priors=(), method="idlg"
)

PRESETS: Mapping[str, GradientMatching] = MappingProxyType(
    {
        # Command line defaults of the reference code of Geiping et al.
        "inverting-gradients": GradientMatching(
            optimiser=Adam(iterations=24_000, learning_rate=0.1), priors=[TotalVariation(1e-4)]
        ),
        # The notebook of PRECODE (Scheliga et al., WACV 2022).
        "precode-paper": GradientMatching(
            optimiser=Adam(iterations=7_000, learning_rate=0.01), priors=[TotalVariation(1e-6)]
        ),
        # Experiments in the reference code of Geiping et al.: an untrained ConvNet, a trained ResNet on ImageNet, and a
        # batch of 100 images of CIFAR-100.
        "untrained-convnet": GradientMatching(optimiser=Adam(iterations=4_000), priors=[TotalVariation(1e-6)]),
        "imagenet": GradientMatching(priors=[TotalVariation(1e-1)], restarts=Restarts(8)),
        "cifar100-batch": GradientMatching(priors=[TotalVariation(1e-2)], restarts=Restarts(4)),
        # After the settings named "modern" of breaching (Geiping et al.), whose total variation is isotropic and over
        # colour differences too, whose soft sign hardens over time, and which adds a prior on features: not here.
        "modern": GradientMatching(
            optimiser=Adam(signed=SoftSign(1.0), schedule="cosine", warmup=50),
            priors=[TotalVariation(0.1)],
            init=Patterned(4),
        ),
        # Yin et al. (CVPR 2021): weights relative to that of the gradient distance, 1e-3. Their distance and image norm
        # sum norms, ours are squares, so that the balance of the terms is not theirs: on trained networks, where
        # gradients are large, the priors weigh little.
        "see-through-gradients": GradientMatching(
            distance=L2(converged_below=1e-6),
            optimiser=Adam(iterations=20_000, signed=False, schedule="cosine", warmup=50, langevin=0.2),
            priors=[
                TotalVariation(1e-1),
                ImageNorm(1e-3),
                GroupConsistency(10.0, registered=True),
                BNStatistics(100.0),
            ],
            restarts=Restarts(8),
            method="see-through-gradients",
        ),
        # Inverting Gradients with what the returned running statistics tell of the batch (Huang et al., NeurIPS 2021).
        "statistics-matching": GradientMatching(
            priors=[TotalVariation(1e-4), BNStatistics(1.0, of="returned")], method="statistics-matching"
        ),
        # Zhu, Liu, Han (NeurIPS 2019) and Zhao, Mopuri, Bilen (arXiv 2001.02610), whose code stops below 1e-6. Their
        # 300 steps of torch's L-BFGS are 20 evaluations each. A shorter history needs more of them: on LeNet with
        # uniform weights (image 0 to 3) 30 steps reach 21 dB in 1,500 evaluations, 100 steps 29 dB; in equal CPU time,
        # 2,700 of the shorter kind, both come equally far. Where a model costs more than LeNet, the longer one pays.
        "dlg": replace(_DLG, optimiser=LBFGS(iterations=6_000, history=100, joint_labels=True), method="dlg"),
        "idlg": _DLG,
    }
)
"""Published settings by name."""
