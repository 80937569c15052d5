"""A stand-in for Docker's python image, from Debian's packages, where no container registry can be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

RELEASE = "bookworm"  # its Python is 3.11
INCLUDED = "ca-certificates,python3,python3-venv,python3-pip,libgomp1"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP = "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\nfind-links = /wheels\ntimeout = 60\n"


def torch_wheels() -> list[Path]:
    """Wheels of PyTorch for CPUs that this machine's pip is told to look at first."""
    folders = os.environ.get("PIP_FIND_LINKS", "").split()
    return sorted(
        wheel for folder in folders if Path(folder).is_dir() for wheel in Path(folder).glob("torch-*+cpu-cp311-*.whl")
    )


def make_base_image(cache: Path) -> Path:
    """The archive of the image's file system, for ``docker import``; kept in ``cache`` for the next time.

    It has Debian's Python at /usr/local/bin, this machine's certificates (its pip needs them) and its PyTorch wheel, so
    that the Dockerfile holds nothing of this machine.
    """
    archive = cache / "base.tar"
    if archive.exists():
        return archive
    root = cache / "rootfs"
    shutil.rmtree(root, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={INCLUDED}", RELEASE, str(root), _mirror()],
        check=True,
        timeout=900,
    )
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink(missing_ok=True)
    for name, target in (("python", "python3.11"), ("python3", "python3.11"), ("pip", "pip3")):
        link = root / "usr/local/bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"/usr/bin/{target}")
    shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    (root / "wheels").mkdir()
    for wheel in torch_wheels():
        shutil.copy(wheel, root / "wheels")
    (root / "etc/pip.conf").write_text(PIP)
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "usr/share/doc/*", "usr/share/man/*"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("resolv.conf", "hostname"):
        (root / "etc" / name).write_text("")
    unfinished = archive.with_suffix(".part")
    with tarfile.open(unfinished, "w") as tar:
        tar.add(root, arcname=".")
    unfinished.rename(archive)
    shutil.rmtree(root)
    return archive


def _mirror() -> str:
    """Debian's mirror as this machine's own package lists name it."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if sources.exists():
        for line in sources.read_text().splitlines():
            if line.startswith("URIs:"):
                return line.split()[1]
    return "http://deb.debian.org/debian"
