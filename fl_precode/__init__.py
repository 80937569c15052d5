"""fl-precode: the plug-in that Flower apps import. Importable without flwr and ray."""

from fl_precode.bottleneck import VariationalBottleneck, sample_noise, track_kl
from fl_precode.extend import extend
from fl_precode.observation import Gradients, Observation, Protocol

__version__ = "0.1.0"

__all__ = ["Gradients", "Observation", "Protocol", "VariationalBottleneck", "extend", "sample_noise", "track_kl"]
