"""Knowledge of the attacker: granted or withheld, kind by kind, and removed from observations where it is withheld.

Names of attackers follow the threat models of Carletti, Foggia, Mazzocca, Parrella, Vento: SoK: Gradient Inversion
Attacks in Federated Learning, USENIX Security 2025. All attackers here only listen, and all have what that paper calls
model updates and basic knowledge (model, value range and smoothness of images).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from attacker.audit.record.schema import LabelKnowledge, ThreatModel
from fl_precode.observation import Observation

LABELS: Final = "labels"
BATCH_SIZE: Final = "batch-size"
BUFFERS: Final = "buffers"
DEFENCE: Final = "defence"
LEARNING_RATE: Final = "learning-rate"
AUXILIARY_DATA: Final = "auxiliary-data"

KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        LABELS: "the true labels of each client's images",
        BATCH_SIZE: "how many images are behind an update, and in each local step",
        BUFFERS: "the running statistics of batch normalisation that the server sent and got back",
        DEFENCE: "the announced defence; its layers stay in the model, whose weights the server sends itself",
        LEARNING_RATE: "the learning rate of local training",
        AUXILIARY_DATA: "images like those of the clients",
    }
)
"""Kinds of knowledge, and what each is."""

USUAL: Final = frozenset({BATCH_SIZE, BUFFERS, DEFENCE, LEARNING_RATE})
"""What an honest-but-curious server of Flower knows, as far as it was announced."""

_TRAINING_DETAILS = frozenset({BATCH_SIZE, LEARNING_RATE, DEFENCE})


@dataclass(frozen=True)
class Knowledge:
    """The threat model of an audit.

    Attributes:
        granted: Kinds of knowledge; the others are withheld.

    Raises:
        ValueError: If there is no such kind, or no attack could make use of it.
    """

    granted: frozenset[str] = USUAL

    def __post_init__(self) -> None:
        _check(self.granted)
        if AUXILIARY_DATA in self.granted:
            raise ValueError(
                f"{AUXILIARY_DATA} cannot be granted: no attack here has a use for images of its own; the report says "
                "that it was withheld"
            )

    @classmethod
    def usual(cls, *, know: Iterable[str] = (), withhold: Iterable[str] = ()) -> Knowledge:
        """A server's usual knowledge, with some kinds more and some less.

        Raises:
            ValueError: As the class, or if a kind is both granted and withheld.

        >>> sorted(Knowledge.usual(know=["labels"], withhold=["buffers"]).granted)
        ['batch-size', 'defence', 'labels', 'learning-rate']
        """
        more, less = frozenset(know), frozenset(withhold)
        _check(more | less)
        if both := sorted(more & less):
            raise ValueError(f"expected each kind of knowledge to be granted or withheld, not both: {', '.join(both)}")
        return cls((USUAL | more) - less)

    @property
    def labels(self) -> LabelKnowledge:
        """The word of the record for what is known of labels."""
        return "granted" if LABELS in self.granted else "recovered"

    def missing(self, needs: Iterable[str]) -> list[str]:
        """Withheld kinds among those that an attack needs, sorted."""
        return sorted(set(needs) - self.granted)

    def of(self, observation: Observation, defence: str) -> Observation:
        """The observation as this attacker has it: what is withheld is gone.

        Args:
            observation: As the tape has it.
            defence: Spec of the federation's defence, ``unknown`` where nobody says.
        """
        protocol = replace(observation.protocol, defence=None if defence == "unknown" else defence)
        if DEFENCE not in self.granted:
            protocol = replace(protocol, defence=None)
        if LEARNING_RATE not in self.granted:
            protocol = replace(protocol, learning_rate=None)
        if BATCH_SIZE not in self.granted:
            protocol = replace(protocol, batch_size=None)
        return replace(
            observation,
            buffers=observation.buffers if BUFFERS in self.granted else {},
            returned=observation.returned if BUFFERS in self.granted else {},
            batch_size=observation.batch_size if BATCH_SIZE in self.granted else None,
            protocol=protocol,
        )

    def record(self) -> ThreatModel:
        """The entry of the record."""
        return ThreatModel(
            name=self.name,
            granted=[kind for kind in KINDS if kind in self.granted],
            withheld=[kind for kind in KINDS if kind not in self.granted],
        )

    @property
    def name(self) -> str:
        """The attacker in the words of the taxonomy; what goes beyond its classes is named after it.

        >>> Knowledge().name
        'Parameter-Aware Eavesdropper'
        >>> Knowledge(frozenset({"labels"})).name
        'Informed Eavesdropper, labels granted'
        """
        name = "Parameter-Aware" if self.granted & _TRAINING_DETAILS else "Informed"
        return f"{name} Eavesdropper" + (", labels granted" if LABELS in self.granted else "")


def _check(kinds: Iterable[str]) -> None:
    if unknown := sorted(set(kinds) - KINDS.keys()):
        raise ValueError(
            f"there is no kind of knowledge {', '.join(map(repr, unknown))}; expected some of {', '.join(KINDS)}"
        )
