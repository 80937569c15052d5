"""fl-precode: does my Flower federation leak its training images, and does a defence stop it?

``import fl_precode as flp`` is the only import that an app needs. Everything below is loaded when it is first used: a
client that calls `extend` alone needs torch and numpy, and neither Flower nor what an audit needs.

In the clients' training code:

    extend, extend_conv, extend_dropout    a defended copy of a model: PRECODE's bottleneck, its convolutional form,
                                           dropout
    track_kl                               the penalty of the bottlenecks in it, for the loss
    flower.record_truth                    keeps a client's true images, for the evaluation alone
    flower.leakage_guard_mod               around a client: withholds an update from which its images are reconstructed

On the server:

    Interceptor                            around any strategy: copies what the server receives onto a tape

Afterwards:

    Tape                                   a tape: its updates, as `Observation` objects
    audit                                  attacks a few updates, compares, judges; gives a record with its verdicts
    TapeSource                             a tape with what it does not say, for audits of several
    Victim, InputSpec                      what an attacker knows: the model with its loss, and the images' shape
    Observation, Protocol, Gradients       what a server has of one client in one round

Shelves, each with a page of its own (``help(flp.attacks)``):

    attacks     attacks as objects, and how to add one
    labels      labels from gradients
    leakage     what an update determines, before any attack
    metrics     SSIM, PSNR and how images are matched
    report      records, verdicts and pages
    defences    defences by name, and how to add one
    flower      what touches Flower: Interceptor, ListeningGrid, listening, mods of clients, record_truth
    tape        tapes: reading and writing
    privacy     what differential privacy a defence guarantees, whatever it claims

Less often: VariationalBottleneck, ConvBottleneck, sample_noise. What is not named here is private and may change, above
all the package ``attacker``. The command line is ``fl-precode``.

>>> import torch, fl_precode as flp
>>> from torch import nn
>>> plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
>>> model = flp.extend(plain, example_input=torch.zeros(1, 1, 8, 8))
>>> with flp.track_kl() as kl:
...     logits = model(torch.rand(4, 1, 8, 8))
>>> (nn.functional.cross_entropy(logits, torch.arange(4)) + kl.penalty(logits)).requires_grad
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacker.victim import Victim
    from fl_precode import attacks, defences, flower, labels, leakage, metrics, privacy, report, tape
    from fl_precode.auditing import TapeSource, audit
    from fl_precode.defences.cvb import ConvBottleneck
    from fl_precode.defences.extend import extend, extend_conv, extend_dropout
    from fl_precode.defences.precode import VariationalBottleneck, sample_noise, track_kl
    from fl_precode.flower import Interceptor
    from fl_precode.models.input_spec import InputSpec
    from fl_precode.observation import Gradients, Observation, Protocol
    from fl_precode.tape import Tape

__version__ = "0.2.0"

__all__ = [
    "ConvBottleneck",
    "Gradients",
    "InputSpec",
    "Interceptor",
    "Observation",
    "Protocol",
    "Tape",
    "TapeSource",
    "VariationalBottleneck",
    "Victim",
    "attacks",
    "audit",
    "defences",
    "extend",
    "extend_conv",
    "extend_dropout",
    "flower",
    "labels",
    "leakage",
    "metrics",
    "privacy",
    "report",
    "sample_noise",
    "tape",
    "track_kl",
]

_PLACES = {
    "ConvBottleneck": "fl_precode.defences.cvb",
    "Gradients": "fl_precode.observation",
    "InputSpec": "fl_precode.models.input_spec",
    "Interceptor": "fl_precode.flower",
    "Observation": "fl_precode.observation",
    "Protocol": "fl_precode.observation",
    "Tape": "fl_precode.tape",
    "TapeSource": "fl_precode.auditing",
    "VariationalBottleneck": "fl_precode.defences.precode",
    "Victim": "attacker.victim",
    "audit": "fl_precode.auditing",
    "extend": "fl_precode.defences.extend",
    "extend_conv": "fl_precode.defences.extend",
    "extend_dropout": "fl_precode.defences.extend",
    "sample_noise": "fl_precode.defences.precode",
    "track_kl": "fl_precode.defences.precode",
}
"""Where each name comes from; the other ones are modules."""


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): a client must not load what an audit needs, nor ``--help`` what torch does."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    if name not in _PLACES:
        return import_module(f"{__name__}.{name}")
    found = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
