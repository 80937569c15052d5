"""A folder of an object store, by its URL (fsspec): where a tape can be written to and read from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

_URL: Final = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/{1,2}(?P<rest>[^/].*)", re.DOTALL)
_LOCAL: Final = ("file", "local")
_SECRETS: Final = (re.compile(r"(?<=\?)\S+"), re.compile(r"(?<=://)[^/@\s]+(?=@)"))
_EXTRAS: Final = {"s3": "fl-precode[object-storage]", "s3a": "fl-precode[object-storage]"}


def url_of(place: str | Path) -> str | None:
    """The URL of an object store, or None where a path of this machine is meant.

    A path's slashes are mended: ``Path("s3://bucket/tape")`` has one of them only.

    >>> url_of("s3://bucket/tape/"), url_of(Path("s3://bucket/tape")), url_of("/runs/1/tape"), url_of("file:///runs/1")
    ('s3://bucket/tape', 's3://bucket/tape', None, None)
    """
    match = _URL.fullmatch(str(place))
    if match is None or match["scheme"] in _LOCAL:
        return None
    return f"{match['scheme']}://{match['rest'].rstrip('/')}"


def path_of(place: str | Path) -> Path:
    """The path that is meant where `url_of` finds no URL: ``file:///runs/1`` is ``/runs/1``."""
    text = str(place)
    scheme, colon, rest = text.partition(":")
    return Path(f"/{rest.lstrip('/')}") if colon and scheme in _LOCAL else Path(place)


def check_url(url: str) -> None:
    """Refuse a URL that holds what must not be written down, or more than one place.

    Raises:
        ValueError: If it has a password, a key or a query, or is a chain.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            f"the URL of a tape, {parts.scheme}://..., has a password, a key or a query in it, and URLs stand in logs; "
            "expected scheme://bucket/folder alone, and the credentials where the store's own software looks for them, "
            "such as AWS_ACCESS_KEY_ID in the environment"
        )
    if "::" in url:
        raise ValueError(f"{url}: expected one place of a store, scheme://bucket/folder, got a chain of several")


class ObjectStore:
    """Files below a URL.

    Args:
        url: As `url_of` gives it.

    Raises:
        ValueError: If the URL is refused, there is no such store, or the package that reaches it is not installed.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        try:
            from fsspec.core import url_to_fs

            self._files, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            extra = _EXTRAS.get(urlsplit(url).scheme)
            advice = f"; pip install '{extra}'" if extra else ""
            raise ValueError(f"{url} cannot be reached: {error}{advice}") from error
        self.url = url

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self._files.exists(self._path(name)))

    def read(self, name: str, *, most: int | None = None) -> bytes:
        """A file's content, or its first ``most`` bytes.

        Raises:
            FileNotFoundError: If it is missing.
            Exception: Whatever else the store raises.
        """
        content: bytes = self._files.cat_file(self._path(name), start=None, end=most)
        return content

    def write(self, name: str, content: bytes, **more: Any) -> None:
        """Write a file at once; raises whatever the store raises."""
        self._files.makedirs(self._path("").rstrip("/"), exist_ok=True)
        self._files.pipe_file(self._path(name), content, **more)

    def put(self, file: Path, name: str) -> None:
        """Copy a file of this machine; raises whatever the store raises."""
        self._files.put_file(str(file), self._path(name))

    def _path(self, name: str) -> str:
        # ".toml" stands beside the folder.
        return f"{self._root}{'' if name.startswith('.') else '/'}{name}"


def without_secrets(error: BaseException) -> str:
    """What an error says, without the queries and passwords of URLs in it, at most 300 characters."""
    text = " ".join(str(error).split())
    for secret in _SECRETS:
        text = secret.sub("...", text)
    return f"{type(error).__name__}: {text[:300]}"
