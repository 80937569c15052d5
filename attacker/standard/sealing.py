"""Sealed truth: what is behind a tape's updates, encrypted, so that others can attack the tape and only we can score.

AES-SIV (RFC 5297): authenticated, and deterministic, so that equal truths, keys and tapes give equal files. The tape's
fingerprint is authenticated beside it: a truth opens for its own tape only.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fl_precode.private_file import write_private
from fl_precode.tape import Tape

SEALED_NAME: Final = "truth.sealed"
"""Beside the tape, in place of its ``evaluation.json``."""

_MAGIC: Final = b"fl-precode-sealed 1\n"
_KEY_BYTES: Final = 64
"""AES-SIV takes two keys of 256 bits."""

_MOST_BYTES: Final = 64 << 20


def new_key() -> bytes:
    """A random key."""
    return secrets.token_bytes(_KEY_BYTES)


def write_key(key: bytes, path: Path) -> None:
    """Keep a key as one line of hexadecimal digits, readable by its owner only.

    Raises:
        OSError: If it cannot be written.
    """
    write_private(path, key.hex().encode() + b"\n")


def read_key(path: Path) -> bytes:
    """Read a key.

    Raises:
        ValueError: If the file holds something else.
        OSError: If it cannot be read.
    """
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError(
            f"{path} is no key of sealed tapes: expected one line of {2 * _KEY_BYTES} hexadecimal digits, as "
            "benchmarks/sealed_tapes.py writes it"
        )
    return key


def key_digest(key: bytes) -> str:
    """SHA-256 of a key, by which one that is published later is known to be the one that was used."""
    return hashlib.sha256(key).hexdigest()


def seal(truth: bytes, key: bytes, tape: Path) -> Path:
    """Write the truth of a tape beside it, encrypted.

    Args:
        truth: Content of an ``evaluation.json``.
        key: Result of `new_key`.
        tape: Folder of the finished tape.

    Returns:
        The file.

    Raises:
        TapeError: If the tape cannot be read.
        OSError: If the file cannot be written.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    path = tape.absolute().parent / SEALED_NAME
    write_private(path, _MAGIC + AESSIV(key).encrypt(truth, [_MAGIC, _fingerprint(tape)]))
    return path


def unseal(tape: Path, key: bytes) -> bytes:
    """The truth that is sealed beside a tape.

    Raises:
        ValueError: If it is no such file, or key and tape are not those that it was sealed with.
        OSError: If it cannot be read.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

    path = tape.expanduser().absolute().parent / SEALED_NAME
    try:
        if path.stat().st_size > _MOST_BYTES or not (content := path.read_bytes()).startswith(_MAGIC):
            raise ValueError(f"{path} is no sealed truth of this version; take the file that came with the tape")
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: a key opens the sealed truth beside a tape; leave --key out") from None
    try:
        return AESSIV(key).decrypt(content[len(_MAGIC) :], [_MAGIC, _fingerprint(tape)])
    except InvalidTag:
        raise ValueError(
            f"{path} does not open; the key is another one, or the tape or this file was altered; compare their "
            "checksums with the index that was published"
        ) from None


@contextmanager
def unsealed(tape: Path, key: Path | None) -> Iterator[Path | None]:
    """The ``evaluation.json`` of a sealed tape while this lasts, in a private folder; None without a key.

    Args:
        tape: Folder of the tape.
        key: File with its key.

    Raises:
        ValueError: As `unseal` and `read_key`.
        OSError: As `unseal` and `read_key`.
    """
    if key is None:
        yield None
        return
    truth = unseal(tape, read_key(key))
    with tempfile.TemporaryDirectory(prefix="fl-precode-") as folder:
        path = Path(folder) / "evaluation.json"
        write_private(path, truth)
        yield path


def _fingerprint(tape: Path) -> bytes:
    return Tape(tape.expanduser()).fingerprint()[0].encode()
