"""Run folders as gantrain leaves them, made without training."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "run_dir": "somewhere",
    "gen_objective": "matched",
    "dataset": {"name": "digits", "root": "data"},
    "disc_div": {"name": "gan"},
    "gen_div": {"name": "kl"},
    "optimizer": {"name": "Adam", "lr": 0.001, "betas": [0.5, 0.999]},
    "train": {"images": 1000, "report_every_images": 500, "held_out_images": 500},
}
EVALUATION: dict[str, Any] = {
    "images": 1000,
    "checkpoint": "images_000000001000.pt",
    "samples_from": "averaged generator",
    "count": 200,
    "split": "held out",
    "seed": 7,
    "features": {"name": "classifier"},
    "metrics": {"quality/fid_classifier": 10.0, "quality/precision": 0.5, "diversity/recall": 0.5},
    "class_histogram": {"data": {"0": 100, "1": 100}, "samples": {"0": 50, "1": 150}},
}


def merge(base: Any, change: Any) -> Any:
    """Return `base` with `change` in its place, key by key."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return base | {key: merge(base.get(key), value) for key, value in change.items()}


def make_run(
    folder: Path,
    settings: dict[str, Any] | None = None,
    metrics: dict[str, float | None] | None = None,
    evaluation: dict[str, Any] | None = None,
    *,
    typed: str = "",
    **summary: Any,
) -> Path:
    """Make a run folder without checkpoints; the arguments are what differs from the defaults above.

    `typed` are overrides beside those of the divergence and the seed, separated by spaces.
    """
    chosen = merge(SETTINGS, settings or {})
    (folder / ".hydra").mkdir(parents=True)
    (folder / "samples").mkdir()
    (folder / ".hydra/config.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False))
    overrides = [f"gen_div={chosen['gen_div']['name']}", f"seed={chosen['seed']}", *typed.split()]
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
    values = {"loss/discriminator": 1.5, "loss/generator": 0.5, "bound/gan": 0.25} | (metrics or {})
    facts = {
        "status": "finished",
        "reason": "",
        "started": "2026-11-22T04:00:00+00:00",
        "data": {"label": "digits", "training_images": 1618, "held_out": True, "fingerprint": "d38c"},
        "samples_from": "averaged generator",
        "images": 1000,
        "device": "cpu",
        "versions": {"torch": "2.15.0"},
        "metrics": values,
    }
    (folder / "summary.json").write_text(json.dumps(facts | summary))
    rows = [
        {"images": clock, **{key: None if value is None else value + 1 / clock for key, value in values.items()}}
        for clock in (500, 1000)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(merge(EVALUATION, evaluation)))
    for name, shade in (("real", 40), ("images_000000000500", 99), ("images_000000001000", 200)):
        Image.new("RGB", (20, 20), (shade, shade, shade)).save(folder / "samples" / f"{name}.png")
    return folder


def make_sweep(root: Path, names: str = "kl,js", seeds: int = 2) -> Path:
    """Make a run of every divergence and seed, with metrics that are a random function of both."""
    jobs = [(name, seed) for name in names.split(",") for seed in range(seeds)]
    for number, (name, seed) in enumerate(jobs):
        drawn = random.Random(f"{name}{seed}").random()
        values = {"quality/fid_classifier": 10 + drawn, "quality/precision": drawn, "diversity/recall": 1 - drawn}
        make_run(
            root / f"{number}-gen_div-{name}_seed-{seed}",
            {"gen_div": {"name": name}, "seed": seed},
            {"loss/generator": drawn},
            {"metrics": values},
        )
    return root
