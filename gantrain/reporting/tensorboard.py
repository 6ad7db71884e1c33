"""TensorBoard's event files: the numbers of metrics.jsonl, under the same names and at the same clock."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.files import iterate_leaves

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

LARGEST_BINNED = 1e12  # beyond, NumPy has no room for bins around equal values
NEVER = 10**6  # seconds between flushes by the writer's own thread: reports are flushed at once
# TensorBoard's page of custom charts: regular expressions of scalar names.
CHARTS = {
    "training": {"losses": ["loss/.*"]},
    "divergences": {
        "bounds, and the suprema they cannot exceed": ["(training_)?bound/.*(?<!_error)$", "supremum/.*"],
        "bounds by the recalibrated ratio": ["(training_)?recalibrated_bound/.*(?<!_error)$"],
        "plug-in estimates, no bounds": ["(training_)?estimate/.*(?<!_error)$"],
    },
    "ratio": {
        "mean log-ratio": ["ratio/(real|fake)_mean"],
        "calibration (1 for a true ratio)": ["ratio/calibration_.*"],
    },
    "quality": {
        "distances of features": ["quality/(fid|kid)_[a-z]+$"],
        "precision, density, share of high quality": ["quality/(precision|density|high_quality_share)"],
        "inception score": ["quality/inception_score.*"],
    },
    "diversity": {
        "recall, coverage, distance of two samples": ["diversity/(recall|coverage|pairwise_distance)"],
        "support size as a ratio to the data's": ["diversity/support_ratio"],
        "classes": ["diversity/class_.*"],
        "modes found, classes missing": ["diversity/(modes.*|missing_classes)"],
    },
}


class TensorBoard:
    """Writes a run's event file. A resumed run's file tells TensorBoard to forget the steps after `start_images`.

    Every method raises OSError if the file cannot be written.

    Args:
        folder: The run folder.
        start_images: The clock at which this process begins.
        config_text: The composed configuration as YAML, for the page of texts.
        hparams: Names and values for the page of hyperparameters, as of `select_hyperparameters`.
        suprema: The largest value of each divergence that has one, by name: lines in the chart of all bounds.
    """

    name, place = "TensorBoard", ""  # its place is the run folder

    def __init__(
        self,
        folder: Path,
        start_images: int = 0,
        *,
        config_text: str = "",
        hparams: Mapping[str, Any] | None = None,
        suprema: Mapping[str, float] | None = None,
    ) -> None:
        self.images = start_images
        self.hparams, self.suprema = dict(hparams or {}), dict(suprema or {})
        resumed = start_images > 0 or any(folder.glob("events.out.tfevents.*"))
        self.writer = open_writer(folder, purge_step=start_images + 1 if resumed else None)
        if config_text and start_images == 0:
            self.writer.add_text("config", f"```yaml\n{config_text}\n```", 0)
            layout = {
                page: {title: ["Multiline", tags] for title, tags in charts.items()} for page, charts in CHARTS.items()
            }
            self.writer.add_custom_scalars(layout)
            self.writer.flush()

    def add_scalars(
        self, images: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write numbers, and the distributions of some, at the clock `images`."""
        self.images = images
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, images)
        for name, value in self.suprema.items():
            self.writer.add_scalar(f"supremum/{name}", value, images)
        for name, values in (histograms or {}).items():
            values = values.detach().float().cpu().flatten()
            finite = values[values.isfinite()].clamp(-LARGEST_BINNED, LARGEST_BINNED)
            if len(finite):
                self.writer.add_histogram(name, finite, images, bins=64)
        self.writer.flush()

    def add_picture(self, images: int, tag: str, path: Path) -> None:
        """Write an image file at the clock `images`."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(tag, np.asarray(image.convert("RGB")), images, dataformats="HWC")
        self.writer.flush()

    def close(self, *, failed: bool = False) -> None:
        """Write the hyperparameters beside the last report, and close the file."""
        from torch.utils.tensorboard.summary import hparams

        if self.hparams:
            # `add_hparams` would open a second run inside the folder. Without a description of the experiment the page
            # takes its columns from all runs, with those that differ first; the metrics are the last values of all
            # curves.
            _, start, end = hparams(self.hparams, {})
            file: Any = self.writer.file_writer
            for summary in (start, end):
                file.add_summary(summary, self.images)
        self.writer.close()


def open_writer(folder: Path, purge_step: int | None) -> SummaryWriter:
    """Return a writer of an event file in `folder`. Raises OSError."""
    import tensorboard.compat

    # The name that makes TensorBoard leave TensorFlow alone where it is installed.
    sys.modules.setdefault("tensorboard.compat.notf", tensorboard.compat)
    from torch.utils.tensorboard import SummaryWriter

    silence_writer_threads()
    order_before_now(folder)
    try:
        return SummaryWriter(str(folder), purge_step=purge_step, flush_secs=NEVER)
    except UnicodeEncodeError as error:  # a name typed in a locale without its letters
        raise OSError(errno.EILSEQ, "TensorBoard takes only names in UTF-8", str(folder)) from error


def order_before_now(folder: Path) -> None:
    """Rename event files that would be read after a new one, since the computer's clock was set back meanwhile.

    TensorBoard reads the files of a run in the order of their names, which begin with the time of their creation.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))
    prefix, now = "events.out.tfevents.", int(time.time())
    if not files or files[-1].name < f"{prefix}{now:010d}":
        return
    for number, path in enumerate(files):
        rest = path.name.removeprefix(prefix).partition(".")[2]
        path.rename(folder / f"{prefix}{max(now - len(files) + number, 0):010d}.{rest}")


@cache
def silence_writer_threads() -> None:
    """Print no traceback of a SummaryWriter's thread: the writer's next method raises the same exception."""
    previous = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if type(failure.thread).__name__ != "_AsyncWriterThread":
            previous(failure)

    threading.excepthook = hook


def select_hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """Return a nested config under dotted keys, as the page of hyperparameters shows it.

    None is `null`, so that every run has the same keys. Lists of anything but numbers, as networks' tables have, are
    left out.
    """
    return {
        key: value if isinstance(value, int | float | str) else "null" if value is None else str(value)
        for key, value in iterate_leaves(config, into_lists=False)
        if not isinstance(value, list) or all(isinstance(item, int | float) for item in value)
    }
