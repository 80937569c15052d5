"""What the command lines of several benchmarks end with."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse, with options for seed, threads and the file to write; set up threads and messages."""
    parser.add_argument("--seed", type=int, default=0, help="the first, or only, seed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    return options


def write_record(record: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the record where ``--out`` says, if it does."""
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
