"""Published settings of gradient matching by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from attacker.attacks.gradient_matching import GradientMatching

_DLG = GradientMatching(
    iterations=6_000,
    learning_rate=1.0,
    total_variation=0.0,
    signed=False,
    boxed=False,
    converged_below=1e-6,
    distance="l2",
    optimiser="l-bfgs",
    history=100,
)

PRESETS: Mapping[str, GradientMatching] = MappingProxyType(
    {
        # Command line defaults of the reference code of Geiping et al.
        "inverting-gradients": GradientMatching(iterations=24_000, learning_rate=0.1, total_variation=1e-4),
        # The notebook of PRECODE (Scheliga et al., WACV 2022).
        "precode-paper": GradientMatching(iterations=7_000, learning_rate=0.01, total_variation=1e-6),
        # Zhu, Liu, Han (NeurIPS 2019) and Zhao, Mopuri, Bilen (arXiv 2001.02610), whose code stops below 1e-6. Their
        # 300 steps of torch's L-BFGS are 20 evaluations each.
        "dlg": replace(_DLG, labels="joint"),
        "idlg": _DLG,
    }
)
"""Published settings by name."""
