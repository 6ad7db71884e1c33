"""Images that memory does not hold are trained on from a file."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import assert_equal_states

COUNT, SIDE, LIMIT = 200_000, 64, 3 * 2**30


def write_noise(path: Path) -> None:
    """A .zip of noise in two class folders, of which one is darker."""

    def encode(number: int) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 128 + 128 * (number % 2), (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(stream := BytesIO(), "PNG", compress_level=1)
        return stream.getvalue()

    with zipfile.ZipFile(path, "w") as archive, ThreadPoolExecutor() as pool:
        for start in range(0, COUNT, 1000):
            numbers = range(start, start + 1000)
            for number, content in zip(numbers, pool.map(encode, numbers), strict=True):
                archive.writestr(f"{'ab'[number % 2]}/{number:06}.png", content)


def limited(folder: Path, *arguments: object) -> tuple[int, str]:
    """The exit code and output of `gantrain *arguments` with no more than LIMIT bytes of data in memory."""
    command = [sys.executable, "-m", "gantrain", *map(str, arguments)]
    done = subprocess.run(
        command,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_set_larger_than_memory_is_trained_on_and_resumed_and_evaluated(tried, times, measured, tmp_path):
    if not times.soak:
        pytest.skip("writes 8 GB")
    write_noise(images := tmp_path / "images.zip")
    settings = [
        "dataset=folder",
        f"dataset.path={images}",
        "architecture=dcgan64",
        "dataset.size=64",
        "train.batch_size=16",
    ]
    settings += ["train.held_out_images=200", "train.report_every_images=160"]
    with tried("images larger than memory, on the device"):
        code, output = limited(tmp_path, "train", *settings, "train.images=320", "dataset.resident=device")
        assert code == 8, output
        assert "dataset.resident=memory_map" in output
    with tried("images larger than memory, in a file"):
        began = time.monotonic()
        code, output = limited(tmp_path, "train", *settings, "train.images=320", f"run_dir={tmp_path / 'whole'}")
        first = time.monotonic() - began
        assert code == 0, output
        assert re.search(r"dataset.resident=memory_map: 200,000 images are written .* 2,457\.6 MB", output)
        for arguments in (
            ["train", *settings, "train.images=160", f"run_dir={tmp_path / 'halves'}"],
            ["resume", tmp_path / "halves", "train.images=320"],
            ["evaluate", tmp_path / "whole", "count=500", "train_classifier.epochs=1", "train_classifier.width=1"],
        ):
            began = time.monotonic()
            code, output = limited(tmp_path, *arguments)
            assert code == 0, output
            measured(f"gantrain {arguments[0]} with the file written", f"{time.monotonic() - began:.0f} s")
        assert_equal_states(tmp_path / "whole", tmp_path / "halves")
    measured("200,000 images: the first start and 20 iterations", f"{first:.0f} s")
