"""`metrics.jsonl`: every number that a run reports.

Each line is a strict JSON object, `{"images": …, "loss/discriminator": …}`, with null for a value that is not finite.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gantrain.errors import DataError
from gantrain.files import append_record, read_regular_file, refuse_replaced, replace_non_finite


def append_report(path: Path, images: int, scalars: Mapping[str, float]) -> None:
    """Append one report at the clock `images`. Raises OSError; the file is then unchanged."""
    report = {"images": images, **replace_non_finite(scalars)}
    append_record(path, (json.dumps(report, allow_nan=False) + "\n").encode())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the reports of a metrics file, in the order of the clock; a last line torn by a kill is left out.

    Raises DataError if the file is missing, or if another line than the last is not a report.
    """
    try:
        lines = read_regular_file(path).splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    reports = [_parse_report(line) for line in lines]
    if reports and reports[-1] is None:
        reports.pop()
    for number, report in enumerate(reports, start=1):
        if report is None:
            raise DataError(f"{path}, line {number} is not a report (one JSON object with `images`)")
    return [report for report in reports if report is not None]


def means_over_last_tenth(reports: Sequence[Mapping[str, Any]], group: str) -> dict[str, float]:
    """Return the means of the scalars called `group…` over the last tenth of a run, by their names without `group`.

    The last tenth are the reports with a clock above 0.9 of the last one. Non-finite values, which are None or missing,
    are left out, and so is a scalar that has no others.
    """
    late = [report for report in reports if report["images"] > 0.9 * reports[-1]["images"]]
    names = dict.fromkeys(name for report in late for name in report if name.startswith(group))
    values = {name: [v for report in late if (v := report.get(name)) is not None] for name in names}
    return {name.removeprefix(group): sum(found) / len(found) for name, found in values.items() if found}


def drop_reports_after(path: Path, images: int) -> dict[str, Any]:
    """Cut a metrics file before its first report beyond the clock `images`; a torn last line is dropped too.

    Returns the last value of each number that is kept, with the clock of the last report; empty if there is none.
    """
    refuse_replaced(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return {}
    last: dict[str, Any] = {}
    with open(descriptor, "r+b") as file:
        kept = 0
        for line in file:
            report = _parse_report(line)
            if not line.endswith(b"\n") or (report is not None and report["images"] > images):
                break
            kept += len(line)
            last |= report or {}
        file.truncate(kept)
    return last


def _parse_report(line: bytes) -> dict[str, Any] | None:
    """Return the report on a line, or None if the line is torn or is no report."""
    try:
        report = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(report, dict) and isinstance(report.get("images"), int)
    return report if whole else None
