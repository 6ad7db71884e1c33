"""The command line as Python calls, which return objects and raise the exceptions of `gantrain.errors`.

    run = gantrain.train(dataset="digits", gen_div="kl", **{"train.images": 200_000})
    images = run.sample(64, seed=1)               # [64, C, H, W] in [0, 1]

Keys and values are those of the command. The calls may be repeated, and made inside another program of Hydra; signal
handlers, Python's logging, matplotlib's backend and the working directory are left as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gantrain.commands import evaluate as evaluate_command
from gantrain.comparison import comparison
from gantrain.comparison.rows import finding_rows, run_rows
from gantrain.config.checks import Settings, parse_document
from gantrain.config.compose import create_composer
from gantrain.config.overrides import check_no_sweep, parse_into, parse_train, quote
from gantrain.config.schema import CodeOptions
from gantrain.console import say
from gantrain.devices import use_torch_defaults
from gantrain.errors import CheckpointError, ConfigError, DataError
from gantrain.files import convert_system_errors, expand_home
from gantrain.launch.evaluate import is_run
from gantrain.launch.job import train_once
from gantrain.launch.resume import check_own_folder, refuse_sweep, resume_run
from gantrain.launch.sweep_folder import add_notes
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder
from gantrain.runs.metrics_file import read_metrics

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor, nn

    from gantrain.training.generator import TrainedGenerator

    Rows: TypeAlias = list[dict[str, Any]] | DataFrame

PLAIN_WORD = re.compile(r"(?!(null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


@contextmanager
def as_a_command() -> Iterator[None]:
    """Compute in the block as a command does, with torch's defaults and with failures of the machine as our errors."""
    with use_torch_defaults(), convert_system_errors("storage", "ask for fewer images at once"):
        yield


@dataclass(frozen=True)
class Run:
    """A run, and one of its checkpoints; it stands for its path wherever a path is expected.

    `summary` and `metrics` are read from the run folder each time. Everything else is of the checkpoint, which is read
    once, when it is first needed, or before `resume` goes on from it.

    Args:
        path: The run folder; made absolute, so that it stays that of the run if the working directory changes.
        checkpoint: A checkpoint file of the run; by default the newest whole one.
        object: "package:function", for a run whose networks are the user's own: code is imported only if it is named.
        ema_statistics: `copied` or `standing`, in place of the run's own.
    """

    path: Path
    checkpoint: Path | None = None
    object: str | None = None
    ema_statistics: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path).absolute())
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint).absolute())

    def __fspath__(self) -> str:
        return str(self.checkpoint or self.path)

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds: status, images, seconds, last metrics, versions; empty if it is damaged."""
        return RunFolder(self.path).read_summary()

    @property
    def metrics(self) -> Rows:
        """All reports, each with `images`; a data frame if pandas is installed. Raises DataError if there are none."""
        return to_table(read_metrics(RunFolder(self.path).metrics))

    @cached_property
    def settings(self) -> Settings:
        """The checked settings that the checkpoint was trained with. Raises CheckpointError or ConfigError."""
        return parse_document(self._found[1]["config"])

    @property
    def images(self) -> int:
        """The clock of the checkpoint: images shown to D."""
        return int(self._found[1]["images"])

    @as_a_command()
    def generator(self) -> TrainedGenerator:
        """Return a copy of the trained generator, on the CPU and in evaluation mode: latents [B, L] → [B, *shape].

        It is the averaged generator if the run kept one. Raises CheckpointError, or UntypedCodeError for networks of
        the user's own without `object`.
        """
        from gantrain.training.generator import restore_generator

        return restore_generator(*self._found, object=self.object, ema_statistics=self.ema_statistics)

    @as_a_command()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Return `count` samples on the CPU, the same for the same seed: [count, C, H, W] in [0, 1], or [count, d]."""
        return self._sampled.sample(count, seed)

    @as_a_command()
    def log_ratio(self, images: Tensor) -> Tensor:
        """Return D's estimate of log p(x)/q(x), of the data's density and the generator's: float32 [B], on the CPU.

        Under label smoothing it is infinite where D's output exceeds log((1 − s)/s).

        `images` are floating-point [B, *shape], pixels in [0, 1]. Raises DataError for others, and ConfigError if D
        gives no log-ratio.
        """
        from gantrain.training.generator import measure_outputs

        objective, discriminator = self.settings.objective, self._discriminator
        estimate = objective.log_ratio(measure_outputs(discriminator, images, self._found[1]["data"]["shape"]))
        if estimate is None:
            raise ConfigError(objective.missing_ratio)
        return estimate

    @cached_property
    def _found(self) -> tuple[Path, dict[str, Any], list[str]]:
        return checkpoints.load_run(self.checkpoint or self.path)

    @cached_property
    def _sampled(self) -> TrainedGenerator:
        return self.generator()

    @cached_property
    def _discriminator(self) -> nn.Module:
        from gantrain.training.generator import restore_discriminator

        return restore_discriminator(*self._found[:2], object=self.object)


class Comparison(comparison.Comparison):
    """A comparison of runs with its `table`."""

    @property
    def table(self) -> Rows:
        """The rows of compare.csv, one a run, with numbers as numbers; a data frame if pandas is installed."""
        return to_table(run_rows(self))

    @property
    def tests(self) -> Rows:
        """The tests of compare.json, one a row: differences from the baseline and trends."""
        return to_table(finding_rows(self))


