"""How many images and steps are behind an update, against the schedule by which clients draw."""

from __future__ import annotations

import numpy as np
import pytest

from fl_precode import Protocol
from fl_precode.data.schedule import local_batches


@pytest.mark.parametrize("examples", [1, 2, 5, 6])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "plan", [{"local_steps": n} for n in range(1, 5)] + [{"local_epochs": n} for n in (1, 2)], ids=str
)
def test_images_and_steps_are_those_of_the_schedule(examples, batch_size, plan):
    protocol = Protocol(batch_size=batch_size, **plan)
    drawn = [
        local_batches(np.arange(examples), seed=seed, partition_id=0, round=1, batch_size=batch_size, **plan)
        for seed in range(25)
    ]
    seen = {len(np.unique(np.concatenate(batches))) for batches in drawn}
    images = protocol.images_behind(examples)
    if images is None:
        assert len(seen) > 1, "it depends on the shuffling, which nobody announces"
    else:
        assert seen == {images}
        assert {len(batches) for batches in drawn} == {protocol.steps_on(images)}


def test_what_was_not_announced_is_not_known():
    assert Protocol().images_behind(5) is None
    assert Protocol(local_steps=2).images_behind(5) is None
    assert Protocol(local_epochs=2).images_behind(5) == 5
    assert Protocol(local_epochs=2).steps_on(5) is None
    assert Protocol(local_epochs=2).steps_on(1) == 2
    assert Protocol().steps_on(5) is None
