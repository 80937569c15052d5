"""The scene of one federation: its updates with the truth, their candidates, and every result scored against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from attacker.attacks.base import Reconstruction
from attacker.audit.execution.attack_job import Found
from attacker.audit.execution.files import Pictures
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.record.schema import FederationSummary, ImageResult, VictimImage
from attacker.audit.scoring.identification import LineUp, Pools, what_lacks
from attacker.audit.scoring.placebos import same_images, updates_of_others
from attacker.audit.scoring.similarity import Placebos, UpdateEvaluation, as_images, victim_ids
from attacker.audit.settings import AuditSettings
from attacker.reasons import Reason
from fl_precode.models.input_spec import InputSpec

Shuffled = Mapping[tuple[str, str, str], Sequence[Reconstruction]]
"""What attacks made of shuffled updates, by federation, attack and file of the update."""


class Scene:
    """One federation with the truth of all its updates.

    Args:
        federation: The federation.
        entry: Entry of the record.
        inputs: Input domain, with the scale on which images are compared.
        results: What was made of its updates.
        shuffled: What quick attacks made of shuffled updates.
        pictures: Where pictures are kept.
        pools: Candidates, see `pools_of`; None where images are told from none.
    """

    def __init__(
        self,
        federation: AuditedFederation,
        entry: FederationSummary,
        inputs: InputSpec,
        results: Found,
        shuffled: Shuffled,
        pictures: Pictures,
        pools: Pools | None,
    ) -> None:
        self._own, self._entry, self._inputs, self._pictures = federation, entry, inputs, pictures
        self._found, self._shuffled = results, shuffled
        self._truths = [federation.truth(update) for update in federation.entries]
        self._same = same_images([None if truth is None else truth.images for truth in self._truths])
        self._others = updates_of_others(self._same)
        self._first: dict[int, str] = {}
        self._pools = pools
        self._line_ups = [None if truth is None or pools is None else LineUp(pools, truth) for truth in self._truths]

    def scored(
        self, runs: Sequence[Sequence[tuple[str, Reconstruction | None]]]
    ) -> tuple[list[VictimImage], list[ImageResult]]:
        """The attacked images, and a row for each image and attack.

        Args:
            runs: For each update, in order, the attacks with what they made of it; None for one that was not tried.
        """
        images: list[VictimImage] = []
        rows: list[ImageResult] = []
        for place, attacks in enumerate(runs):
            evaluation = self.evaluation(place)
            images += evaluation.victims()
            for number, (spec, result) in enumerate(attacks, start=1):
                if result is not None:
                    granted = self._own.targets[place].labels is not None
                    placebos = self.placebos(place, spec)
                    rows += evaluation.results(spec, result, f"a{number}", placebos, labels_granted=granted)
        return images, rows

    def evaluation(self, place: int) -> UpdateEvaluation:
        """Evaluation of an update; to be asked for in order."""
        source, truth = self._own.subject.truth, self._truths[place]
        ids = victim_ids(self._own.id, place + 1, len(self._same[place]))
        first = [name if of is None else self._first.setdefault(of, name)
                 for name, of in zip(ids, self._same[place], strict=True)]  # fmt: skip
        return UpdateEvaluation(
            federation=self._entry,
            number=place + 1,
            observation=self._own.subject.tape.load(self._own.entries[place]),
            inputs=self._inputs,
            truth=truth,
            guesses=None if source is None else source.guesses,
            client=None if source is None or truth is None else source.client_images(self._own.entries[place]),
            class_names=() if source is None else source.class_names,
            pictures=self._pictures,
            same_as=[]
            if truth is None
            else [None if of == victim_id else of for victim_id, of in zip(ids, first, strict=True)],
            images=self._images_found(place),
            line_up=self._line_ups[place],
        )

    def what_identification_lacks(self, candidates: int) -> Reason:
        """Why nothing, or not everything, is said of whose images were reconstructed; to be asked for at the end.

        Args:
            candidates: That were asked for.
        """
        late = self._pools is not None and self._pools.late
        return what_lacks([line_up for line_up in self._line_ups if line_up is not None], candidates, late=late)

    def _images_found(self, place: int) -> int:
        """The most images that an attack found behind an update."""
        file = self._own.entries[place].file
        made = (
            result for (federation, _, of), result in self._found.items() if (federation, of) == (self._own.id, file)
        )
        return max((len(result.inputs) for result in made if result.inputs is not None), default=1)

    def placebos(self, place: int, spec: str) -> Placebos:
        """What an attack made of updates that hold none of the images of this one."""
        entries = self._own.entries
        others = [self._found.get((self._own.id, spec, entries[other].file)) for other in self._others[place]]
        shuffled = self._shuffled.get((self._own.id, spec, entries[place].file), ())
        return Placebos(others=self._images(others), shuffled=self._images(shuffled))

    def _images(self, made: Sequence[Reconstruction | None]) -> list[Tensor]:
        images = (
            None if reconstruction is None else as_images(reconstruction, self._inputs) for reconstruction in made
        )
        return [batch for batch in images if batch is not None]


def pools_of(
    federation: AuditedFederation, known: dict[str, Pools], settings: AuditSettings, *, by_features: bool = True
) -> Pools | None:
    """Candidates of a federation's images, which its control shares; None where none are wanted or known.

    Args:
        federation: The federation.
        known: Those that were drawn before, by federation; these are added.
        settings: Settings of the audit.
        by_features: Whether features are compared as well as pixels.
    """
    source, origin = federation.subject.truth, federation.control_of or federation.id
    if source is None or not settings.candidates:
        return None
    if origin not in known:
        truths = [truth for update in federation.entries if (truth := federation.truth(update)) is not None]
        labels = {int(label) for truth in truths for label in truth.labels}
        known[origin] = Pools(
            source, labels, settings.candidates, settings.seed, by_features=by_features, beside=[*known.values()]
        )
    return known[origin]
