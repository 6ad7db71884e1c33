"""Training: the loop, read from top to bottom.

One clock, counted in data images shown to D, drives everything: which batch comes, what is drawn, when to report, to
sample and to save. It needs no config and no command line:

    dataset = data.load("digits")
    generator, discriminator = architectures.build(table, dataset.shape, latent_size=64)
    adam = partial(torch.optim.Adam, lr=4e-4, betas=(0.5, 0.999))
    state = State(generator, discriminator, adam(generator.parameters()), adam(discriminator.parameters()))
    game = Objective(divergences.get("gan"), divergences.get("kl"))
    with Reporter(folder.path, total_images=100_000) as reporter:
        train(state, game, dataset, Latents(64), Schedule(images=100_000), folder, reporter)
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gantrain import checkpoints, figures, portraits
from gantrain.data import Dataset
from gantrain.errors import DivergedError
from gantrain.health import watched
from gantrain.latents import Latents
from gantrain.objective import Objective
from gantrain.randomness import preserved_randomness, stream_generator, stream_seed
from gantrain.report import Reporter, read_metrics
from gantrain.run import RunFolder, StopRequest
from gantrain.state import State, evaluating, generate, still_statistics, update_average

GRID_IMAGES = 64
SCATTER_POINTS = 2000
SECONDS_BETWEEN_CURVES = 60.0


@dataclass(frozen=True)
class Schedule:
    """How long, in what steps, and what is written when; every interval counts images shown to D.

    `ema` is the average's decay per generator step. A checkpoint that is due within `checkpoint_min_seconds` of the
    last one is left out, which changes no weights.
    """

    images: int
    batch_size: int = 100
    discriminator_steps: int = 1
    ema: float = 0.999
    report_every_images: int = 10_000
    sample_every_images: int = 50_000
    checkpoint_every_images: int = 50_000
    checkpoint_min_seconds: float = 30.0
    keep_checkpoints: int = 3
    held_out_images: int = 500


def train(
    state: State,
    objective: Objective,
    data: Dataset,
    latents: Latents,
    schedule: Schedule,
    folder: RunFolder,
    reporter: Reporter,
    *,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    build: Mapping[str, Any] | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Play the game until the clock reaches `schedule.images`, writing into `folder`.

    `config`, and `build` ("architecture" and "latent", from which `gantrain.load` makes the generator), travel in every
    checkpoint. Raises DivergedError before an update with a non-finite loss or gradient,
    Interrupted after a saved checkpoint when `stop` was asked, StorageError when a checkpoint cannot be written.
    """
    writer = Writer(state, objective, data, latents, schedule, folder, reporter, seed, config or {}, build or {})
    state.generator.train()
    state.discriminator.train()
    with preserved_randomness(state.device):
        writer.show_data()
        while state.images < schedule.images:
            begin = state.images
            # One seed for everything this iteration draws: a resumed run draws the same.
            torch.manual_seed(stream_seed(seed, "train", begin))

            # Algorithm 1 of Goodfellow et al. 2014: k steps of D, one of G.
            for _ in range(schedule.discriminator_steps):
                real = data.batch(state.images, schedule.batch_size)
                discriminator_step(state, objective, real, latents.draw(len(real)))
                state.images += len(real)
            generator_step(state, objective, latents.draw(schedule.batch_size))
            if state.average is not None:
                update_average(state.average, state.generator, warmed_up(schedule, state.images))

            # What is due is written; none of it changes what comes next.
            reporter.progress(state.images)
            done = state.images >= schedule.images
            if done or passed(schedule.report_every_images, begin, state.images):
                writer.report()
            if done or passed(schedule.sample_every_images, begin, state.images):
                writer.sample()
            if done or passed(schedule.checkpoint_every_images, begin, state.images):
                writer.checkpoint(now=done)
            if stop is not None and stop.number is not None and not done:
                writer.checkpoint(now=True)
                stop.raise_if_asked(f"go on with: gantrain resume {folder.path}")


def passed(interval: int, begin: int, end: int) -> bool:
    """Whether a multiple of `interval` lies in (begin, end]."""
    return end // interval > begin // interval


