"""Where a run's numbers come from: what they depend on beside its settings, and the command that makes them anew."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gantrain.comparison import runs as collection
from gantrain.comparison.runs import Run, clean, number

OF_THE_PLACE = re.compile(r"\+*(run_dir|resume)=")  # overrides that another run cannot share


def provenance(run: Run) -> dict[str, str]:
    """What a run's numbers depend on beside its settings, in words; empty values are left out."""
    evaluation, fact = run.evaluation, run.fact
    shown = _counted(fact("images"), "images shown to D")
    held_out = "held-out" if fact("data", "held_out") else "training"
    bounds = f"{held_out} data, at most {run.settings.get('train.held_out_images', '?')}"
    facts = {
        "data": (fact("data", "label"), _counted(fact("data", "training_images"), "training images")),
        "data fingerprint": (fact("data", "fingerprint"),),
        "losses, bounds, ratio": ("last report", shown) if shown else (),
        "bounds measured on": (bounds,) if fact("data") else (),
        "sample grids from": (fact("samples_from"),),
        "evaluated": (_counted(evaluation.get("count"), "samples"), evaluation.get("samples_from")),
        "evaluated against": (_counted(evaluation.get("real_count"), "real examples"), evaluation.get("split")),
        "training data in place of samples": (_counted(evaluation.get("reference_count"), "training examples"),),
        "evaluated checkpoint": (evaluation.get("checkpoint"), _counted(evaluation.get("images"), "images")),
        "evaluation seed": (_counted(evaluation.get("seed"), ""),),
        "features": tuple(_facts(evaluation.get("features"))),
        "device": (fact("device"), *_facts({"threads": fact("threads")})),
        "versions": tuple(_facts(fact("versions"))),
    }
    worded = {name: ", ".join(filter(None, map(clean, parts))) for name, parts in facts.items()}
    return {name: text for name, text in worded.items() if text}


def _counted(value: Any, what: str) -> str:
    count = number(value)
    return "" if count is None else f"{count:,.0f} {what}".strip()


def _facts(values: Any) -> Iterator[str]:
    for key, value in values.items() if isinstance(values, dict) else [("", values)] if values else []:
        if value is not None:
            yield f"{clean(key)} {collection.worded(value)}".strip()


def command_lines(runs: Iterable[Run]) -> list[list[str]]:
    """The arguments of `gantrain train` that make such runs anew, in other folders; those of a sweep as one, where they
    are all combinations of its values."""
    sweeps: dict[Path, list[Run]] = {}
    for run in runs:
        sweeps.setdefault(run.path.parent, []).append(run)
    return [line for members in sweeps.values() for line in _joined([_shared(run.overrides) for run in members])]


def _shared(typed: Iterable[str]) -> list[str]:
    return [text for text in typed if not OF_THE_PLACE.match(text)]


def _joined(jobs: list[list[str]]) -> list[list[str]]:
    chosen = [dict(text.partition("=")[::2] for text in job) for job in jobs]
    if len(jobs) == 1 or any(each.keys() != chosen[0].keys() for each in chosen):
        return jobs
    values = {key: dict.fromkeys(each[key] for each in chosen) for key in chosen[0]}
    listed = {tuple(each[key] for key in values) for each in chosen}
    # As many jobs as combinations, and no two alike: they are all of them.
    if not len(jobs) == len(listed) == math.prod(map(len, values.values())):
        return jobs
    return [["-m", *(f"{key}={','.join(found)}" for key, found in values.items())]]
