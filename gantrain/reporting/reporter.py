"""What a run tells while it trains: metrics.jsonl, TensorBoard, and one line on the screen.

All three show the same numbers under the same names at the same clock, images shown to D. A resumed run first takes
back the reports that lie after its checkpoint, so every report stands exactly once and no curve folds back.

Logs and pictures never cost a run: when their storage fails, the run says so once and goes on
(`Reporter.sparing_the_run`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from gantrain.console import printable, seen_or_not
from gantrain.errors import DataError
from gantrain.reporting.tensorboard import EventFile
from gantrain.runs import metrics_file
from gantrain.screen import Screen

if TYPE_CHECKING:
    from torch import Tensor

    from gantrain.reporting.wandb import Mirror

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
        suprema: The largest value of each divergence that has one, by name, for TensorBoard.
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
        self.console = console or Screen()
        self.latest: dict[str, float] = {}
        self._metrics = self.folder / metrics_file.NAME
        self._images = self._latest_images = start_images
        self._checkpoint = ""
        self._told: set[int | None] = set()
        self._next_redraw = 0.0
        self._part = -1
        self._bar = _progress_bar(self.console, total_images)
        self._events = EventFile(self.folder, start_images, suprema) if tensorboard else None
        self._mirror: Mirror | None = None
        with self.sparing_the_run():
            kept = metrics_file.drop_reports_after(self._metrics, start_images)
            self.latest = {name: math.nan if value is None else value for name, value in kept.items()}
            self._latest_images = int(self.latest.pop("images", start_images))
        if mirror is not None:
            with self.sparing_the_run():
                self._mirror = mirror()
                self.note(f"the run is mirrored to {self._mirror.place}")
        if config_text and start_images == 0 and self._events is not None:
            with self.sparing_the_run():
                self._events.config(config_text)
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
        self.latest |= scalars
        self._latest_images = self._images = images
        with self.sparing_the_run():
            metrics_file.append_report(self._metrics, images, scalars)
        if self._events is not None:
            with self.sparing_the_run():
                self._events.scalars(images, scalars, histograms or {})
        if self._mirror is not None:
            with self.sparing_the_run():
                self._mirror.scalars(images, scalars)

    def picture(self, images: int, tag: str, picture: Tensor | Path) -> None:
        """Show a picture in TensorBoard: a float tensor `[C, H, W]` in [0, 1], or an image file, which is mirrored."""
        if self._events is not None:
            with self.sparing_the_run():
                self._events.picture(images, tag, picture)
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
        if self._events is not None and self.hparams and self.latest:
            with self.sparing_the_run():
                self._events.hparams(self._latest_images, self.hparams)
            self.hparams = {}
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