@as_a_command()
def train(*, config_dir: str | Path | None = None, **settings: Any) -> Run:
    """Train a GAN and return its run.

    Args:
        config_dir: A folder of the user's own YAML.
        settings: The keys and values of `gantrain train`; a key with a dot is passed as `**{"train.images": 200_000}`.

    Raises what the command line reports as exit codes: ConfigError, DataError, DivergedError, … of gantrain.errors.
    """
    arguments = parse_train(to_arguments(settings))
    check_no_sweep(arguments)
    with create_composer(arguments, config_dir) as composer:
        composed = composer.compose([argument.text for argument in arguments])
        if composed.mode is not None:
            raise ConfigError("this experiment is a sweep; train its runs one by one, or with gantrain train")
        folder = train_once(composer, arguments, composed)
    return Run(folder, object=settings.get("architecture.object"))


@as_a_command()
def resume(run: str | PathLike[str], **settings: Any) -> Run:
    """Go on with a run where it stopped, and return it; a finished run is returned as it is.

    `settings` are keys that a resumed run may change, such as `**{"train.images": 400_000}`. Raises CheckpointError if
    nothing can be restored or if the settings are those of another run, and what `train` raises.
    """
    if isinstance(run, Run):
        with suppress(CheckpointError):  # which says less than the refusals below
            run.images  # noqa: B018 (reads the checkpoint, so that the given run stays what it is)
    code = own_options(run).get("architecture.object")  # what else it was opened with is for its samples
    settings = ({"architecture.object": code} if code else {}) | settings
    path, arguments = expand_home(run), parse_train(to_arguments(settings))
    check_own_folder(path, arguments)
    resume_run(path, arguments)
    return Run(path, object=settings.get("architecture.object"))


@as_a_command()
def load(run: str | PathLike[str], **settings: Any) -> Run:
    """Return the run in a folder, at its newest whole checkpoint, or the run of a checkpoint file, as it was there.

        images = gantrain.load("runs/digits/gan-kl/2026-11-22_10-00-00-s0").sample(64)

    `**{"architecture.object": "package:function"}` is needed for the networks of a run that are the user's own, and
    `ema_statistics` replaces the run's own. Raises CheckpointError if nothing usable is found, ConfigError for another
    key.
    """
    path, options = expand_home(run), parse_into(CodeOptions, to_arguments(own_options(run) | settings))
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a run folder or a checkpoint")
    refuse_sweep(path, "sample")
    checkpoint = None if path.is_dir() else path
    loaded = Run(RunFolder.containing(path).path, checkpoint, options.architecture.object, options.ema_statistics)
    loaded.images  # noqa: B018 (reads the checkpoint)
    return loaded


@as_a_command()
def evaluate(samples: str | PathLike[str], **options: Any) -> dict[str, Any]:
    """Measure samples as `gantrain evaluate` does, print the table, and return the content of evaluation.json.

    Args:
        samples: A run, a checkpoint, a folder or .zip of images, or an array.
        options: The keys and values of `gantrain evaluate`, such as `metrics=["fid"]`, `count=5000` or `seed=1`.

    Returns the numbers as `["metrics"]`, those of training examples as `["reference"]`, and how both were obtained.
    Raises CheckpointError, ConfigError, DataError or StorageError.
    """
    path = expand_home(samples)
    refuse_sweep(path, "evaluate")
    options = own_options(samples) | options
    evaluate_command.run([str(path), *to_arguments(options)])
    out = options.get("out") or (RunFolder.containing(path).path if is_run(path) else "evaluation")
    return dict(json.loads((expand_home(out) / "evaluation.json").read_text(encoding="utf-8")))


@as_a_command()
def compare(*runs: str | PathLike[str], baseline: str | int | None = None) -> Comparison:
    """Return a comparison of runs, and of those in and below folders.

    `baseline` is the label or number of the configuration that differences are measured from. Raises DataError if no
    run can be read there, ConfigError if no configuration has this label or number.
    """
    if not runs:
        raise DataError("compare needs runs, or folders that hold them: gantrain.compare(run, …)")
    folders = [run.path if isinstance(run, Run) else expand_home(run) for run in runs]
    found = comparison.compare(folders, None if baseline is None else str(baseline))
    add_notes(found, folders)
    for note in found.notes:
        say(note)
    return Comparison(**{field.name: getattr(found, field.name) for field in fields(found)})


def own_options(run: str | PathLike[str]) -> dict[str, Any]:
    """Return the options with which a `Run` was opened, under their keys; empty for a path."""
    if not isinstance(run, Run):
        return {}
    own = {"architecture.object": run.object, "ema_statistics": run.ema_statistics}
    return {key: value for key, value in own.items() if value}


def to_table(rows: list[dict[str, Any]]) -> Rows:
    """Return rows as a data frame, or as they are if pandas is not installed."""
    try:
        from pandas import DataFrame
    except ImportError:
        return rows
    return DataFrame(rows)


def to_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return keys and values in the grammar of the command line."""
    return [f"{key}={to_text(value)}" for key, value in settings.items()]


def to_text(value: Any) -> str:
    """Return a Python value in the grammar of the command line."""
    if hasattr(value, "item") and not getattr(value, "shape", ()):  # a number of NumPy or torch
        value = value.item()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{to_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ",".join(map(to_text, value)) + "]"
    text = os.fspath(value) if isinstance(value, PathLike) else str(value)
    return text if PLAIN_WORD.fullmatch(text) else quote(text)
