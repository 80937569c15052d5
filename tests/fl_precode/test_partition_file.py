"""A client with its own file trains exactly as one that holds the whole set."""

from __future__ import annotations

import stat

import numpy as np
import pytest
import torch

from fl_precode.data import DataUnavailableError, write_partition
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import client_part, prepare


@pytest.fixture
def settings():
    return Settings(dataset="digits", num_clients=3, batch_size=4, partition="dirichlet")


def test_a_partition_gives_the_same_batches_as_the_whole_set(settings, tmp_path):
    federation = prepare(settings)
    for partition_id, indices in enumerate(federation.partitions):
        file = tmp_path / f"{partition_id}.npz"
        write_partition(file, federation.data, indices)
        own, whole = client_part(settings, partition_id, str(file)), client_part(settings, partition_id)
        assert len(own.train) == len(indices) < len(whole.train)
        assert own.inputs == whole.inputs
        for server_round in (1, 2):
            batches = zip(own.batches(server_round), whole.batches(server_round), strict=True)
            for mine, theirs in batches:
                for ours, expected in zip(own.train.batch(mine), whole.train.batch(theirs), strict=True):
                    assert torch.equal(ours, expected)
        for ours, expected in zip(own.model().parameters(), whole.model().parameters(), strict=True):
            assert torch.equal(ours, expected)


def test_only_the_owner_may_read_it(settings, tmp_path):
    federation = prepare(settings)
    write_partition(tmp_path / "own.npz", federation.data, federation.partitions[0])
    assert stat.S_IMODE((tmp_path / "own.npz").stat().st_mode) == 0o600


def test_a_missing_file_and_another_file_are_named(settings, tmp_path):
    with pytest.raises(DataUnavailableError, match="data-path"):
        client_part(settings, 0, str(tmp_path / "none.npz"))
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz is not a client's partition.*images"):
        client_part(settings, 0, str(tmp_path / "other.npz"))
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match="is not a client's partition"):
        client_part(settings, 0, str(tmp_path / "text.npz"))
