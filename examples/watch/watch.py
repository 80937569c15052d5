"""Watch a federation as a curious server would: audit every new round of its tape while the training goes on.

``python watch.py TAPE`` waits for the tape, audits the newest round with attacks that are quick, and does so again when
a newer round has come. It uses the installed command ``fl-precode`` and reads the tape only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from fl_precode.tape import Tape, TapeError

QUICK = "first-layer,inverting-gradients:iterations=200,restarts=1"


def newest_round(tape: Path) -> int:
    """The newest round that has an update on the tape; 0 while there is none."""
    try:
        return max((entry.round for entry in Tape(tape).entries), default=0)
    except TapeError:  # the federation has not begun
        return 0


def audit(tape: Path, round_number: int, out: Path, attacks: str) -> int:
    """Audit the updates of one round at the lowest priority; the exit code of the command."""
    command = ["nice", "-n", "19", Path(sys.executable).with_name("fl-precode"), "audit", tape, "--out", out]
    command += ["--rounds", str(round_number), "--attacks", attacks, "--no-control", "--no-leakage"]
    return subprocess.run(command).returncode


def main() -> None:
    """Audit round after round until Ctrl-C, or until a round that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tape", type=Path, help="folder that the Interceptor writes, now or later")
    parser.add_argument("--out", type=Path, default=Path("watch"), help="folder for one audit a round")
    parser.add_argument("--attacks", default=QUICK, help="as fl-precode audit takes them")
    parser.add_argument("--until", type=int, default=sys.maxsize, help="end after this round")
    options = parser.parse_args()
    done = 0
    while done < options.until:
        newest = newest_round(options.tape)
        if newest == done:
            time.sleep(1)
            continue
        audit(options.tape, newest, options.out / f"round-{newest:04d}", options.attacks)
        done = newest


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
