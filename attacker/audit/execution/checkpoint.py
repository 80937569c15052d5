"""The folder of a campaign: one process at a time, one set of settings, and the plan that was made at its beginning.

A campaign of other settings is never mixed with this one: it is set aside, with everything that it left.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from attacker.audit.execution.work import ATTACK
from attacker.audit.record.schema import PlannedAttack
from attacker.jobs.store import Altered, FolderStore, read_sealed, write_sealed
from fl_precode.private_file import make_private_folder

NAME: Final = "campaign"
FORMAT: Final = "fl-precode-campaign"
VERSION: Final = 1
EARLIER: Final = "earlier"
_OF_AN_AUDIT: Final = ("audit.json", "results.csv", "labels.csv", "images", "report", "report-redacted")
"""What an audit leaves beside its campaign; anything else in the folder is not ours and stays where it is."""


class OtherSettings(ValueError):
    """The folder holds a campaign that was begun for other settings or another tape."""


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
        self._locks: list[int] = []

    def __enter__(self) -> CampaignFolder:
        self._take()
        self.chunks = FolderStore(self.folder / "chunks", ATTACK)
        self.chunks.sweep()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._locks and not self.begun:
            self._leave_nothing()
        for lock in self._locks:
            os.close(lock)
        self._locks = []

    def _take(self) -> None:
        """Hold the folder against other processes. The kernel lets go when the process ends, however it ends."""
        path = self.folder / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_ino != os.stat(path).st_ino:
                raise BlockingIOError(errno.EAGAIN, "the campaign was set aside between opening its lock and taking it")
        except OSError:
            os.close(lock)
            raise ValueError(
                f"another audit is at work in {self.folder.parent}; wait for its end, or name another folder with --out"
            ) from None
        self._locks.append(lock)

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
        """Keep the plan; from here on only the same settings go on with it.

        Raises:
            OSError: If it cannot be written.
        """
        content = {
            "format": FORMAT,
            "version": VERSION,
            "identity": dict(identity),
            "plan": [attack.model_dump(mode="json") for attack in plan],
        }
        write_sealed(self._file, content)

    def set_aside(self) -> Path:
        """Move the audit that is here, with all that it left, into ``OUT/earlier-1`` or the next free number.

        Its lock stays held, so that no process can go on with it while this one works beside it.

        Returns:
            The new folder, 0700. An audit with ``--out`` of that folder and the old settings goes on there.

        Raises:
            ValueError: If another process takes the emptied place first.
            OSError: If something cannot be moved.
        """
        out = self.folder.parent
        number = 1
        while (aside := out / f"{EARLIER}-{number}").exists():
            number += 1
        make_private_folder(aside)
        # The campaign goes last: killed in between, it is still found here, and set aside again.
        for name in (*_OF_AN_AUDIT, NAME):
            if (out / name).exists():
                (out / name).rename(aside / name)
        make_private_folder(self.folder)
        self._take()
        self.chunks = FolderStore(self.folder / "chunks", ATTACK)
        return aside

    def resume(self, identity: Mapping[str, Any]) -> list[PlannedAttack]:
        """The plan that was made here.

        Raises:
            OtherSettings: If it was made for other settings or another tape; what differs is the message.
            ValueError: If it was altered.
        """
        try:
            content = read_sealed(self._file, FORMAT, VERSION)
        except Altered as error:
            raise ValueError(f"{error.what}; remove {self.folder} to begin the audit anew") from None
        now = json.loads(json.dumps(dict(identity)))
        begun = content["identity"]
        differ = [
            f"{name} was {begun.get(name, 'not given')!r} and is {now.get(name, 'not given')!r}"
            for name in {**begun, **now}
            if begun.get(name) != now.get(name)
        ]
        if differ:
            raise OtherSettings("; ".join(differ))
        return [PlannedAttack.model_validate(entry) for entry in content["plan"]]
