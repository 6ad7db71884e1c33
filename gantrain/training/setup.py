"""What a run is before it starts, and what stays as it is while it trains: the game, the data, and how long."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.data import Dataset
from gantrain.distributed import WHOLE, Part
from gantrain.evaluation.evaluation import Evaluation
from gantrain.networks.latents import Latents
from gantrain.objectives.gradient_penalties import Regularizer
from gantrain.objectives.objective import Objective


@dataclass(frozen=True)
class Schedule:
    """How long, in what steps, and what is written when; every interval counts images shown to D.

    `ema` is the average's decay per generator step. A checkpoint that is due within `checkpoint_min_seconds` of the
    last one is left out, and one is added, with a grid, after `checkpoint_max_minutes`; neither changes weights.
    """

    images: int
    batch_size: int = 100
    discriminator_steps: int = 1
    ema: float = 0.999
    report_every_images: int = 10_000
    sample_every_images: int = 50_000
    checkpoint_every_images: int = 50_000
    checkpoint_min_seconds: float = 30.0
    checkpoint_max_minutes: float = 10.0
    keep_checkpoints: int = 3
    held_out_images: int = 500
    evaluate_every_images: int | None = None

    def decay(self, images: int) -> float:
        """The average's decay at step n: min(ema, (1 + n)/(10 + n)), so that early weights are soon forgotten."""
        steps = images // (self.batch_size * self.discriminator_steps)
        return min(self.ema, (1 + steps) / (10 + steps))


def passed(interval: int | None, begin: int, end: int) -> bool:
    """Whether a multiple of `interval` lies in (begin, end]; never where there is none."""
    return interval is not None and end // interval > begin // interval


PRECISIONS = ("float32", "tf32", "bf16", "auto")
UPDATES = ("alternating", "simultaneous")
SWITCHES = ("auto", "on", "off")


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
    meanwhile, if at all.
    """

    objective: Objective
    data: Dataset
    latents: Latents
    schedule: Schedule
    seed: int = 0
    execution: Execution = Execution()
    regularizers: tuple[Regularizer, ...] = ()
    part: Part = WHOLE
    evaluation: Evaluation | None = None
