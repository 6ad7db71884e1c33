"""Hydra's launchers of others train sweeps too: joblib's processes, and submitit's jobs, here on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import PATIENCE_SECONDS

TINY = (
    *("device=cpu", "train.images=200", "train.batch_size=20", "train.held_out_images=40"),
    *("train.report_every_images=100", "train.sample_every_images=200"),
)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_of_another_launcher_finishes_and_lists_what_failed(tmp_path: Path, launcher: str) -> None:
    typed = ["-m", *TINY, "run_dir=sweep", f"hydra/launcher={launcher}", "gen_div=kl,total_variation"]
    done = subprocess.run(
        [sys.executable, "-m", "gantrain.cli", "train", *typed],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "1 of 2 runs finished in sweep" in done.stdout
    assert re.search(r"1 run failed:\n  1-gen_div-total_variation: gen_objective=matched", done.stderr)
    ends = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/summary.json")}
    assert {name: end["status"] for name, end in ends.items()} == {
        "0-gen_div-kl": "finished",
        "1-gen_div-total_variation": "failed",
    }
    assert (tmp_path / "sweep/0-gen_div-kl/checkpoints/last.pt").exists()
