"""Error messages in place of a traceback."""

from __future__ import annotations

import errno

_EXTRAS = {
    **dict.fromkeys(
        (
            "scipy",
            "skimage",
            "PIL",
            "pydantic",
            "typer",
            "click",
            "rich",
            "psutil",
            "jinja2",
            "markupsafe",
            "cryptography",
        ),
        "audit",
    ),
    "cryptography": "audit",
    "matplotlib": "experiments",
    "ray": "simulation",
    "sklearn": "simulation",
    "torchvision": "datasets",
    "medmnist": "datasets",
    "opacus": "dp",
    "dp_accounting": "dp",
    "weasyprint": "pdf",
    "mlflow": "mlflow",
}
"""Extras of the package by the module that they bring."""

_DISK = {
    errno.ENOSPC: "no space left on the disk; make room. What was finished is kept",
    errno.EDQUOT: "the disk quota is used up; make room. What was finished is kept",
    errno.EROFS: "the disk is read-only; name a place that can be written",
    errno.EACCES: "permission denied; this user may not read or write here",
    errno.EPERM: "permission denied; this user may not read or write here",
    errno.ENOENT: "there is no such file or folder",
    errno.EEXIST: "a file is in the way; a folder is needed here",
    errno.ENOTDIR: "a file is in the way; a folder is needed here",
    errno.EISDIR: "this is a folder; a file is needed here",
}


def error_paragraph(error: Exception) -> str:
    """One paragraph about whatever a command raised.

    >>> error_paragraph(ValueError("expected 1, got 2"))
    'Error: expected 1, got 2'
    >>> error_paragraph(KeyError("round"))
    "Error: something unexpected happened (KeyError: 'round'). `fl-precode --debug ...` shows where."
    >>> error_paragraph(ModuleNotFoundError("No module named 'jinja2'", name="jinja2"))
    "Error: this needs jinja2, which is not installed: pip install 'fl-precode[audit]'"
    """
    if isinstance(error, ValueError | OSError | RuntimeError | ImportError) and (text := error_text(error)):
        return f"Error: {text}"
    return (
        f"Error: something unexpected happened ({type(error).__name__}: {str(error).strip()}). "
        "`fl-precode --debug ...` shows where."
    )


def error_text(error: Exception) -> str:
    """The error's own words; for a file or a missing module, what that means and what to do.

    >>> error_text(OSError(28, "No space left on device", "audit.json"))
    'audit.json: no space left on the disk; make room. What was finished is kept'
    """
    if isinstance(error, OSError) and (meaning := _DISK.get(error.errno or 0)):
        return f"{error.filename}: {meaning}" if error.filename else meaning
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get((error.name or "").partition(".")[0])):
        return f"this needs {error.name}, which is not installed: pip install 'fl-precode[{extra}]'"
    return str(error).strip()
