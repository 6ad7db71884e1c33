"""Hydra's launchers of others train sweeps too: joblib's processes, and submitit's jobs, here on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import PATIENCE_SECONDS, wait_until

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


def find_processes(words: str) -> list[int]:
    """The processes whose command line has these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            typed = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        found += [int(path.parent.name)] if words in typed else []
    return found


def test_a_job_that_slurm_preempts_is_saved_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The signal is that of `sbatch --signal`; submitit's local executor answers it as the one for Slurm does."""
    typed = ["-m", *TINY, "run_dir=sweep", "hydra/launcher=submitit_local", "resume=auto", "seed=0"]
    typed += ["train.images=4000", "train.checkpoint_every_images=100", "train.checkpoint_min_seconds=0"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "gantrain.cli", "train", *typed],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with sweep:
        try:
            wait_until(lambda: list(tmp_path.glob("sweep/*/checkpoints/*.pt")) or sweep.poll() is not None)
            (job,) = find_processes(f"submitit.core._submit {tmp_path}")
            os.kill(job, signal.SIGUSR2)
            out, err = sweep.communicate(timeout=PATIENCE_SECONDS)
        finally:
            sweep.kill()
    assert sweep.returncode == 0, err
    assert "1 of 1 runs finished in sweep" in out
    (run,) = tmp_path.glob("sweep/*/summary.json")
    summary, log = json.loads(run.read_text()), run.with_name("train.log").read_text()
    assert summary["status"] == "finished"
    assert len(summary["resumed_at_images"]) == 1
    assert re.search(r"stopped by SIGUSR2; go on with.*resuming from images_0+\d+\.pt", log, re.DOTALL)
