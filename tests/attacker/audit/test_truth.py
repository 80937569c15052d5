from __future__ import annotations

import json
import re
from typing import NamedTuple

import pytest
import torch

from attacker.audit.truth.federation import FederationTruth
from fl_precode.federation.federation import partitioned
from tests.attacker.taped_federation import Taped, tape_federation


class Place(NamedTuple):
    """Where an update is, as a tape's entry says it."""

    node: str
    round: int


@pytest.fixture(scope="module")
def taped(tmp_path_factory) -> Taped:
    return tape_federation(tmp_path_factory.mktemp("run"), batch_size=3, clients=2, rounds=2)


@pytest.fixture(scope="module")
def source(taped) -> FederationTruth:
    return FederationTruth.read(taped.folder / "evaluation.json")


def test_recomputes_exactly_the_batches_that_the_clients_used(taped, source):
    assert len(taped.used) == 4
    for (node, server_round), (images, labels) in taped.used.items():
        truth = source.truth(Place(node, server_round))
        assert torch.equal(truth.images, images)
        assert torch.equal(truth.labels, labels)
    assert len({images.sum().item() for images, _ in taped.used.values()}) == 4


def test_the_model_is_not_made_to_know_the_images(taped, monkeypatch):
    partitioned.cache_clear()
    monkeypatch.setattr("fl_precode.federation.federation.federation_model", lambda *_: pytest.fail("made a model"))
    truth = FederationTruth.read(taped.folder / "evaluation.json")
    assert truth.knows(Place(*next(iter(taped.used))))


def test_the_mean_image_is_that_of_the_training_images(source):
    mean = source.mean_image
    assert mean.shape == (1, 8, 8)
    assert 0 <= float(mean.min()) < float(mean.max()) <= 1


def test_unknown_nodes_and_rounds_are_named(taped, source):
    node = next(iter(taped.used))[0]
    with pytest.raises(ValueError, match=r"node 'nobody' is not in .*another run"):
        source.truth(Place("nobody", 1))
    with pytest.raises(ValueError, match="round 9 is not in .* rounds 1 to 2"):
        source.truth(Place(node, 9))
    assert source.knows(Place(node, 1))
    assert not source.knows(Place("nobody", 1))


def test_a_tape_of_another_run_is_refused(taped, source):
    nodes = {node for node, _ in taped.used}
    source.check_tape({"model": "mlp", "batch-size": 3, "their-own-key": 1}, nodes)
    with pytest.raises(ValueError, match=r"another run than the tape: batch-size is 7 on the tape and 3 in the file"):
        source.check_tape({"batch-size": 7}, nodes)
    with pytest.raises(ValueError, match="none of the tape's nodes is in it"):
        source.check_tape({}, {"1", "2"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "fl-precode-result"}, "is not an evaluation file"),
        ({"version": 2}, "has version 2, and this fl-precode reads version 1"),
        ({"settings": 3}, "was altered: expected 'settings' and 'nodes'"),
        ({"nodes": {"7": 99}}, "number from 0 to 1, got 99 for node '7'"),
        ({"nodes": {"7": "x"}}, "number from 0 to 1, got 'x' for node '7'"),
        ({"settings": {"modle": "mlp"}}, "cannot be recomputed from its settings.*did you mean 'model'"),
    ],
)
def test_foreign_and_altered_files_are_refused(taped, tmp_path, change, message):
    content = json.loads((taped.folder / "evaluation.json").read_text()) | change
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        FederationTruth.read(tmp_path / "evaluation.json")


def test_a_truncated_file_is_named(taped, tmp_path):
    (tmp_path / "e.json").write_bytes((taped.folder / "evaluation.json").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"e\.json is not complete JSON"):
        FederationTruth.read(tmp_path / "e.json")
    with pytest.raises(FileNotFoundError):
        FederationTruth.read(tmp_path / "absent.json")
