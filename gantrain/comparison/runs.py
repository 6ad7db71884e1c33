"""Reading of run folders, and what the numbers of a run depend on.

A folder is a run when it holds `.hydra/config.yaml`; `summary.json` says how it ended. Settings are compared as the
text that they have in YAML; of interpolations only references to another key are resolved. Nothing in a folder is
trusted, see `untrusted`.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gantrain.comparison.untrusted import (
    clean_text,
    finite_number,
    finite_numbers,
    format_setting,
    get_nested,
    read_config,
    read_file,
    read_json,
    read_yaml,
)
from gantrain.errors import DataError
from gantrain.evaluation.evaluation import GROUPS
from gantrain.objectives.critics import F_DIVERGENCE
from gantrain.runs.folder import KILLED, actual_status
from gantrain.runs.metrics_file import means_over_last_tenth

STATUSES = ("finished", "stopped", "failed", "running", KILLED)
REASONS = {
    **{"finished": "", "running": "it still trains"},
    KILLED: "its process ended without an error message; gantrain resume continues it",
}
WEIGHTS = "weights/"  # group of the metrics of generator weights, of which a run's value is a mean over its last tenth
EFFECTIVE_ORDER = f"{WEIGHTS}effective_order"
BOUNDS = ("bound", "recalibrated_bound")
KEPT_GROUPS = ("images", "loss/", "bound/", "recalibrated_bound/", "training_", WEIGHTS)  # read from metrics.jsonl
MAX_PIXELS = 2**24
MAX_REASON_LINES = 20  # of the reason of a run that did not finish
PLACE_OVERRIDE = re.compile(r"\+*(run_dir|resume)=")  # overrides that another run cannot share


@dataclass(frozen=True)
class Run:
    """Contents of a run folder; `settings` has dotted keys, `reports` are the rows of metrics.jsonl."""

    path: Path
    settings: dict[str, str]
    overrides: list[str]
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    reports: list[dict[str, float]]

    @cached_property
    def status(self) -> str:
        """One of `STATUSES`, or `unknown`."""
        status = actual_status(self.path, self.summary)
        return status if status in STATUSES else "unknown"

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end; only then do its numbers count."""
        return self.status == "finished"

    @property
    def reason(self) -> str:
        """Why the run did not finish; empty if it did."""
        if self.status in REASONS:
            return REASONS[self.status]
        stored = self.summary.get("reason")
        lines = stored.splitlines()[:MAX_REASON_LINES] if isinstance(stored, str) else []
        return "\n".join(map(clean_text, lines)) or "summary.json gives no reason"

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return self.settings.get("seed", "")

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Finite numbers of the last report and of the evaluation.

        If there is an evaluation, all metrics of samples are taken from it. Metrics of weights are those of `weights`.
        """
        reported, evaluated = finite_numbers(self.summary.get("metrics")), self.evaluation.get("metrics")
        replaced = (WEIGHTS, *GROUPS) if evaluated else (WEIGHTS,)
        kept = {name: value for name, value in reported.items() if not name.startswith(replaced)}
        return kept | self.weights | finite_numbers(evaluated)

    @cached_property
    def weights(self) -> dict[str, float]:
        """Means of the metrics `weights/…` over the last tenth of the run, from summary.json or else metrics.jsonl."""
        means = means_over_last_tenth(self.reports, WEIGHTS) | finite_numbers(self.fact("weights"))
        return {WEIGHTS + name: mean for name, mean in means.items()}

    @property
    def early_clock(self) -> float | None:
        """Clock of an evaluation that was not made at the run's end; None if it was, or if a clock is unknown."""
        clock, end = finite_number(self.evaluation.get("images")), finite_number(self.summary.get("images"))
        return None if end is None or clock == end else clock

    @cached_property
    def reference(self) -> dict[str, float]:
        """Finite numbers that training examples got in the evaluation in place of samples."""
        return finite_numbers(self.evaluation.get("reference"))

    def class_shares(self, source: str) -> dict[str, float]:
        """Share of each class in the evaluation's histogram of `data` or `samples`; empty if it has none."""
        counts = finite_numbers(get_nested(self.evaluation, "class_histogram", source))
        total = math.fsum(counts.values())
        is_valid = total > 0 and min(counts.values()) >= 0
        return {name: count / total for name, count in counts.items()} if is_valid else {}

    def fact(self, *keys: str) -> Any:
        """A value of `summary.json` by nested keys; None if it is missing."""
        return get_nested(self.summary, *keys)

    def setting(self, key: str) -> str:
        """A setting as text; a dash if the run has none of this name."""
        return self.settings.get(key, "—")

    def newest_grid(self) -> str | None:
        """Name in the run folder of the newest sample grid."""
        paths = (self.path / "samples").glob(f"images_{'[0-9]' * 12}.png")
        return max((f"samples/{path.name}" for path in paths), default=None)


