"""A tape in an object store, copied to a private folder of this machine so that it can be read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fl_precode.places.cache_folder import cache_folder
from fl_precode.places.object_store import ObjectStore, path_of, url_of, without_secrets
from fl_precode.private_file import make_private_folder, write_private
from fl_precode.tape.format import (
    HEADER,
    MANIFEST,
    OBSERVATIONS,
    PARAMETERS,
    SentIndex,
    StoredRecord,
    TapeEntry,
    TapeError,
    header_from_json,
    line_from_json,
)

_log = logging.getLogger(__name__)

_NOTES = ".toml"


def local_tape(place: str | Path) -> Path:
    """The folder of a tape: a path as it is, and for the URL of an object store a private copy, brought up to date.

    The copy is below ``~/.cache/fl-precode/tapes``, in the same place each time, so that an audit that was interrupted
    goes on. Files are checked against the manifest; those that are there and right are not fetched again. Remove the
    copy when the audit is done: it is as sensitive as the images.

    Raises:
        TapeError: If there is no tape, or the store cannot be read.
        ValueError: If the URL is refused, or the store's software is not installed.
        OSError: If the copy cannot be written.
    """
    url = url_of(place)
    if url is None:
        return path_of(place)
    folder = make_private_folder(cache_folder())
    for name in ("tapes", hashlib.sha256(url.encode()).hexdigest()[:16], url.rpartition("/")[2]):
        folder = make_private_folder(folder / name)
    _log.info("the tape %s is copied to %s", url, folder)
    _fetch(ObjectStore(url), folder)
    return folder


def _fetch(store: ObjectStore, folder: Path) -> None:
    try:
        header = store.read(HEADER)
        header_from_json(header, f"{store.url}/{HEADER}")
        # The store's manifest may be behind its files, never ahead of them.
        manifest = store.read(MANIFEST) if store.exists(MANIFEST) else b""
        notes = store.read(_NOTES) if store.exists(_NOTES) else None
    except FileNotFoundError as error:
        raise TapeError(f"{store.url}/{HEADER} is missing; this is no tape, or its header was removed") from error
    except TapeError:
        raise
    except Exception as error:
        raise TapeError(f"{store.url} cannot be read: {without_secrets(error)}") from error
    for name in (PARAMETERS, OBSERVATIONS):
        make_private_folder(folder / name)
    listed = list(_listed(manifest))
    for one in listed:
        _fetch_file(store, folder, one)
    _remove_others(folder, {one.file for one in listed})
    write_private(folder / HEADER, header)
    write_private(folder / MANIFEST, manifest)
    beside = folder.with_name(f"{folder.name}{_NOTES}")
    if notes is not None and not beside.exists():  # what somebody wrote into the copy is kept
        write_private(beside, notes)


def _listed(manifest: bytes) -> Iterator[StoredRecord]:
    """Every file that the manifest names; lines that cannot be read are named when the copy is."""
    sent = SentIndex()
    for line in manifest.split(b"\n"):
        with suppress(ValueError, RecursionError):
            _, content = line_from_json(line, sent)
            if isinstance(content, TapeEntry):
                yield content
                yield from content.extras


def _fetch_file(store: ObjectStore, folder: Path, wanted: StoredRecord) -> None:
    """Copy one file. What is missing or altered is so in the copy too, and named when it is read."""
    place = folder / wanted.file
    with suppress(OSError):
        if hashlib.sha256(place.read_bytes()).hexdigest() == wanted.sha256:
            return
    try:
        content = store.read(wanted.file, most=wanted.bytes + 1)
    except FileNotFoundError:
        place.unlink(missing_ok=True)
        return
    except Exception as error:
        raise TapeError(f"{store.url}/{wanted.file} cannot be read: {without_secrets(error)}") from error
    write_private(place, content)


def _remove_others(folder: Path, listed: set[str]) -> None:
    """Remove what an earlier tape in the same place left in the copy."""
    for name in (PARAMETERS, OBSERVATIONS):
        for file in (folder / name).iterdir():
            if f"{name}/{file.name}" not in listed:
                file.unlink()
