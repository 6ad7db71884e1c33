"""What a run is before it starts, and what stays as it is while it trains: the game, the data, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gantrain.augmentation.augmentations import Augmentation
from gantrain.data import Dataset
from gantrain.distributed import WHOLE, Part
from gantrain.evaluation.evaluation import Evaluation
from gantrain.networks.latents import Latents
from gantrain.objectives.objective import Game
from gantrain.regularizers.regularizer import Regularizer
from gantrain.schedules import HalfLife, Ramp, find_ramps


@dataclass(frozen=True)
class Schedule:
    """How long, in what steps, and what is written when; every interval counts images shown to D.

    `ema` is the decay of the averaged generator per update of G, or a half-life in images; it is warmed up (`decay`)
    unless the weights come from another run (`is_trained`). `ema_statistics` are those of its batch norm. A checkpoint
    that is due within `checkpoint_min_seconds` of the last one is left out, and one is added, with a grid of samples,
    after `checkpoint_max_minutes`; neither changes weights.
    """

    images: int
    batch_size: int = 100
    discriminator_steps: int = 1
    ema: float | Ramp | HalfLife = 0.999
    ema_statistics: str = "standing"
    is_trained: bool = False
    report_every_images: int = 10_000
    sample_every_images: int = 50_000
    checkpoint_every_images: int = 50_000
    checkpoint_min_seconds: float = 30.0
    checkpoint_max_minutes: float = 10.0
    keep_checkpoints: int = 3
    held_out_images: int = 2_000
    evaluate_every_images: int | None = None

    def decay(self, images: int) -> float:
        """Return the average's decay at update n: min(ema, (1 + n)/(10 + n)), so that random weights fade soon.

        A half-life has a ramp of its own.
        """
        step = self.batch_size * self.discriminator_steps
        if isinstance(self.ema, HalfLife):
            return (replace(self.ema, ramp=None) if self.is_trained else self.ema).decay(images, step)
        ema = self.ema.at(images) if isinstance(self.ema, Ramp) else self.ema
        return ema if self.is_trained else min(ema, (1 + images // step) / (10 + images // step))


def passed(interval: int | None, begin: int, end: int) -> bool:
    """Whether a multiple of `interval` lies in (begin, end]; never where there is none."""
    return interval is not None and end // interval > begin // interval


PRECISIONS = ("float32", "tf32", "bf16", "auto")
UPDATES = ("alternating", "simultaneous")
SWITCHES = ("auto", "on", "off")
# Of batch norm in the averaged generator: G's running statistics, or those of the average's own samples.
STATISTICS = ("copied", "standing")


@dataclass(frozen=True)
class Execution:
    """How an iteration is computed.

    `update` is the algorithm: G's step after D's on samples of its own (`alternating`),
    or from the pass through D that D's own step makes (`simultaneous`, ALI's). The others change only digits and speed:
    `precision` of the convolutions and matrix products, `compile` (torch.compile), `graph` (one CUDA graph).
    """

    update: str = "alternating"
    precision: str = "float32"
    compile: str = "auto"
    graph: str = "auto"


@dataclass(frozen=True)
class TrainingSetup:
    """A game to be played on data. `seed`, with the clock, decides everything that is drawn.

    `part` is the share of every batch that this process trains on. `evaluation` says how samples are measured
    meanwhile, if at all. `optimizer_ramps` are the arguments of each player's optimizer that follow the clock.
    `augmentation` changes what D is shown.
    """

    objective: Game
    data: Dataset
    latents: Latents
    schedule: Schedule
    seed: int = 0
    execution: Execution = Execution()
    regularizers: tuple[Regularizer, ...] = ()
    part: Part = WHOLE
    evaluation: Evaluation | None = None
    augmentation: Augmentation | None = None
    optimizer_ramps: Mapping[str, Mapping[str, Ramp]] = field(default_factory=dict)

    @property
    def learns_nothing_of_held_out(self) -> bool:
        """Whether D does not depend on the held-out data, as it does if they set the strength of the augmentation."""
        return self.augmentation is None or not self.augmentation.count_held_out(1)

    @property
    def ramps(self) -> dict[str, Ramp]:
        """The ramps of all settings by their keys, such as `optimizer.generator.lr`."""
        found = {
            f"optimizer.{player}.{key}": ramp
            for player, own in self.optimizer_ramps.items()
            for key, ramp in own.items()
        }
        for regularizer in self.regularizers:
            found |= {f"regularizer.{regularizer.name}.{key}": ramp for key, ramp in find_ramps(regularizer).items()}
        found |= find_ramps(self.schedule)
        if isinstance(self.schedule.ema, HalfLife):
            found |= {f"ema.{key}": ramp for key, ramp in find_ramps(self.schedule.ema).items()}
        if self.augmentation is not None:
            found |= {f"augment.{key}": ramp for key, ramp in find_ramps(self.augmentation).items()}
        return found
