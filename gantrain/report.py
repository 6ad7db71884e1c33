"""What a run tells while it trains: metrics.jsonl, TensorBoard, and one line on the screen.

All three show the same numbers under the same names at the same clock, images shown to D. metrics.jsonl has one strict
JSON object a report, `{"images": …, "loss/discriminator": …}`, with null for a value that is not finite. A resumed run
first takes back the reports that lie after its checkpoint, so every report stands exactly once and no curve folds back.

Logs and pictures never cost a run: when their storage fails, the run says so once and goes on
(`Reporter.sparing_the_run`).
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from gantrain.errors import DataError
from gantrain.screen import Screen
from gantrain.terminal import printable, seen_or_not

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from gantrain.wandb_mirror import Mirror

METRICS = "metrics.jsonl"
EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
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
SECONDS_BETWEEN_REDRAWS = 0.25
# Plain lines: after each of so many equal parts of the run, and after so long.
LINES_A_RUN, SECONDS_BETWEEN_LINES = 20, 60.0


class Reporter:
    """The metrics file, the TensorBoard events and the progress line of one run.

    Close it, or use it in a `with`: the line gives the cursor back, and the hyperparameters reach TensorBoard beside
    the last report.

    Args:
        folder: The run folder, which exists.
        total_images: The clock at which the run is done.
        start_images: The clock at which this process begins; reports after it are taken back.
        console: Where the line goes; standard output when None. Plain lines, of some reports, when it is no terminal.
        config_text: The composed configuration as YAML, for TensorBoard's text page.
        hparams: Names and values for TensorBoard's HParams page.
        bound: The scalar that the line shows as the bound, e.g. `bound/gan`; the first one reported when empty.
        suprema: The largest value of each divergence that has one, by name: TensorBoard's chart of all bounds shows
            them as lines.
        tensorboard: Whether TensorBoard's events are written.
        mirror: Opens the mirror of numbers and pictures elsewhere, where there is one.
    """

    def __init__(
        self,
        folder: Path,
        total_images: int,
        start_images: int = 0,
        console: Console | None = None,
        config_text: str = "",
        hparams: Mapping[str, Any] | None = None,
        bound: str = "",
        suprema: Mapping[str, float] | None = None,
        tensorboard: bool = True,
        mirror: Callable[[], Mirror] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.total_images = total_images
        self.hparams = dict(hparams or {})
        self.bound = bound
        self.suprema = dict(suprema or {})
        self.console = console or Screen()
        self.latest: dict[str, float] = {}
        self._images = self._latest_images = start_images
        self._checkpoint = ""
        self._told: set[int | None] = set()
        self._next_redraw = 0.0
        self._part = -1
        self._bar = _progress_bar(self.console, total_images)
        self._events = EventFile(self.folder, start_images) if tensorboard else None
        self._mirror: Mirror | None = None
        with self.sparing_the_run():
            kept = drop_reports_after(self.folder / METRICS, start_images)
            self.latest = {name: math.nan if value is None else value for name, value in kept.items()}
            self._latest_images = int(self.latest.pop("images", start_images))
        if mirror is not None:
            with self.sparing_the_run():
                self._mirror = mirror()
                self.note(f"the run is mirrored to {self._mirror.place}")
        if config_text and start_images == 0:
            self._write_config(config_text)
        if self._bar is not None:
            self._redraw()
            with seen_or_not():
                self._bar.start()

    def report(self, images: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor] | None = None) -> None:
        """Write one report at the clock `images`: a metrics row, the TensorBoard curves, the progress line."""
        self.latest = {}
        self.record(images, scalars, histograms)
        if self._bar is not None:
            self._redraw()
        elif self._is_due(images):
            self._print(self._line())

    def record(self, images: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor] | None = None) -> None:
        """Write numbers at the clock `images` without moving the progress line."""
        from torch.utils.tensorboard import summary

        self.latest |= scalars
        self._latest_images = self._images = images
        with self.sparing_the_run():
            append_whole(self.folder / METRICS, _row(images, scalars).encode())
        with self.sparing_the_run():
            curves = [summary.scalar(name, value) for name, value in scalars.items()]
            curves += [summary.scalar(f"supremum/{name}", value) for name, value in self.suprema.items()]
            counts = [_histogram(name, values) for name, values in (histograms or {}).items()]
            self._show(images, *curves, *filter(None, counts))
        if self._mirror is not None:
            with self.sparing_the_run():
                self._mirror.scalars(images, scalars)

    def picture(self, images: int, tag: str, picture: Tensor | Path) -> None:
        """Show a picture in TensorBoard: a float tensor `[C, H, W]` in [0, 1], or an image file, which is mirrored."""
        from torch.utils.tensorboard import summary

        with self.sparing_the_run():
            if isinstance(picture, Path):
                shown = summary.image(tag, _pixels(picture), dataformats="HWC")
            else:
                shown = summary.image(tag, picture, dataformats="CHW")
            self._show(images, shown)
        if self._mirror is not None and isinstance(picture, Path):
            with self.sparing_the_run():
                self._mirror.picture(images, tag, picture)

    def progress(self, images: int) -> None:
        """Move the progress line; cheap enough for every iteration: it draws at most four times a second."""
        self._images = images
        if self._bar is not None and time.monotonic() >= self._next_redraw:
            self._redraw()

    def note(self, text: str) -> None:
        """Print a line of its own, above the progress line."""
        self._print(text)

    def checkpoint(self, name: str) -> None:
        """Note a saved checkpoint, which the progress line names from now on."""
        self._checkpoint = name
        self.note(f"checkpoint {name}")

    @contextmanager
    def sparing_the_run(self) -> Iterator[None]:
        """Write what is not worth a run, a log or a picture: a failure is told once for each cause, and forgotten."""
        try:
            yield
        except (OSError, DataError) as error:  # DataError is a metrics file that somebody damaged
            cause = getattr(error, "errno", None)
            if cause not in self._told:
                self._told.add(cause)
                self.note(f"cannot write logs or pictures, the run goes on without them: {error}")

    def close(self, *, failed: bool = False) -> None:
        """Write the hyperparameters beside the last report, end mirror and progress line; may be called again."""
        if self.hparams and self.latest:
            self._write_hparams()
        if self._mirror is not None:
            with self.sparing_the_run():
                self._mirror.finish(failed=failed)
            self._mirror = None
        if self._bar is not None:
            self._redraw()
            with seen_or_not():
                self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(failed=exception[0] is not None)

    def _show(self, images: int, *summaries: Any) -> None:
        if self._events is not None:
            self._events.add(images, *summaries)

    def _write_hparams(self) -> None:
        # SummaryWriter.add_hparams would open a second run inside the folder.
        from torch.utils.tensorboard import summary

        hparams = {name: _hparam(value) for name, value in self.hparams.items()}
        # The page would take its columns from the first run's description of the experiment; without any it takes them
        # from all runs, and puts first what differs. The metrics are then the last values of all curves.
        _, start, end = summary.hparams(hparams, {})
        with self.sparing_the_run():
            self._show(self._latest_images, start, end)
        self.hparams = {}

    def _write_config(self, config_text: str) -> None:
        from torch.utils.tensorboard import summary

        with self.sparing_the_run():
            text = summary.text("config", f"```yaml\n{config_text}\n```")
            self._show(0, text, summary.custom_scalars(CHARTS))

    def _line(self) -> str:
        """E.g. `images 10,000/200,000  312 images/s  left 00:10:09  loss D 1.32 G 0.71  bound 0.08`."""
        parts = [f"images {self._images:,}/{self.total_images:,}"]
        rate = self.latest.get("speed/images_per_second", math.nan)
        if rate > 0:
            parts += [f"{rate:,.0f} images/s", f"left {_clock_time((self.total_images - self._images) / rate)}"]
        if "loss/discriminator" in self.latest:
            losses = self.latest["loss/discriminator"], self.latest.get("loss/generator", math.nan)
            parts.append("loss D {:.3g} G {:.3g}".format(*losses))
        bound = self.bound or next((name for name in self.latest if "bound/" in name), "")
        if bound in self.latest:
            parts.append(f"bound {self.latest[bound]:.3g}")
        if self._checkpoint and self._bar is not None:
            parts.append(self._checkpoint)
        return "  ".join(parts)

    @contextmanager
    def watching(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Work between two iterations, told step by step: its share takes the place of the line, or is a plain line."""
        interval = SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_REDRAWS
        due = time.monotonic() + interval

        def told(step: int, steps: int) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + interval
                (self._print if self._bar is None else self._redraw)(f"{what}: {step / steps:.0%}")

        yield told

    def _is_due(self, images: int) -> bool:
        """Whether the report at `images` is worth a plain line: the first, the last, and some between them."""
        part, now = LINES_A_RUN * images // self.total_images, time.monotonic()
        if part <= self._part and now < self._next_redraw:
            return False
        self._part, self._next_redraw = part, now + SECONDS_BETWEEN_LINES
        return True

    def _redraw(self, line: str = "") -> None:
        assert self._bar is not None
        self._next_redraw = time.monotonic() + SECONDS_BETWEEN_REDRAWS
        self._bar.update(self._bar.task_ids[0], completed=self._images, description=printable(line or self._line()))
        with seen_or_not():
            self._bar.refresh()

    def _print(self, text: str) -> None:
        with seen_or_not():
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class EventFile:
    """A TensorBoard event file, of which every addition is written whole or not at all.

    SummaryWriter hands events to a thread, which on a full disk dies with a traceback and takes every later event with
    it; here an addition is one write by the caller, and the next one may succeed again. The file begins with the first
    addition. A resumed run's file first tells TensorBoard to forget the steps after `start_images`, and its name sorts
    last, whatever the clock says: TensorBoard reads files in that order.
    """

    def __init__(self, folder: Path, start_images: int = 0) -> None:
        stamps = [int(found[1]) for path in folder.iterdir() if (found := EVENT_FILE.match(path.name))]
        stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
        self.path = folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.start_images = start_images
        self._begun = False

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


