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
from gantrain.comparison.statistics import LEVEL, Difference, Finding
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
            about: dict[str, str | int | float | None] = {
                "run": str(run.path),
                "configuration": configuration.label,
                "baseline": configuration is comparison.baseline,
                **{short_key(key): value for key, value in configuration.values.items()},
                "seed": _whole_number(run.seed),
                "status": run.status,
                "reason": run.reason,
                "images": _whole_number(format_setting(run.fact("images"))),
                **{head: described[head] for head in comparison.descriptions},
            }
            rows.append(
                about | {name: made.get(name) for name in facts} | {name: run.metrics.get(name) for name in metrics}
            )
    return rows


def finding_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each test, with unrounded numbers; all rows have the same keys, what a test lacks is None."""
    baseline = comparison.baseline.label
    rows = [describe_difference(each, baseline) for each in itertools.chain(*comparison.differences.values())]
    rows += [
        describe_test(each)
        | {"key": short_key(each.key), "configurations": [configuration.label for configuration in each.configurations]}
        for each in itertools.chain(*comparison.trends.values())
    ]
    return [dict.fromkeys(TEST_KEYS) | row for row in rows]


def describe_difference(found: Difference, baseline: str) -> dict[str, Any]:
    """Return the facts of a difference."""
    (failed, runs), (baseline_failed, baseline_runs) = found.failed, found.baseline_failed
    return describe_test(found) | {
        "configuration": found.configuration.label,
        "baseline": baseline,
        "difference": found.estimate and found.estimate.mean,
        "low": found.low,
        "high": found.high,
        "failed": failed,
        "runs": runs,
        "baseline_failed": baseline_failed,
        "baseline_runs": baseline_runs,
    }


def describe_test(found: Finding) -> dict[str, Any]:
    """Return the facts of a test; more seeds than are told are None."""
    more = found.more_seeds
    return {
        "metric": found.metric,
        "seeds": found.seeds,
        "test": found.test or None,
        "p": found.p,
        "holm_p": found.holm_p,
        "more_seeds": None if more is None or math.isinf(more) else int(more),
        "verdict": found.verdict,
    }


def tests_document(comparison: Comparison) -> dict[str, Any]:
    """Return the content of compare.json."""
    return {"baseline": comparison.baseline.label, "level": LEVEL, "tests": finding_rows(comparison)}


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
