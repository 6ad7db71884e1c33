"""Rows of compare.csv, one a run, and of compare.json, one a test, with unrounded numbers; Python returns the same."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from typing import Any

from gantrain.comparison.comparison import Comparison
from gantrain.comparison.configurations import describe_weights
from gantrain.comparison.labels import short_key
from gantrain.comparison.runs import EFFECTIVE_ORDER, provenance
from gantrain.comparison.statistics import Difference, Trend
from gantrain.comparison.untrusted import format_setting

TEST_KEYS = (
    *("metric", "configuration", "baseline", "key", "configurations", "seeds", "difference", "low", "high"),
    *("failed", "runs", "baseline_failed", "baseline_runs", "test", "p", "holm_p", "more_seeds", "verdict"),
)


def run_rows(comparison: Comparison) -> list[dict[str, str | int | float | None]]:
    """Return a row for each run: the settings that differ as text, provenance, and all metrics as unrounded numbers.

    All rows have the same keys; a value that a run lacks is None.
    """
    facts = list(dict.fromkeys(name for run in comparison.runs for name in provenance(run)))
    metrics = list(dict.fromkeys(name for run in comparison.runs for name in run.metrics))
    rows: list[dict[str, str | int | float | None]] = []
    for configuration in comparison.configurations:
        for run in configuration.runs:
            described, made = describe_weights(run, run.weights.get(EFFECTIVE_ORDER)), provenance(run)
            row: dict[str, str | int | float | None] = {
                "run": str(run.path),
                "configuration": configuration.label,
                "baseline": configuration is comparison.baseline,
                **{short_key(key): value for key, value in configuration.values.items()},
                "seed": _whole_number(run.seed),
                "status": run.status,
                "reason": run.reason,
                "images": _whole_number(format_setting(run.fact("images"))),
                **{head: described[head] for head in comparison.descriptions},
                **{name: made.get(name) for name in facts},
                **{name: run.metrics.get(name) for name in metrics},
            }
            rows.append(row)
    return rows


def finding_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each test, with unrounded numbers; all rows have the same keys, what a test lacks is None.

    `more_seeds` is None too where more than MOST_MORE_SEEDS would be needed.
    """
    rows = []
    for found in itertools.chain(*comparison.differences.values(), *comparison.trends.values()):
        more = found.more_seeds
        row: dict[str, Any] = {
            "metric": found.metric,
            "seeds": found.seeds,
            "test": found.test or None,
            "p": found.p,
            "holm_p": found.holm_p,
            "more_seeds": None if more is None or math.isinf(more) else int(more),
            "verdict": found.verdict,
        }
        if isinstance(found, Difference):
            row |= {"configuration": found.configuration.label, "baseline": comparison.baseline.label}
            row |= {"difference": found.estimate and found.estimate.mean, "low": found.low, "high": found.high}
            row |= zip(("failed", "runs"), found.failed, strict=True)
            row |= zip(("baseline_failed", "baseline_runs"), found.baseline_failed, strict=True)
        elif isinstance(found, Trend):
            row |= {"key": short_key(found.key), "configurations": [each.label for each in found.configurations]}
        rows.append(dict.fromkeys(TEST_KEYS) | row)
    return rows


def _whole_number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"\d{1,18}", text) else text


def csv_text(comparison: Comparison) -> str:
    """Return compare.csv, which has the rows of `run_rows`."""
    rows, text = run_rows(comparison), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_csv_cell, rows[0]))
    for row in rows:
        writer.writerow(map(_csv_cell, row.values()))
    return text.getvalue()


def _csv_cell(value: str | float | None) -> str:
    """Return a value as text; a text that a spreadsheet would take for a formula is quoted."""
    if not isinstance(value, str):
        return "" if value is None else repr(value)
    return f"'{value}" if value[:1] in tuple("=+@-") and not re.fullmatch(r"[-+.0-9e]+", value) else value
