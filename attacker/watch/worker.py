"""The process that attacks for a watch: lowest priority, one thread, events as lines on standard output.

``python -m attacker.watch.worker TAPE SEED SPEC...``. It ends when nobody reads any more.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from attacker.watch.events import Event, to_line

_LOWEST = 19


def main(arguments: Sequence[str]) -> None:
    """Follow the tape until the reader is gone."""
    os.nice(_LOWEST)
    # Before torch is loaded: its thread pools are made then.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from attacker.watch.follow import follow

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    tape, seed, *attacks = arguments

    def tell(event: Event) -> None:
        sys.stdout.write(to_line(event) + "\n")
        sys.stdout.flush()

    with suppress(BrokenPipeError, KeyboardInterrupt):
        follow(Path(tape), tell, attacks=attacks, seed=int(seed))


if __name__ == "__main__":
    main(sys.argv[1:])
