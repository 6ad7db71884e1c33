"""TensorBoard's view of a run: one event file a process, of the same numbers under the same names at the same clock."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.files import append_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
LARGEST_BINNED = 1e12  # beyond, NumPy has no room for bins around equal values
# TensorBoard's page of custom charts: regular expressions of scalar names.
CHARTS = {
    "training": {"losses": ["Multiline", ["loss/.*"]]},
    "divergences": {
        "bounds, and the suprema they cannot exceed": ["Multiline", ["bound/.*", "training_bound/.*", "supremum/.*"]],
        "plug-in estimates": ["Multiline", ["estimate/.*", "training_estimate/.*"]],
    },
    "ratio": {
        "mean log-ratio": ["Multiline", ["ratio/(real|fake)_mean"]],
        "calibration (1 for a true ratio)": ["Multiline", ["ratio/calibration_.*"]],
    },
    "quality": {
        "distances of features": ["Multiline", ["quality/(fid|kid)_[a-z]+$"]],
        "precision, density, share of high quality": ["Multiline", ["quality/(precision|density|high_quality_share)"]],
        "inception score": ["Multiline", ["quality/inception_score.*"]],
    },
    "diversity": {
        "recall, coverage, distance of two samples": ["Multiline", ["diversity/(recall|coverage|pairwise_distance)"]],
        "classes": ["Multiline", ["diversity/class_.*"]],
        "modes found, classes missing": ["Multiline", ["diversity/(modes.*|missing_classes)"]],
    },
}


class EventFile:
    """A TensorBoard event file, of which every addition is written whole or not at all.

    SummaryWriter hands events to a thread, which on a full disk dies with a traceback and takes every later event with
    it; here an addition is one write by the caller, and the next one may succeed again. The file begins with the first
    addition. A resumed run's file first tells TensorBoard to forget the steps after `start_images`, and its name sorts
    last, whatever the clock says: TensorBoard reads files in that order. Every method raises OSError.

    Args:
        folder: The run folder.
        start_images: The clock at which this process begins.
        suprema: The largest value of each divergence that has one, by name: lines in the chart of all bounds.
    """

    def __init__(self, folder: Path, start_images: int = 0, suprema: Mapping[str, float] | None = None) -> None:
        stamps = [int(found[1]) for path in folder.iterdir() if (found := EVENT_FILE.match(path.name))]
        stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
        self.path = folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.start_images = start_images
        self.suprema = dict(suprema or {})
        self._begun = False

    def config(self, text: str) -> None:
        """The composed configuration, YAML, as a page of text; and how the page of charts is laid out."""
        from torch.utils.tensorboard import summary

        self.add(0, summary.text("config", f"```yaml\n{text}\n```"), summary.custom_scalars(CHARTS))

    def scalars(self, images: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor]) -> None:
        """Numbers, and the distributions of some, at the clock `images`."""
        from torch.utils.tensorboard import summary

        curves = [summary.scalar(name, value) for name, value in scalars.items()]
        curves += [summary.scalar(f"supremum/{name}", value) for name, value in self.suprema.items()]
        counts = [_histogram(name, values) for name, values in histograms.items()]
        self.add(images, *curves, *filter(None, counts))

    def picture(self, images: int, tag: str, picture: Tensor | Path) -> None:
        """A float tensor `[C, H, W]` in [0, 1], or an image file, at the clock `images`."""
        from torch.utils.tensorboard import summary

        if isinstance(picture, Path):
            self.add(images, summary.image(tag, _pixels(picture), dataformats="HWC"))
        else:
            self.add(images, summary.image(tag, picture, dataformats="CHW"))

    def hparams(self, images: int, hparams: Mapping[str, Any]) -> None:
        """Hyperparameters, beside the report at the clock `images`."""
        # SummaryWriter.add_hparams would open a second run inside the folder.
        from torch.utils.tensorboard import summary

        # The page would take its columns from the first run's description of the experiment; without any it takes them
        # from all runs, and puts first what differs. The metrics are then the last values of all curves.
        _, start, end = summary.hparams({name: _hparam(value) for name, value in hparams.items()}, {})
        self.add(images, start, end)

    def add(self, step: int, *summaries: Any) -> None:
        """Append summaries, as the functions of `torch.utils.tensorboard.summary` make them, at `step`."""
        from tensorboard.compat.proto.event_pb2 import Event

        now = time.time()
        events = [] if self._begun else self._header(now)
        events += [Event(wall_time=now, step=step, summary=summary) for summary in summaries]
        append_whole(self.path, _records(events))
        self._begun = True

    def _header(self, now: float) -> list[Any]:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        version = Event(wall_time=now, file_version="brain.Event:2")
        if self.start_images == 0 and not any(self.path.parent.glob("events.out.tfevents.*")):
            return [version]
        restart = SessionLog(status=SessionLog.START)
        return [version, Event(wall_time=now, step=self.start_images + 1, session_log=restart)]


def _records(events: list[Any]) -> bytes:
    """The events in TensorBoard's record format (length, checksums, message)."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()


def _histogram(name: str, values: Tensor) -> Any:
    """A histogram of the finite values, None where there are none."""
    from torch.utils.tensorboard import summary

    values = values.detach().float().cpu().flatten()
    finite = values[values.isfinite()].clamp(-LARGEST_BINNED, LARGEST_BINNED)
    return summary.histogram(name, finite, bins=64) if len(finite) else None


def _pixels(path: Path) -> NDArray[np.uint8]:
    """An image file as uint8 `[H, W, 3]`."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _hparam(value: Any) -> bool | float | str:
    """What the page can show; `null`, as in the config, so that every run has the same keys."""
    return value if isinstance(value, (bool, int, float, str)) else "null" if value is None else str(value)
