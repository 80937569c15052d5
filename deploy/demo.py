"""The federation in containers, from a clean clone: ``python3 -m deploy.demo up`` and ``... down``.

``up`` builds, runs, waits for the run's true outcome and prints the report's address; exit code 0 only when every
round was finished and the report is there. ``down`` removes containers, networks, volumes (keys and tapes with them)
and the image. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

from deploy.compose import Compose, NotPossible, check_disk, check_port, docker_root, find_compose, run_compose

PROJECT = "fl-precode"
UP_SECONDS = 1800.0
PAGE_SECONDS = 60.0


def up(compose: Compose, *, project: str, port: int) -> int:
    """Build and run; returns the exit code.

    Raises:
        NotPossible: If something outside stands in the way.
    """
    started = time.monotonic()
    check_disk(docker_root())
    if not _report_runs(compose, project):
        check_port(port)
    if run_compose(compose, project, ["build"]) != 0:
        raise NotPossible(
            "the image was not built; what stands above says why. Without a network set PYTHON_IMAGE, and see "
            "docs/how-to/deployment.md"
        )
    built = time.monotonic()
    print(f"built in {built - started:.0f} s; the federation starts, a few minutes", flush=True)  # noqa: T201
    # Returns when the last service runs, that is when keys, run and attack have ended well.
    code = run_compose(compose, project, ["up", "-d"], seconds=UP_SECONDS)
    address = f"http://127.0.0.1:{port}/"
    if code != 0 or not _answers(address):
        run_compose(compose, project, ["ps"])
        run_compose(compose, project, ["logs", "--no-color", "--tail", "40", "submit", "attacker", "report"])
        raise NotPossible(
            "the federation did not come to its end" + (" in time" if code == 124 else "") + "; its logs stand above. "
            "Clean up with: make compose-down"
        )
    run_compose(compose, project, ["logs", "--no-color", "--tail", "12", "attacker"])
    print(f"ran in {time.monotonic() - built:.0f} s")  # noqa: T201
    print(f"report: {address}   (make compose-down removes everything)")  # noqa: T201
    return 0


def down(compose: Compose, *, project: str) -> int:
    """Remove everything that `up` made; returns the exit code."""
    return run_compose(compose, project, ["down", "--volumes", "--remove-orphans", "--rmi", "all", "--timeout", "10"])


def _report_runs(compose: Compose, project: str) -> bool:
    """Whether the port is taken by our own report, from an earlier call."""
    command = [*compose.command, "-p", project, "ps", "-q", "report"]
    return bool(subprocess.run(command, capture_output=True, text=True).stdout.strip())


def _answers(address: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + PAGE_SECONDS
    while time.monotonic() < deadline:
        try:
            with direct.open(address, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return False


def main(arguments: list[str]) -> int:
    """``up`` or ``down``; returns the exit code."""
    project = os.environ.get("COMPOSE_PROJECT_NAME", PROJECT)
    try:
        compose = find_compose()
        if arguments == ["up"]:
            return up(compose, project=project, port=int(os.environ.get("REPORT_PORT", "8080")))
        if arguments == ["down"]:
            return down(compose, project=project)
    except NotPossible as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("Interrupted; remove what was started with: make compose-down", file=sys.stderr)  # noqa: T201
        return 130
    print("usage: python3 -m deploy.demo up|down", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
