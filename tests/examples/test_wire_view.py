"""The example on what reaches the server: what its README says comes out."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.examples.readme_commands import ROOT, bash_blocks, follow

EXAMPLE = ROOT / "examples" / "wire-view"


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(1800)
def test_server_side_privacy_hides_nothing_local_noise_all_and_secure_aggregation_leaves_the_sum(tmp_path):
    copy = tmp_path / "wire-view"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__", "out", "*.png"))
    assert len(bash_blocks(copy / "README.md")) == 2
    said = follow(copy / "README.md", tmp_path / "home", but=["pip install"])
    assert "DEPRECATED" not in said
    rows = {
        line[:26].strip(): [float(value) for value in re.findall(r"SSIM +(-?[\d.]+)", line)]
        for line in said.splitlines()
        if "SSIM" in line
    }
    for setting in ("no privacy", "server-side DP", "client-side clipping"):
        assert min(rows[setting]) > 0.9, setting
    assert max(rows["local DP"]) < 0.2
    assert min(rows["secure aggregation (sum)"]) > 0.4, "the sum of three is a batch of three"
    assert "secure aggregation: 0 updates on the wire" in said
    assert (copy / "wire-view.png").stat().st_size > 10_000
