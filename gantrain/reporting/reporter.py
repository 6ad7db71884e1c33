"""What a run shows while it trains: metrics.jsonl, loggers such as TensorBoard, and one line on the screen.

All of them show the same numbers under the same names at the same clock, images shown to D. A resumed run first
removes the reports that lie after its checkpoint, so every report stands exactly once and no curve folds back.

Logs and pictures never cost a run: a logger that fails is dropped with one message, and other failures of their storage
are reported once (`Reporter.tolerate_failures`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from gantrain.console import SECONDS_BETWEEN_LINES, copy_text, ignore_closed_output, make_console, printable
from gantrain.errors import DataError, StorageError
from gantrain.files import refuse_replaced
from gantrain.plotting import DrawingError
from gantrain.runs import metrics_file

if TYPE_CHECKING:
    from torch import Tensor

    from gantrain.reporting.tensorboard import TensorBoard
    from gantrain.reporting.wandb import Mirror

    Logger = TensorBoard | Mirror

SECONDS_BETWEEN_REDRAWS = 0.25
LONGEST_SECONDS = 1e12
SECONDS_BEFORE_FORECAST = 10.0
LINES_A_RUN = 20  # plain lines, one after each of so many equal parts of the run


class Reporter:
    """Writes the reports of one run to its metrics file, its loggers and the console. Close it, or use it in a `with`.

    Args:
        folder: The run folder, which exists.
        total_images: The clock at which the run is done.
        start_images: The clock at which this process begins; reports after it are removed.
        console: Console of the progress line, standard output by default. If it is no terminal, it gets plain lines, of
            some reports.
        bound: The scalar that the line shows as the bound, e.g. `bound/gan`; another one is shown by its name.
        forecast: A function from the clock and images per second to a sentence about what comes when, printed once.
        loggers: Functions that open loggers, which are dropped when one of their methods raises OSError.
    """

    def __init__(
        self,
        folder: Path,
        total_images: int,
        start_images: int = 0,
        *,
        console: Console | None = None,
        bound: str = "",
        forecast: Callable[[int, float], str] | None = None,
        loggers: Sequence[Callable[[], Logger]] = (),
    ) -> None:
        self.total_images = total_images
        self.bound = bound
        self.console = console or make_console()
        self.latest: dict[str, float] = {}
        self.metrics = Path(folder) / "metrics.jsonl"
        self._images = start_images
        self._failures: set[object] = set()  # that were reported
        self._forecast = forecast
        self._began: tuple[float, int] | None = None  # time and clock after the first iteration, which may compile
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES  # when the next plain line is due
        self._next_redraw = 0.0
        self._part = -1  # of the run, of which a plain line was printed
        self._bar = _make_bar(self.console, total_images)
        self._loggers: list[Logger] = []
        with self.tolerate_failures():
            kept = metrics_file.drop_reports_after(self.metrics, start_images)
            kept.pop("images", None)
            self.latest = {name: math.nan if value is None else value for name, value in kept.items()}
        for open_logger in loggers:
            with self.tolerate_failures():
                refuse_replaced(self.metrics)
                self._loggers.append(logger := open_logger())
                if place := logger.place:
                    self.note(f"the run is mirrored to {place}")
        if self._bar is not None:
            self._redraw()
            with ignore_closed_output():
                self._bar.start()

    def report(self, images: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor] | None = None) -> None:
        """Write one report at the clock `images`, and show it on the progress line."""
        self.latest = {}
        self.record(images, scalars, histograms)
        if self._bar is not None:
            self._redraw()
        if self._is_due(images):
            self._add_line(self._format_line())

    def record(self, images: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor] | None = None) -> None:
        """Write numbers at the clock `images` without moving the progress line."""
        self.latest |= scalars
        self._images = images
        with self.tolerate_failures():
            metrics_file.append_report(self.metrics, images, scalars)
        self._write_to_loggers(lambda logger: logger.add_scalars(images, scalars, histograms))

    def add_picture(self, images: int, tag: str, path: Path) -> None:
        """Copy an image file to the loggers."""
        self._write_to_loggers(lambda logger: logger.add_picture(images, tag, path))

    def advance(self, images: int) -> None:
        """Move the progress line; cheap enough for every iteration, as it draws at most four times a second.

        Every minute the numbers are added as a plain line, too.
        """
        now, self._images = time.monotonic(), images
        began, begin = self._began = self._began or (now, images)
        if self._forecast is not None and now - began >= SECONDS_BEFORE_FORECAST:
            self.note(self._forecast(images, (images - begin) / (now - began)))
            self._forecast = None
        if self._bar is not None and now >= self._next_redraw:
            self._redraw()
        if now >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            self._add_line(self._format_line())

    def note(self, text: str) -> None:
        """Print a line of its own, above the progress line."""
        copy_text(text)
        with ignore_closed_output():
            self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def show_progress(self, what: str) -> Iterator[Callable[[int, int | None], None]]:
        """Show work between two iterations; yields `update(steps done, steps in all)`, as `console.show_progress`.

        Its share takes the place of the progress line, and is a plain line every minute.
        """
        due = time.monotonic() + SECONDS_BETWEEN_LINES

        def update(done: int, total: int | None) -> None:
            nonlocal due
            if not total:
                return
            line, now = f"{what}: {done / total:.0%}", time.monotonic()
            if self._bar is not None and now >= self._next_redraw:
                self._redraw(line)
            if now >= due:
                due = now + SECONDS_BETWEEN_LINES
                self._add_line(line)

        yield update

    def _add_line(self, text: str) -> None:
        """Print a plain line; where the progress line shows its text already, only what copies lines gets it."""
        if self._bar is None:
            self.note(text)
        else:
            copy_text(text)

    @contextmanager
    def tolerate_failures(self) -> Iterator[None]:
        """Go on if a log or a picture cannot be written; a failure is reported once for each cause."""
        try:
            yield
        except (OSError, DataError, DrawingError) as error:  # DataError: a metrics file that was damaged
            cause = getattr(error, "errno", type(error))
            if cause not in self._failures:
                self._failures.add(cause)
                self.note(f"cannot write logs or pictures, the run goes on without them: {error}")

    def _write_to_loggers(self, write: Callable[[Logger], None]) -> None:
        """Call `write` for each logger, and drop those that fail. Raises StorageError as `files.refuse_replaced`."""
        for logger in [*self._loggers]:
            try:
                refuse_replaced(self.metrics)  # each logger opens files by their path
                write(logger)
            except OSError as error:
                self._loggers.remove(logger)
                self.note(f"cannot write to {logger.name}, the run goes on without it: {error}")

    def close(self, *, failed: bool = False) -> None:
        """End the progress line and the loggers; may be called again."""
        if self._bar is not None:
            self._redraw()
            with ignore_closed_output():
                self._bar.stop()
            self._bar = None
        try:
            self._write_to_loggers(lambda logger: logger.close(failed=failed))
        except StorageError:
            if not failed:  # else it must not hide what ended the run
                raise
        self._loggers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(failed=exception[0] is not None)

    def _format_line(self) -> str:
        """Return e.g. `images 10,000/200,000  312 images/s  left 0:10:09  loss D 1.32 G 0.71  bound 0.08`."""
        parts = [f"images {self._images:,}/{self.total_images:,}"]
        rate = self.latest.get("speed/images_per_second", math.nan)
        if not self.latest and self._began is not None:
            began, begin = self._began
            seconds = time.monotonic() - began  # read once: a clock may jump back between two readings
            rate = (self._images - begin) / seconds if seconds > 0 else math.nan
        if rate > 0:
            seconds = min(max(self.total_images - self._images, 0) / rate, LONGEST_SECONDS)
            parts += [f"{rate:,.0f} images/s", f"left {timedelta(seconds=round(seconds))}"]
        if "loss/discriminator" in self.latest:
            generator = self.latest.get("loss/generator", math.nan)
            parts.append(f"loss D {self.latest['loss/discriminator']:.3g} G {generator:.3g}")
        if self.bound in self.latest:
            label = "bound" if "bound/" in self.bound else self.bound.rpartition("/")[2]
            error = self.latest.get(f"{self.bound}_error", math.nan)
            note = " (heavy tail)" if math.isinf(error) else "" if math.isnan(error) else f" ± {error:.1g}"
            parts.append(f"{label} {self.latest[self.bound]:.3g}{note}")
        return "  ".join(parts)

    def _is_due(self, images: int) -> bool:
        """Whether the report at `images` is worth a plain line: the first, the last, and some between them."""
        part, now = LINES_A_RUN * images // self.total_images, time.monotonic()
        if part <= self._part and now < self._next_line:
            return False
        self._part, self._next_line = part, now + SECONDS_BETWEEN_LINES
        return True

    def _redraw(self, line: str = "") -> None:
        assert self._bar is not None
        self._next_redraw = time.monotonic() + SECONDS_BETWEEN_REDRAWS
        text = printable(line or self._format_line())
        self._bar.update(self._bar.task_ids[0], completed=self._images, description=text)
        with ignore_closed_output():
            self._bar.refresh()


def _make_bar(console: Console, total_images: int) -> Progress | None:
    """Return a bar with a line of text, which is folded if it is too long; None if lines cannot be redrawn."""
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    line = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    bar = Progress(BarColumn(bar_width=10), line, console=console, auto_refresh=False)
    bar.add_task("", total=total_images)
    return bar
