"""The example on what reaches the server: what its README says comes out."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.examples.readme_commands import ROOT

EXAMPLE = ROOT / "examples" / "wire-view"


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(1800)
def test_server_side_privacy_hides_nothing_local_noise_all_and_secure_aggregation_leaves_the_sum(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, EXAMPLE / "wire_view.py"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {
        line[:26].strip(): [float(value) for value in re.findall(r"SSIM +(-?[\d.]+)", line)]
        for line in done.stdout.splitlines()
        if "SSIM" in line
    }
    for setting in ("no privacy", "server-side DP", "client-side clipping"):
        assert min(rows[setting]) > 0.9, setting
    assert max(rows["local DP"]) < 0.2
    assert min(rows["secure aggregation (sum)"]) > 0.4, "the sum of three is a batch of three"
    assert "secure aggregation: 0 updates on the wire" in done.stdout
    assert (tmp_path / "wire-view.png").stat().st_size > 10_000
