"""Runs the cases of every device on straw: ``python -m tests.attacker.run_on_straw``."""

from __future__ import annotations

import sys
import traceback

import torch

from tests.straw_device import STRAW, register


def refuses(work: object) -> bool:
    try:
        work()  # type: ignore[operator]
    except RuntimeError:
        return True
    return False


def main() -> None:
    register()  # before anyone binds torch.Generator
    from tests.attacker.device_cases import CASES

    there = torch.arange(3.0).to(STRAW)
    assert refuses(lambda: there + torch.ones(3)), "straw must refuse tensors of the CPU"
    assert refuses(lambda: there.normal_(generator=torch.Generator())), "straw must refuse generators of the CPU"
    failed = []
    for name, case in CASES.items():
        try:
            case(STRAW)
        except Exception:
            failed.append(name)
            traceback.print_exc()
    print(f"{len(CASES)} cases, failed: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