def warmed_up(schedule: Schedule, images: int) -> float:
    """The average's decay at step n: min(ema, (1 + n)/(10 + n)), so that early weights are soon forgotten."""
    steps = images // (schedule.batch_size * schedule.discriminator_steps)
    return min(schedule.ema, (1 + steps) / (10 + steps))


def discriminator_step(state: State, objective: Objective, real: Tensor, latents: Tensor) -> None:
    """One update of D on data [B, …] and on as many samples."""
    with torch.no_grad(), still_statistics(state.generator):  # which move once an iteration, in G's step
        fake = state.generator(latents)
    loss, statistics = objective.discriminator_loss(state.discriminator, real, fake)
    update(state, "discriminator", state.discriminator, state.discriminator_optimizer, loss, statistics)


def generator_step(state: State, objective: Objective, latents: Tensor) -> None:
    """One update of G against the discriminator as it is."""
    loss, statistics = objective.generator_loss(state.discriminator, state.generator(latents))
    update(state, "generator", state.generator, state.generator_optimizer, loss, statistics)


def update(
    state: State, player: str, network: nn.Module, optimizer: Optimizer, loss: Tensor, statistics: Mapping[str, Tensor]
) -> None:
    """Descend `loss` in `network` alone. Raises DivergedError, with nothing updated, unless loss and gradient are
    finite."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer.zero_grad()
    loss.backward(inputs=parameters)  # the other player's gradients are not even computed
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    statistics = {**statistics, f"grad_norm/{player}": norm}
    if not math.isfinite(float(loss.detach() + norm)):
        raise DivergedError(non_finite(state.images, player, statistics))
    optimizer.step()
    state.statistics.add(statistics)


def non_finite(images: int, player: str, statistics: Mapping[str, Tensor]) -> str:
    """What stopped the run, with every value of the step that failed."""
    values = ", ".join(f"{name} = {float(value.detach()):.6g}" for name, value in statistics.items())
    return (
        f"the {player}'s loss or gradient is not finite at images = {images:,}; the update was not made ({values}).\n"
        "Lower optimizer.lr, add a regularizer (regularizer=r1), or choose a divergence that grows more slowly in the "
        "log-ratio (gan, js, squared_hellinger)"
    )


class Writer:
    """What a run writes while it trains: reports, sample grids, curves and checkpoints.

    Nothing here draws from torch's default generators or leaves a network in another mode.
    """

    def __init__(
        self,
        state: State,
        objective: Objective,
        data: Dataset,
        latents: Latents,
        schedule: Schedule,
        folder: RunFolder,
        reporter: Reporter,
        seed: int,
        config: Mapping[str, Any],
        build: Mapping[str, Any],
    ) -> None:
        self.state, self.objective, self.data, self.latents = state, objective, data, latents
        self.schedule, self.folder, self.reporter = schedule, folder, reporter
        self.seed, self.config, self.build = seed, dict(config), dict(build)
        self.reported = self.saved = self.drawn = time.monotonic()
        self.reported_images = state.images
        self.health = watched(objective.disc_div, portraits.supremum(objective.disc_div))

    @property
    def pictures(self) -> bool:
        """Whether the data are images, rather than points of a density."""
        return len(self.data.shape) == 3

    def show_data(self) -> None:
        """`samples/real.png`, once."""
        path = self.folder.samples / "real.png"
        if not path.exists():
            with self.reporter.sparing_the_run():
                self.folder.samples.mkdir(parents=True, exist_ok=True)
                self._draw(self.data.held_out(GRID_IMAGES if self.pictures else SCATTER_POINTS), path)

    def report(self) -> None:
        """One row of numbers: means since the last report, and what D says of held-out data."""
        v_real, v_fake = self.held_out_outputs()
        scalars = self.state.statistics.means() | self._estimates(v_real, v_fake) | self._rates()
        histograms = {"log_ratio/real": v_real, "log_ratio/fake": v_fake}
        histograms = {name: r for name, v in histograms.items() if (r := self.objective.log_ratio(v)) is not None}
        self.reporter.report(self.state.images, scalars, histograms)
        for sentence in self.health.told(scalars):
            self.reporter.note(sentence)
        if time.monotonic() - self.drawn > SECONDS_BETWEEN_CURVES or self.state.images >= self.schedule.images:
            self.curves()

    def _estimates(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """The objective's estimates; bounds and divergences are named `training_…` where no data were held out."""
        estimates = self.objective.estimates(v_real, v_fake)
        if self.data.has_held_out:
            return estimates
        return {name if name.startswith("ratio/") else f"training_{name}": v for name, v in estimates.items()}

    @torch.no_grad()
    def held_out_outputs(self) -> tuple[Tensor, Tensor]:
        """D's raw outputs on held-out data and on as many new samples of G, both in evaluation mode."""
        real = self.data.held_out(self.schedule.held_out_images)
        z = self.latents.draw(len(real), stream_generator(self.seed, "report", self.state.images))
        with evaluating(self.state.generator, self.state.discriminator):
            chunks = zip(real.split(self.schedule.batch_size), z.split(self.schedule.batch_size), strict=True)
            outputs = [
                (self.state.discriminator(x), self.state.discriminator(self.state.generator(latents)))
                for x, latents in chunks
            ]
        v_real, v_fake = (torch.cat(parts).float() for parts in zip(*outputs, strict=True))
        return v_real, v_fake

    def _rates(self) -> dict[str, float]:
        now, images = time.monotonic(), self.state.images
        seconds, self.reported = now - self.reported, now
        shown, self.reported_images = images - self.reported_images, images
        rates = {
            "speed/images_per_second": shown / seconds,
            "system/checkpoint_age_seconds": now - self.saved,
            "system/free_disk_bytes": float(shutil.disk_usage(self.folder.path).free),
        }
        if self.state.device.type == "cuda":
            rates["system/device_memory_bytes"] = float(torch.cuda.max_memory_allocated(self.state.device))
        return rates

    def sample(self) -> None:
        """A grid (or a scatter plot) from the run's fixed latents."""
        path = self.folder.samples / f"images_{self.state.images:012d}.png"
        count = GRID_IMAGES if self.pictures else SCATTER_POINTS
        samples = generate(self.state.best_generator, fixed_latents(self.latents, count, self.seed))
        with self.reporter.sparing_the_run():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._draw(samples, path)
            self.reporter.picture(self.state.images, "samples", path)

    def _draw(self, points: Tensor, path: Path) -> None:
        if self.pictures:
            figures.save_grid(points, path)
        else:
            real = self.data.held_out(SCATTER_POINTS)
            figures.save_scatter(points, path, real=real, log_density=getattr(self.data, "log_density", None))

    def curves(self) -> None:
        """`losses.png`, from the metrics file."""
        trained = (self.objective.disc_div.name, self.objective.gen_div.name)
        with self.reporter.sparing_the_run():
            reports = read_metrics(self.folder.metrics)
            if reports:
                figures.save_curves(reports, self.folder.path / "losses.png", highlight=trained)
        self.drawn = time.monotonic()

    def checkpoint(self, *, now: bool) -> None:
        """Save the state bundle, unless the last one is younger than `checkpoint_min_seconds` and it can wait."""
        if not now and time.monotonic() - self.saved < self.schedule.checkpoint_min_seconds:
            return
        bundle = {
            "format": checkpoints.FORMAT,
            "images": self.state.images,
            "config": self.config,
            "generator": self.build,
            "data": {"shape": list(self.data.shape), "fingerprint": self.data.fingerprint},
            "made_with": made_with(self.state.device),
            "state": self.state.state_dict(),
        }
        path = checkpoints.save(self.folder.checkpoints, bundle, keep=self.schedule.keep_checkpoints)
        self.saved = time.monotonic()
        self.reporter.checkpoint(path.name)


def made_with(device: torch.device) -> dict[str, Any]:
    """What the last digits of a result depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}


def fixed_latents(latents: Latents, count: int, seed: int) -> Tensor:
    """The latents of every grid of a run: the same for all runs with the same seed, whatever the device."""
    return latents.draw(count, stream_generator(seed, "grid"))
