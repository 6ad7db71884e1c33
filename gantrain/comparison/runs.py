"""Run folders as they are found. Nothing in them is trusted: they may come from somebody else.

A folder is a run when it holds `.hydra/config.yaml`; `summary.json` says what became of it. Files are read only where
they really lie in the run folder (no link leads out of it), are regular, and are no larger than such a file can be;
YAML and JSON make plain values only; every text is freed of control characters and shortened here, once. Settings are
compared as the text that they have in YAML, and nothing in them is resolved.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from gantrain.console import printable
from gantrain.errors import DataError
from gantrain.nested import leaves

STATUSES = ("finished", "stopped", "failed", "running")
OF_SAMPLES = ("quality/", "diversity/")  # metrics that an evaluation measures
CURVES = ("images", "loss/", "bound/", "training_bound/")  # of metrics.jsonl; the rest stays on disk
LARGEST_BYTES = {".yaml": 2**18, ".json": 2**24, ".jsonl": 2**28, ".png": 2**24}
MOST_BRACKETS = 1000  # of a YAML file: its reader's time grows with the square of their depth
MOST_PIXELS = 2**24
LONGEST_TEXT, MOST_LINES = 1000, 20
LARGEST_NUMBER = 1e100  # beyond, a mean of squares would overflow
SHOWN_PIXELS = 800  # the longer side of a picture that goes into a page


@dataclass(frozen=True)
class Run:
    """What one run folder tells. `settings` has dotted keys; `metrics` are the last report's and the evaluation's."""

    path: Path
    settings: dict[str, str]
    overrides: list[str]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    reports: list[dict[str, float]]

    @property
    def status(self) -> str:
        """How it ended, one of `STATUSES`, or unknown."""
        status = self.summary.get("status")
        return status if status in STATUSES else "unknown"

    @property
    def finished(self) -> bool:
        """Whether it came to its end: only then do its numbers count."""
        return self.status == "finished"

    @property
    def reason(self) -> str:
        """Why it did not finish."""
        if self.finished:
            return ""
        if self.status == "running":
            return "it is still running, or was killed"
        told = self.summary.get("reason")
        lines = told.splitlines()[:MOST_LINES] if isinstance(told, str) else []
        return "\n".join(map(clean, lines)) or "it ended without a word in its summary"

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return self.settings.get("seed", "")

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The finite numbers of the last report and of the evaluation, which alone tells of samples where it is."""
        reported, measured = numbers(self.summary.get("metrics")), self.evaluation.get("metrics")
        if measured:
            reported = {name: value for name, value in reported.items() if not name.startswith(OF_SAMPLES)}
        return reported | numbers(measured)

    @property
    def early_clock(self) -> float | None:
        """The evaluation's clock where it is not that of the run's end; None where it is, or either is unknown."""
        clock, end = number(self.evaluation.get("images")), number(self.summary.get("images"))
        return None if end is None or clock == end else clock

    @cached_property
    def reference(self) -> dict[str, float]:
        """The finite numbers that training examples got in the evaluation, in place of samples."""
        return numbers(self.evaluation.get("reference"))

    def fact(self, *keys: str | int) -> Any:
        """A value from `summary.json` by its keys and places, one inside the other; None where there is none."""
        return within(self.summary, *keys)

    def grid(self) -> str | None:
        """The newest sample grid's name in the folder."""
        names = [path.name for path in (self.path / "samples").glob("images_*.png")]
        numbered = [name for name in names if re.fullmatch(r"images_[0-9]{12}\.png", name)]
        return f"samples/{max(numbered)}" if numbered else None


def collect(folders: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """The runs in and below `folders`, each once, in the order of their names; and why others cannot be read.

    Raises DataError for a folder that is none.
    """
    runs: list[Run] = []
    unreadable: dict[Path, str] = {}
    seen = set()
    for top in folders:
        if not top.is_dir():
            raise DataError(f"{top} is not a folder; name runs, sweeps, or a tree that holds them, such as runs")
        for folder in run_folders(top):
            if (place := folder.resolve()) in seen:
                continue
            seen.add(place)
            try:
                runs.append(read(folder))
            except DataError as error:
                unreadable[folder] = clean(str(error))
    return runs, unreadable


def run_folders(top: Path) -> Iterator[Path]:
    """Every run in or below `top`; links to folders are not followed, and no run lies inside another."""
    for where, folders, _ in os.walk(top):
        if (Path(where) / ".hydra" / "config.yaml").is_file():
            folders.clear()
            yield Path(where)
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=in_order)


