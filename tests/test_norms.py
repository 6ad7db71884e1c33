"""Training computes what it computed when the norms were stored: ten configurations, every tensor of the networks."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from gantrain.cli import main

SAME = runpy.run_path(str(Path(__file__).parents[1] / "scripts/same"))
STORED = json.loads((Path(__file__).parent / "data/norms.json").read_text())


@pytest.mark.parametrize("name", SAME["CONFIGURATIONS"])
def test_weights_after_500_images_have_the_stored_norms(name, tmp_path):
    assert (
        main(["train", f"run_dir={tmp_path}", *SAME["CONFIGURATIONS"][name], *SAME["COMMON"], "train.images=500"]) == 0
    )
    norms, stored = SAME["compute_norms"](SAME["read_networks"](tmp_path)), STORED[name]
    assert norms.keys() == stored.keys()
    assert norms == pytest.approx(
        stored, rel=1e-3, abs=1e-6 * max(stored.values())
    )  # kernels of other CPUs: within 1e-6


def test_every_configuration_is_stored():
    assert STORED.keys() == SAME["CONFIGURATIONS"].keys()
