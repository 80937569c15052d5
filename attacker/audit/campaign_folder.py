"""The folder of a campaign: one process at a time, one set of settings, and the plan that was made at its beginning."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from attacker.audit.checksum import checksum
from attacker.audit.chunk_store import ChunkFolder
from attacker.audit.files import make_private_folder
from attacker.audit.record import PlannedAttack
from fl_precode.private_file import write_private

NAME: Final = "campaign"
FORMAT: Final = "fl-precode-campaign"
VERSION: Final = 1


class CampaignFolder:
    """``OUT/campaign``: plan, finished chunks and controls, held by one process.

    Args:
        out: Folder of the audit.

    Raises:
        ValueError: On entering, if another process works here.
    """

    def __init__(self, out: Path) -> None:
        self._new = not out.expanduser().absolute().exists()
        self.folder = make_private_folder(make_private_folder(out) / NAME)
        self.controls = self.folder / "controls"
        self._lock: int | None = None

    def __enter__(self) -> CampaignFolder:
        # The kernel lets go of the lock when the process ends, however it ends.
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            self._lock = None
            raise ValueError(
                f"another audit is at work in {self.folder.parent}; wait for its end, or name another folder with --out"
            ) from None
        self.chunks = ChunkFolder(self.folder / "chunks")
        self.chunks.sweep()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._lock is None:
            return
        if not self.begun:
            self._leave_nothing()
        os.close(self._lock)
        self._lock = None

    def _leave_nothing(self) -> None:
        """Remove what was made here, since nothing was begun: a mistyped tape is no reason for a folder."""
        shutil.rmtree(self.controls, ignore_errors=True)
        (self.folder / "lock").unlink(missing_ok=True)
        for folder in (self.chunks.folder, self.folder, *([self.folder.parent] if self._new else [])):
            with suppress(OSError):  # there is something in it that is not ours
                folder.rmdir()

    @property
    def _file(self) -> Path:
        return self.folder / "campaign.json"

    @property
    def begun(self) -> bool:
        """Whether a plan was made here, by this process or an earlier one."""
        return self._file.exists()

    def begin(self, identity: Mapping[str, Any], plan: Sequence[PlannedAttack]) -> None:
        """Keep the plan; from here on only the same settings are let in.

        Raises:
            OSError: If it cannot be written.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            "identity": dict(identity),
            "plan": [one.model_dump(mode="json") for one in plan],
        }
        write_private(self._file, json.dumps(content | {"sha256": checksum(content)}, indent=1).encode())

    def resume(self, identity: Mapping[str, Any]) -> list[PlannedAttack]:
        """The plan that was made here.

        Raises:
            ValueError: If it was made for other settings or another tape, or was altered.
        """
        try:
            content = json.loads(self._file.read_bytes())
            altered = content.pop("sha256", None) != checksum(content)
        except (OSError, ValueError, AttributeError):
            altered = True
        if altered or (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"{self._file} was altered or damaged; remove {self.folder} to begin the audit anew")
        now = json.loads(json.dumps(dict(identity)))
        begun = content["identity"]
        differ = [
            f"{name} was {begun.get(name, 'not given')!r} and is {now.get(name, 'not given')!r}"
            for name in {**begun, **now}
            if begun.get(name) != now.get(name)
        ]
        if differ:
            raise ValueError(
                f"{self.folder.parent} holds an audit that was begun otherwise: {'; '.join(differ)}. Give the same "
                f"settings to go on with it, name another folder with --out, or remove {self.folder} to begin anew"
            )
        return [PlannedAttack.model_validate(one) for one in content["plan"]]
