"""`summary.json`: how a run ended and what its numbers depend on, with nothing of the environment's secrets in it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from gantrain.console import say
from gantrain.errors import GantrainError, StorageError
from gantrain.nested import leaves
from gantrain.runs.folder import Interrupted, RunFolder
from gantrain.seeding import made_with

if TYPE_CHECKING:
    import torch

    from gantrain.data import Dataset

SHORTEST_SECRET = 6
# What a resumed run keeps of its earlier summary.
KEPT = {"started": str, "seconds": int | float, "images": int, "metrics": dict, "resumed_at_images": list}


@contextmanager
def summarised(folder: RunFolder, secrets: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A dictionary that becomes `summary.json`: `running` at first, then how the block ended."""
    earlier = folder.read_summary()
    summary: dict[str, Any] = {key: earlier[key] for key, kind in KEPT.items() if isinstance(earlier.get(key), kind)}
    summary = {"status": "running", "reason": "", "started": now()} | summary
    folder.write_summary(summary)  # before the work: a folder that cannot be written is found now

    def ended(status: str, reason: str, exit_code: int) -> None:
        summary.update(status=status, reason=reason, exit_code=exit_code, ended=now())

    try:
        yield summary
        ended("finished", "", 0)
    except Interrupted as stop:
        ended("stopped", str(stop), stop.exit_code)
        raise
    except KeyboardInterrupt:
        ended("stopped", "stopped at once by a second interrupt", 130)
        raise
    except GantrainError as error:
        ended("failed", str(error), error.exit_code)
        raise
    finally:
        try:
            folder.write_summary(revealing_nothing(summary, secrets))
        except StorageError as error:  # what ended the run is worth more than the record of it
            say(str(error), error=True)


def now() -> str:
    """The date and time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def described(settings: Mapping[str, Any], dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """What a number of this run depends on beside its config."""
    made = made_with(device)
    return {
        "data": {
            "label": dataset.label,
            "training_images": dataset.size,
            "held_out": dataset.has_held_out,
            "skipped_files": dataset.skipped,
            "fingerprint": dataset.fingerprint,
        },
        "samples_from": "averaged generator" if settings["ema"] else "generator",
        "seed": settings["seed"],
        "device": made["device"],
        "threads": made["threads"],
        "versions": {"python": platform.python_version(), "torch": made["torch"]},
    }


def hyperparameters(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys, without the networks' tables."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= hyperparameters(value, f"{prefix}{key}.")
        elif not isinstance(value, list) or all(isinstance(item, int | float) for item in value):
            flat[f"{prefix}{key}"] = value
    return flat


def from_environment(composed: DictConfig) -> dict[str, str]:
    """What the config takes from environment variables, each value with the text that took it."""
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    taken = {key: text for key, text in leaves(plain) if isinstance(text, str) and "${oc.env:" in text}
    values = {str(OmegaConf.select(composed, key)): text for key, text in taken.items()}
    # A number or a short word is no secret, and would be found inside other words.
    return {value: text for value, text in values.items() if len(value) >= SHORTEST_SECRET and not value.isdecimal()}


def concealed(text: str, secrets: Mapping[str, str]) -> str:
    """`text` with every value from the environment replaced by what took it: it may be a secret."""
    for value, source in secrets.items():
        text = text.replace(value, source)
    return text


def revealing_nothing(value: Any, secrets: Mapping[str, str]) -> Any:
    """Nested plain data with every string `concealed`."""
    if isinstance(value, Mapping):
        return {key: revealing_nothing(item, secrets) for key, item in value.items()}
    return concealed(value, secrets) if isinstance(value, str) else value