def append_whole(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing: half a record would spoil the one after it. Links are not followed.

    Raises:
        OSError: The storage is full, read-only or failing; the file is as it was.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(size)
            raise


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The reports of a metrics file, in the order of the clock; a last line torn by a kill is left out.

    Raises:
        DataError: The file is missing, or another line than the last is not a report.
    """
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    reports = [_parsed(line) for line in lines]
    if reports and reports[-1] is None:
        reports.pop()
    for number, report in enumerate(reports, start=1):
        if report is None:
            raise DataError(f"{path}, line {number} is not a report (one JSON object with `images`)")
    return [report for report in reports if report is not None]


def drop_reports_after(path: Path, images: int) -> dict[str, Any]:
    """Cut a metrics file before its first report beyond the clock `images`; a torn last line goes too.

    Returns the last value of each number that stays, with the clock of the last report; empty when there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return {}
    last: dict[str, Any] = {}
    with open(descriptor, "r+b") as file:
        kept = 0
        for line in file:
            report = _parsed(line)
            if not line.endswith(b"\n") or (report is not None and report["images"] > images):
                break
            kept += len(line)
            last |= report or {}
        file.truncate(kept)
    return last


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The report on a line, or None for a line that is torn or is no report."""
    try:
        report = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(report, dict) and isinstance(report.get("images"), int)
    return report if whole else None


def _row(images: int, scalars: Mapping[str, float]) -> str:
    values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
    return json.dumps({"images": images, **values}, allow_nan=False) + "\n"


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
    finite = values[values.isfinite()]
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


def _progress_bar(console: Console, total_images: int) -> Progress | None:
    """A bar with a line of text, which is folded where it is too long, or None where lines cannot be redrawn."""
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    line = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    bar = Progress(BarColumn(bar_width=10), line, console=console, auto_refresh=False)
    bar.add_task("", total=total_images)
    return bar


def _clock_time(seconds: float) -> str:
    """Seconds as `hours:minutes:seconds`."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