# ---------------------------------------------------------------------------------------------------------------------
# Finding and reading runs


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], dict[Path, str]]:
    """Return the runs in and below `folders`, each once, in the order of their names.

    Beside them are the reasons for every run folder that cannot be read. Raises DataError unless all are folders.
    """
    found: dict[Path, Path] = {}
    for top in folders:
        if not top.is_dir():
            raise DataError(f"{top} is not a folder; name runs, sweeps, or a tree that holds them, such as runs")
        for folder in find_run_folders(top):
            found.setdefault(folder.resolve(), folder)
    runs: list[Run] = []
    unreadable: dict[Path, str] = {}
    for folder in found.values():
        try:
            runs.append(read_run(folder))
        except DataError as error:
            unreadable[folder] = clean_text(str(error))
    return runs, unreadable


def find_run_folders(top: Path) -> Iterator[Path]:
    """Yield every run folder in or below `top`; links to folders are not followed, and no run lies inside another."""
    for where, folders, _ in os.walk(top):
        if (Path(where) / ".hydra" / "config.yaml").is_file():
            folders.clear()
            yield Path(where)
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)


def natural_key(name: str) -> list[tuple[float, str]]:
    """Key that sorts job 9 before job 10, and alpha_-0.5 before alpha_0.25."""
    parts = re.split(r"((?:(?<=_)-)?[0-9]+(?:\.[0-9]+)?)", name)
    return [(float(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]


def read_run(folder: Path) -> Run:
    """Read a run. Raises DataError if a file is damaged or summary.json is missing."""
    if not (summary := read_json(folder, "summary.json")):
        raise DataError("summary.json is missing or empty: it has not begun to train, or was killed before it did")
    return Run(
        path=folder,
        settings=name_regularizers(
            {clean_text(key): format_setting(value) for key, value in read_config(folder).items()}
        ),
        overrides=[format_setting(value) for _, value in read_yaml(folder, ".hydra/overrides.yaml")],
        summary=summary,
        evaluation=read_json(folder, "evaluation.json"),
        reports=list(_read_reports(folder)),
    )


def name_regularizers(settings: dict[str, str]) -> dict[str, str]:
    """Return settings, also of older runs, with a critic, each regularizer's keys, and `regularizer.name` of all."""
    only, names, found = settings.get("regularizer.name"), [], {"critic.name": F_DIVERGENCE}
    for key, value in settings.items():
        section, _, rest = key.partition(".")
        if section != "regularizer":
            found[key] = value
        elif rest and rest != "name":
            rest = f"{only}.{rest}" if only else rest
            names.append(rest.partition(".")[0])
            found[f"regularizer.{rest}"] = value
    return found | {"regularizer.name": only or "+".join(dict.fromkeys(names)) or "none"}


def _read_reports(folder: Path) -> Iterator[dict[str, float]]:
    # Invalid lines are skipped: a run that was killed may leave one.
    for line in (read_file(folder, "metrics.jsonl") or b"").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and finite_number(row.get("images")) is not None:
            yield finite_numbers({name: value for name, value in row.items() if name.startswith(KEPT_GROUPS)})


def read_picture(run: Run, name: str) -> bytes:
    """Read a PNG of the run. Raises DataError unless it is whole and has at most `MAX_PIXELS` pixels."""
    from PIL import Image

    data = read_file(run.path, name)
    if data is None:
        raise DataError(f"{name} is missing")
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=("PNG",))
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{image.width}×{image.height} are more than {MAX_PIXELS:,} pixels")
            image.verify()
    except Exception as error:  # a damaged file can raise anything inside a decoder
        raise DataError(f"{name} is not a picture that can be shown: {clean_text(str(error))}") from error
    return data


# ---------------------------------------------------------------------------------------------------------------------
# What the numbers of a run depend on


def provenance(run: Run) -> dict[str, str]:
    """Describe what a run's numbers depend on beside its settings; empty descriptions are left out."""
    evaluation, fact = run.evaluation, run.fact
    images = _count(fact("images"), "images shown to D")
    held_out = "held-out" if fact("data", "held_out") else "training"
    bounds = f"{held_out} data, at most {run.settings.get('train.held_out_images', '?')}"
    parts = {
        "data": (fact("data", "label"), _count(fact("data", "training_images"), "training images")),
        "data fingerprint": (fact("data", "fingerprint"),),
        "initial weights": (fact("init", "run"), fact("init", "checkpoint"), _count(fact("init", "images"), "images")),
        "losses, bounds, ratio": ("last report", images) if images else (),
        "weights": ("mean over the last tenth of the run",) if run.weights else (),
        "bounds measured on": (bounds,) if fact("data") else (),
        "sample grids from": (fact("samples_from"),),
        "evaluated": (_count(evaluation.get("count"), "samples"), evaluation.get("samples_from")),
        "evaluated against": (_count(evaluation.get("real_count"), "real examples"), evaluation.get("split")),
        "training data in place of samples": (_count(evaluation.get("reference_count"), "training examples"),),
        "evaluated checkpoint": (evaluation.get("checkpoint"), _count(evaluation.get("images"), "images")),
        "evaluation seed": (_count(evaluation.get("seed"), ""),),
        "features": _words(evaluation.get("features")),
        "device": (fact("device"), *_words({"threads": fact("threads")})),
        "versions": _words(fact("versions")),
    }
    texts = {name: ", ".join(filter(None, map(clean_text, each))) for name, each in parts.items()}
    return {name: text for name, text in texts.items() if text}


def _count(value: Any, what: str) -> str:
    count = finite_number(value)
    return "" if count is None else f"{count:,.0f} {what}".strip()


def _words(values: Any) -> tuple[str, ...]:
    """Name and value of each fact, such as `torch 2.12`; a value that is not a mapping stands for itself."""
    facts = values.items() if isinstance(values, dict) else [("", values)] if values else []
    return tuple(f"{clean_text(key)} {format_setting(value)}".strip() for key, value in facts if value is not None)


def command_lines(runs: Iterable[Run]) -> list[list[str]]:
    """Return arguments of `gantrain train` that repeat the runs in other folders, one list a command.

    Runs of one folder are one sweep if they are all combinations of the values of their overrides.
    """
    folders: dict[Path, list[list[str]]] = {}
    for run in runs:
        overrides = [text for text in run.overrides if not PLACE_OVERRIDE.match(text)]
        folders.setdefault(run.path.parent, []).append(overrides)
    return [line for jobs in folders.values() for line in _join_sweep(jobs)]


def _join_sweep(jobs: list[list[str]]) -> list[list[str]]:
    chosen = [dict(text.partition("=")[::2] for text in job) for job in jobs]
    if len(jobs) == 1 or any(each.keys() != chosen[0].keys() for each in chosen):
        return jobs
    values = {key: dict.fromkeys(each[key] for each in chosen) for key in chosen[0]}
    distinct = {tuple(each[key] for key in values) for each in chosen}
    # The jobs are all combinations if they are as many, and no two are alike.
    if not len(jobs) == len(distinct) == math.prod(map(len, values.values())):
        return jobs
    return [["-m", *(f"{key}={','.join(listed)}" for key, listed in values.items())]]