def in_order(name: str) -> list[tuple[float, str]]:
    """A sorting key that puts job 9 before job 10, and alpha_-0.5 before alpha_0.25."""
    parts = re.split(r"((?:(?<=_)-)?[0-9]+(?:\.[0-9]+)?)", name)
    return [(float(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]


def read(folder: Path) -> Run:
    """A run, from its files. Raises DataError for a damaged one, and for one that has not begun to train."""
    if not (summary := _json(folder, "summary.json")):
        raise DataError("summary.json is missing or empty: it has not begun to train, or was killed before it did")
    return Run(
        path=folder,
        settings={clean(key): worded(value) for key, value in settings(folder, ".hydra/config.yaml")},
        overrides=[worded(value) for _, value in settings(folder, ".hydra/overrides.yaml")],
        summary=summary,
        evaluation=_json(folder, "evaluation.json"),
        reports=list(_reports(folder)),
    )


def picture(run: Run, name: str) -> bytes:
    """A picture of the run as a new PNG, at most `SHOWN_PIXELS` wide and high, with nothing but its pixels.

    Raises DataError unless the file is a whole PNG of a size that can be shown.
    """
    import numpy as np
    from PIL import Image

    data = content(run.path, name)
    if data is None:
        raise DataError(f"{name} is missing")
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=("PNG",))
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{image.width}×{image.height} are more than {MOST_PIXELS:,} pixels")
            image.verify()  # all checksums, which decoding does not compare; it closes the image
            pixels = Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB")
    except Exception as error:  # a damaged file can raise anything inside a decoder
        raise DataError(f"{name} is no picture that can be shown: {clean(str(error))}") from error
    pixels.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    shown, buffer = np.asarray(pixels), io.BytesIO()
    if (shown == shown[..., :1]).all():
        shown = shown[..., 0]  # grey takes a third less
    Image.fromarray(shown).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Files


def content(folder: Path, name: str) -> bytes | None:
    """The bytes of a file of the run; None where there is none. Raises DataError for what is no file of its own."""
    most = LARGEST_BYTES[Path(name).suffix]
    try:
        place = (folder / name).resolve(strict=True)
        if not place.is_relative_to(folder.resolve()):
            raise DataError(f"{name} is a link out of the run folder")
        # Without O_NONBLOCK a named pipe would wait for its writer.
        with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise DataError(f"{name} is not a regular file")
            if facts.st_size > most:
                raise DataError(f"{name} has {facts.st_size:,} bytes; {most:,} are the most")
            return file.read(most)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:  # RuntimeError is a link to itself
        raise DataError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def settings(folder: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a YAML file, nothing resolved; none where there is no file.

    Raises DataError for YAML that is none, or is made to exhaust its reader.
    """
    try:
        text = (content(folder, name) or b"").decode()
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise DataError(f"{name} has more brackets than {MOST_BRACKETS:,}")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise DataError(f"{name} repeats parts of itself, which gantrain never writes")
        yield from leaves(yaml.safe_load(text) or {})
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{name} is not YAML: {clean(str(error))}") from error


def _json(folder: Path, name: str) -> dict[str, Any]:
    """One JSON object; empty where there is no file. Raises DataError."""
    data = content(folder, name)
    if data is None:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {clean(str(error))}") from error
    if not isinstance(found, dict):
        raise DataError(f"{name} is not a JSON object")
    return found


def _reports(folder: Path) -> Iterator[dict[str, float]]:
    """The reports' losses and bounds; lines that are no report are passed over."""
    for line in (content(folder, "metrics.jsonl") or b"").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and number(row.get("images")) is not None:
            numbers = {name: number(value) for name, value in row.items() if name.startswith(CURVES)}
            yield {clean(name): value for name, value in numbers.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Values


def within(value: Any, *keys: str | int) -> Any:
    """A value inside nested mappings and lists, by one key or place after the other; None where there is none."""
    for key in keys:
        if isinstance(key, int):
            value = value[key] if isinstance(value, list) and key < len(value) else None
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any) -> float | None:
    """A finite number of a size that can be reckoned with; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_NUMBER:
        return None
    return float(value)


def numbers(named: Any) -> dict[str, float]:
    """The finite numbers of a mapping, by their names."""
    values = {clean(name): number(value) for name, value in named.items()} if isinstance(named, dict) else {}
    return {name: value for name, value in values.items() if value is not None}


def clean(value: Any) -> str:
    """A text from outside on one line, printable and not endless; empty for anything else."""
    text = " ".join(printable(value).split()) if isinstance(value, str) else ""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def worded(value: Any) -> str:
    """A value of a setting, as YAML words it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return "a number too large to show"
    return clean(str(value))
