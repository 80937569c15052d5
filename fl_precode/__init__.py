"""fl-precode: the plug-in that Flower apps import. Importable without flwr and ray."""

from fl_precode.bottleneck import VariationalBottleneck, sample_noise, track_kl
from fl_precode.conv_bottleneck import ConvBottleneck
from fl_precode.extend import extend, extend_conv, extend_dropout
from fl_precode.observation import Gradients, Observation, Protocol

__version__ = "0.1.0"

__all__ = [
    "ConvBottleneck",
    "Gradients",
    "Observation",
    "Protocol",
    "VariationalBottleneck",
    "extend",
    "extend_conv",
    "extend_dropout",
    "sample_noise",
    "track_kl",
]
