"""The command line as Python calls: `train`, `resume` and `compare`, which return objects and raise gantrain's errors.

    run = gantrain.train(dataset="digits", gen_div="kl", **{"train.images": 200_000})
    images = run.sample(64, seed=1)               # [64, C, H, W] in [0, 1]
    run.summary["metrics"], run.metrics[-1]["images"]
    run = gantrain.resume(run.path, **{"train.images": 400_000})

Keys and values are those of `gantrain train`. The calls may be repeated, and made inside another program of Hydra;
signal handlers, Python's logging and the working directory are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.comparison.comparison import Comparison
from gantrain.comparison.comparison import compare as compare_folders
from gantrain.config.checks import Settings, parse_document
from gantrain.config.compose import create_composer
from gantrain.config.overrides import Argument, check_no_sweep, parse_train, quote
from gantrain.console import say
from gantrain.errors import ConfigError
from gantrain.launch.job import train_once
from gantrain.launch.resume import check_own_folder, resume_run
from gantrain.runs import checkpoints
from gantrain.runs.folder import RunFolder
from gantrain.runs.metrics_file import read_metrics

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gantrain.training.generator import TrainedGenerator

PLAIN_WORD = re.compile(r"(?!(null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)


@dataclass(frozen=True)
class Run:
    """A run, found from its folder.

    Args:
        path: The run folder.
    """

    path: Path

    @cached_property
    def settings(self) -> Settings:
        """The checked settings that the newest checkpoint was trained with. Raises CheckpointError or ConfigError."""
        return parse_document(self._bundle["config"])

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds: status, images, seconds, last metrics, versions. Raises CheckpointError."""
        return RunFolder(self.path).read_summary()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All reports, in the order of the clock, each with `images`. Raises DataError if there are none."""
        return read_metrics(RunFolder(self.path).metrics)

    def generator(self, *, object: str | None = None) -> TrainedGenerator:
        """Return the trained generator, as `gantrain.load` does. Raises CheckpointError."""
        from gantrain.training.generator import load

        return load(self.path, object=object)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Return `count` samples on the CPU, the same for the same seed: [count, C, H, W] in [0, 1], or [count, d]."""
        return self.generator().sample(count, seed)

    def log_ratio(self, images: Tensor) -> Tensor:
        """Return the estimate of log p(x)/q(x) for samples [B, …]: float32 [B], on the CPU.

        Raises ConfigError if the discriminator gives no log-ratio.
        """
        import torch

        with torch.no_grad():
            estimate = self.settings.objective.log_ratio(self._discriminator(images.cpu()).float())
        if estimate is None:
            raise ConfigError(
                f"disc_div={self.settings.disc_div.name} with head={self.settings.head} gives no log-ratio"
            )
        return estimate

    @cached_property
    def _bundle(self) -> Mapping[str, Any]:
        return checkpoints.load_newest(self.path / "checkpoints")[1]

    @cached_property
    def _discriminator(self) -> nn.Module:
        from gantrain import networks
        from gantrain.training.state import refuse_mismatch

        bundle, settings = self._bundle, self.settings
        if settings.architecture.get("object"):
            raise ConfigError(f"{self.path} was trained with code of the user's own, which is not imported from a file")
        shape, saved = tuple(bundle["data"]["shape"]), bundle["state"]["discriminator"]
        _, discriminator = networks.build(settings.architecture, shape, settings.latent.size)
        refuse_mismatch("discriminator", discriminator, saved)
        discriminator.load_state_dict(saved)
        return discriminator.requires_grad_(False).eval()


def train(*, config_dir: str | Path | None = None, **settings: Any) -> Run:
    """Train a GAN and return its run.

    Args:
        config_dir: A folder of the user's own YAML.
        settings: The keys and values of `gantrain train`; a key with a dot is passed as `**{"train.images": 200_000}`.

    Raises what the command line reports as exit codes: ConfigError, DataError, DivergedError, … of gantrain.errors.
    """
    arguments = parse_settings(settings)
    check_no_sweep(arguments)
    with create_composer(arguments, config_dir) as composer:
        composed = composer.compose([argument.text for argument in arguments])
        if composed.mode is not None:
            raise ConfigError("this experiment is a sweep; train its runs one by one, or with gantrain train")
        result = train_once(composer, arguments, composed)
    if result.error:
        raise result.error
    return Run(result.folder)


def resume(path: str | Path, **settings: Any) -> Run:
    """Go on with a run where it stopped, and return it; a finished run is returned as it is.

    `settings` are keys that a resumed run may change, such as `**{"train.images": 400_000}`. Raises CheckpointError if
    nothing can be restored or if the settings are those of another run, and what `train` raises.
    """
    arguments = parse_settings(settings)
    check_own_folder(Path(path), arguments)
    resume_run(Path(path), arguments)
    return Run(Path(path))


def compare(*folders: str | Path) -> Comparison:
    """Return a comparison of the runs in and below folders. Raises ConfigError if no run can be read there."""
    for note in (found := compare_folders([Path(folder) for folder in folders])).notes:
        say(note)
    return found


def parse_settings(settings: Mapping[str, Any]) -> list[Argument]:
    """Return keys and values as arguments of `gantrain train`. Raises ConfigError."""
    return parse_train(f"{key}={to_text(value)}" for key, value in settings.items())


def to_text(value: Any) -> str:
    """Return a Python value in the grammar of `gantrain train`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{to_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ",".join(map(to_text, value)) + "]"
    text = str(value)
    return text if PLAIN_WORD.fullmatch(text) else quote(text)
