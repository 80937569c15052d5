"""Twelve sealed tapes for others to attack: models x defences x protocols; the truth encrypted, all files checksummed.

    python benchmarks/sealed_tapes.py make sealed --key sealed.key --index docs/results/sealed-tapes.json
    python benchmarks/sealed_tapes.py check sealed --index docs/results/sealed-tapes.json

Images come with scikit-image and scikit-learn. All seeds come from the key: the same key makes the same bytes on the
same machine and versions, and nobody without it can draw the clients' images again. A key that is not there is made.
The dates of the manifests are those of the edition, because checksums could not repeat otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attacker.standard.sealing import key_digest, new_key, read_key, seal, write_key
from benchmarks.simulated_tapes import simulate
from fl_precode.federation.config import Settings
from fl_precode.private_file import make_private_folder, write_private
from fl_precode.tape import Tape

EDITION: Final = 1
DATE: Final = "2026-11-29T00:00:00.000+00:00"
FORMAT: Final = "fl-precode-sealed-tapes"
MOST_BYTES: Final = 200_000_000


@dataclass(frozen=True, kw_only=True)
class SealedTape:
    """What is on one tape.

    Attributes:
        name: Name of its folder.
        model: Spec.
        defence: Spec.
        dataset: Name.
        updates: Clients, each with one update.
        batch_size: Images behind a gradient, or a local step.
        local: Settings of local training; empty for FedSGD.
    """

    name: str
    model: str
    defence: str = "none"
    dataset: str = "photos"
    updates: int = 8
    batch_size: int = 1
    local: Mapping[str, float] = field(default_factory=dict)

    def settings(self, seed: int) -> Settings:
        """Of the federation."""
        local: dict[str, Any] = {"protocol": "fedavg", **self.local} if self.local else {}
        return Settings(
            model=self.model, defence=self.defence, dataset=self.dataset, num_clients=self.updates,
            num_server_rounds=1, batch_size=self.batch_size, seed=seed, device="cpu", **local,
        )  # fmt: skip


TAPES: Final = (
    SealedTape(name="01-mlp", model="mlp", dataset="faces", updates=6),
    SealedTape(name="02-mlp-batch", model="mlp", dataset="digits", updates=6, batch_size=8),
    SealedTape(name="03-lenet", model="lenet"),
    SealedTape(name="04-lenet-precode", model="lenet", defence="precode"),
    SealedTape(name="05-lenet-clip-noise", model="lenet", defence="clip:max_norm=1+noise:std=0.001"),
    SealedTape(name="06-relu", model="lenet:activation=relu"),
    SealedTape(name="07-relu-prune", model="lenet:activation=relu", defence="prune:share=0.9"),
    SealedTape(
        name="08-lenet-fedavg", model="lenet", batch_size=2, local={"local_steps": 3, "learning_rate": 0.1}
    ),
    SealedTape(
        name="09-precode-fedavg", model="lenet", defence="precode", dataset="faces",
        local={"local_steps": 2, "learning_rate": 0.1},
    ),
    SealedTape(name="10-resnet", model="resnet20"),
    SealedTape(name="11-vit", model="vit:patch=8,width=96,depth=2"),
    SealedTape(name="12-convnet-noise", model="convnet:width=16,norm=group", defence="noise:std=0.003"),
)  # fmt: skip


def make(out: Path, key_file: Path, tapes: Sequence[SealedTape] = TAPES) -> dict[str, Any]:
    """Make and seal the tapes in a new folder; the content of their index.

    Raises:
        ValueError: If the key's file is something else, or the tapes are too large together.
        OSError: If the folder cannot be written.
    """
    torch.set_num_threads(1)
    if not key_file.exists():
        write_key(new_key(), key_file)
    key = read_key(key_file)
    make_private_folder(out)
    entries = [_sealed(out / wanted.name, wanted, key) for wanted in tapes]
    total = sum(entry["bytes"] for entry in entries)
    if total > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, the tapes have {total}: take fewer clients")
    return {
        "format": FORMAT, "edition": EDITION, "date": DATE[:10], "torch": torch.__version__,
        "key_sha256": key_digest(key), "bytes": total, "tapes": entries,
    }  # fmt: skip


def check(folder: Path, index: Mapping[str, Any]) -> list[str]:
    """What in a folder of tapes is not as the index says, one sentence each; empty where all is."""
    if index.get("format") != FORMAT:
        return [f"expected an index of format {FORMAT}, got {index.get('format')!r}"]
    problems = []
    for entry in index["tapes"]:
        place = folder / entry["name"]
        there = dict(_digests(place))
        for name, digest in entry["files"].items():
            if name not in there:
                problems.append(f"{place / name} is missing")
            elif there[name] != digest:
                problems.append(f"{place / name} was altered: its SHA-256 is not that of the index")
        problems += [f"{place / name} is not in the index" for name in sorted(there.keys() - entry["files"].keys())]
    return problems


def seed_of(key: bytes, name: str) -> int:
    """Seed of a tape: 53 bits of a hash of the key, as much as `simulate` has room for."""
    digest = hashlib.sha256(b"|".join([b"sealed tape", str(EDITION).encode(), name.encode(), key])).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def _sealed(folder: Path, wanted: SealedTape, key: bytes) -> dict[str, Any]:
    simulate(folder, wanted.settings(seed_of(key, wanted.name)))
    tape, evaluation = folder / "tape", folder / "evaluation.json"
    _date(tape / "manifest.jsonl")
    seal(evaluation.read_bytes(), key, tape)
    evaluation.unlink()
    files = dict(_digests(folder))
    return {
        "name": wanted.name, "model": wanted.model, "defence": wanted.defence, "dataset": wanted.dataset,
        "protocol": "fedavg" if wanted.local else "fedsgd", **wanted.local, "batch_size": wanted.batch_size,
        "updates": wanted.updates, "fingerprint": Tape(tape).fingerprint()[0],
        "bytes": sum((folder / name).stat().st_size for name in files), "files": files,
    }  # fmt: skip


def _date(manifest: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps({**line, "time": DATE}) + "\n" for line in lines)
    write_private(manifest, text.encode())


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("folder", type=Path, help="folder of the tapes; new for make")
    parser.add_argument("--key", type=Path, default=Path("sealed.key"), help="key file; made where there is none")
    parser.add_argument("--index", type=Path, required=True, help="JSON file with the checksums")
    options = parser.parse_args()
    if options.what == "make":
        if options.folder.exists():
            parser.error(f"{options.folder} is there already: name a new folder")
        try:
            index = make(options.folder, options.key)
        except BaseException:
            shutil.rmtree(options.folder, ignore_errors=True)
            raise
        options.index.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        print(f"{len(index['tapes'])} tapes, {index['bytes'] / 1e6:.0f} MB")
        return
    problems = check(options.folder, json.loads(options.index.read_text(encoding="utf-8")))
    print("\n".join(problems) or "all files are as the index says")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
