"""Files that a run writes while it trains: reports, pictures and checkpoints.

Nothing here changes the training: random numbers come from streams of their own, never from torch's default generators,
and every network is left in the mode it was in.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gantrain import inference, plotting
from gantrain.devices import measure_peak_memory
from gantrain.errors import CheckpointError, is_out_of_memory
from gantrain.evaluation import evaluation
from gantrain.evaluation.distances import mean_distance
from gantrain.evaluation.evaluation import Evaluation
from gantrain.evaluation.samples import to_uint8
from gantrain.files import make_folder
from gantrain.networks.builder import parameter_values
from gantrain.networks.layers import compares_samples
from gantrain.objectives import estimates
from gantrain.precision import allow_tf32, autocast_products
from gantrain.reporting import pictures
from gantrain.reporting.health import Health
from gantrain.reporting.reporter import Reporter
from gantrain.runs import checkpoints
from gantrain.runs.folder import CHECKPOINT_AGE, RunFolder
from gantrain.runs.metrics_file import read_metrics
from gantrain.seeding import describe_machine, stream_generator
from gantrain.theory import properties
from gantrain.training.generator import Sampler
from gantrain.training.setup import TrainingSetup
from gantrain.training.state import State, evaluation_mode

GRID_IMAGES, SCATTER_POINTS = 64, 2000
SECONDS_BETWEEN_CURVES = 60.0
# Errors of metrics that cost no run, beside exhausted memory.
METRIC_ERRORS = (FloatingPointError, torch.linalg.LinAlgError)


class Writer:
    """Writes a run's reports, sample grids, curves and checkpoints into its folder, when the loop asks for them.

    `provenance` goes into every checkpoint: "config", and "generator" ("architecture" and "latent", from which
    `gantrain.load` makes the network).
    """

    def __init__(
        self,
        state: State,
        setup: TrainingSetup,
        folder: RunFolder,
        reporter: Reporter,
        provenance: Mapping[str, Any],
    ) -> None:
        self.state, self.folder, self.reporter = state, folder, reporter
        self.note, self.advance = reporter.note, reporter.advance
        self.objective, self.data, self.latents = setup.objective, setup.data, setup.latents
        self.has_images = len(setup.data.shape) == 3  # rather than points of a density
        self.schedule, self.seed, self.provenance = setup.schedule, setup.seed, provenance
        self.sampler = Sampler(state, setup.latents, setup.schedule.ema_statistics)
        self.precision = state.choose_precision(setup.execution.precision)
        self.last_report_time = self.last_checkpoint_time = self.last_curves_time = time.monotonic()
        self.reported_images, self.ramps = state.images, setup.ramps
        self.reports = sum("loss/discriminator" in row for row in folder.read_reports())
        self.newest_checkpoint = checkpoints.find_newest(folder.checkpoints)
        self.health = Health(div := setup.objective.main_divergence, properties.supremum(div) if div else math.inf)
        self.evaluation = setup.evaluation
        self.has_limits = setup.learns_nothing_of_held_out and not compares_samples(state.discriminator)
        self.latest_evaluation: dict[str, Any] = {}  # as in evaluation.json
        self.best, self.is_new_best = self._find_best(), False  # since the last checkpoint

    def draw_data(self) -> None:
        """Draw `samples/real.png`, once."""
        path = self.folder.samples / "real.png"
        if not path.exists():
            with self.reporter.tolerate_failures():
                make_folder(self.folder.samples)
                self._draw(self.data.held_out(GRID_IMAGES if self.has_images else SCATTER_POINTS), path, name="real")

    def report(self, *, training: bool = True, samples: bool = False) -> None:
        """Report the state of training, the metrics of samples, or both."""
        metrics = self._measure_samples() if samples else {}
        if training:
            self._report_training(metrics)
        elif metrics:
            self.reporter.record(self.state.images, metrics)

    def _report_training(self, metrics: Mapping[str, float]) -> None:
        """Report means since the last report, estimates from held-out data, rates, and the `metrics` of samples."""
        self.reports += 1
        v_real, v_fake = self.compute_held_out_outputs()
        scalars = self.state.statistics.means() | self._estimate(v_real, v_fake) | self._measure_rates()
        scalars |= {**self._measure_diversity(), **metrics}
        scalars |= parameter_values(generator=self.state.generator, discriminator=self.state.discriminator)
        scalars |= {f"schedule/{key}": ramp.at(self.state.images) for key, ramp in self.ramps.items()}
        ratios = self.objective.log_ratios(v_real, v_fake)
        histograms = {} if ratios is None else {"log_ratio/real": ratios[0], "log_ratio/fake": ratios[1]}
        self.reporter.report(self.state.images, scalars, histograms)
        for sentence in self.health.check(scalars):
            self.note(sentence)
        is_last = self.state.images >= self.schedule.images
        if is_last or time.monotonic() - self.last_curves_time > SECONDS_BETWEEN_CURVES:
            self.draw_curves()

    def _estimate(self, v_real: Tensor, v_fake: Tensor) -> dict[str, float]:
        """Return the objective's estimates; bounds and divergences are named `training_…` if no data are held out.

        With held-out data there are a two-sample test, and confidence limits unless `best.metric` uses the same data;
        neither where the augmentation follows these data, or D compares the samples of a batch.
        """
        found = self.objective.estimates(v_real, v_fake)
        if not self.data.has_held_out:
            return {name if name.startswith("ratio/") else f"training_{name}": v for name, v in found.items()}
        if not self.has_limits:
            return found
        outputs = [v.cpu().double() for v in (v_real, v_fake)]
        area, p_value = inference.compare_ranks(*(self.objective.log_ratios(*outputs) or outputs))
        ratios = [r for v in outputs if (r := self.objective.log_ratio(v)) is not None]
        if ratios and (self.evaluation is None or self.evaluation.best is None):
            found |= estimates.confidence_limits(estimates.Pair(*ratios), self.objective.divergences, self.reports)
        return found | {"two_sample/auc": area, "two_sample/p_value": p_value}

    @torch.no_grad()
    def compute_held_out_outputs(self) -> tuple[Tensor, Tensor]:
        """Return D's raw outputs `[N]` on held-out data and on as many new samples, in evaluation mode."""
        real = self.data.held_out(self.schedule.held_out_images)
        z = self.latents.draw(len(real), stream_generator(self.seed, "report", self.state.images))
        with (
            evaluation_mode(self.state.generator, self.state.discriminator),
            allow_tf32(self.precision == "tf32"),
            autocast_products(self.precision, self.state.device),
        ):
            chunks = zip(real.split(self.schedule.batch_size), z.split(self.schedule.batch_size), strict=True)
            outputs = [
                (self.state.discriminator(x), self.state.discriminator(self.state.generator(latents)))
                for x, latents in chunks
            ]
        v_real, v_fake = (torch.cat(parts).float() for parts in zip(*outputs, strict=True))
        return v_real, v_fake

    def _measure_diversity(self) -> dict[str, float]:
        """Return the mean distance between samples of the fixed latents, divided by that between real examples."""
        if self.real_distance == 0:
            return {}
        latents = self.latents.draw_fixed(GRID_IMAGES, self.seed)
        samples = self.sampler.generate(latents).flatten(1)
        return {"diversity/pixel_distance": mean_distance(samples) / self.real_distance}

    @cached_property
    def real_distance(self) -> float:
        """The mean distance between two real examples, in pixels."""
        real = self.data.held_out(GRID_IMAGES).flatten(1).cpu()
        return mean_distance(real) if len(real) > 1 else 0.0

    def _measure_rates(self) -> dict[str, float]:
        now, images = time.monotonic(), self.state.images
        seconds, self.last_report_time = now - self.last_report_time, now
        shown, self.reported_images = images - self.reported_images, images
        rates = {
            "speed/images_per_second": shown / max(seconds, 1e-9),
            "system/memory_bytes": measure_peak_memory(),
        }
        if self.newest_checkpoint is not None:
            rates[CHECKPOINT_AGE] = now - self.last_checkpoint_time
        with self.reporter.tolerate_failures():
            rates["system/free_disk_bytes"] = float(shutil.disk_usage(self.folder.path).free)
        if self.state.device.type == "cuda":
            rates["system/device_memory_bytes"] = float(torch.cuda.max_memory_allocated(self.state.device))
        return rates

    def _measure_samples(self) -> dict[str, float]:
        """Evaluate the generator and return its metrics; NaN if samples cannot be measured, which costs no run."""
        if self.evaluation is None:
            return {}
        made_by, images = self.sampler.source, self.state.images
        try:
            samples = self._draw_evaluated(self.evaluation)
            result = self.evaluation.reference_set.measure(samples, self.reporter.show_progress)
        except Exception as error:
            if not isinstance(error, METRIC_ERRORS) and not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            self.note(f"samples of the {made_by} at {images:,} images cannot be measured: {reason}")
            return dict.fromkeys(self.evaluation.reference_set.reference, math.nan)
        facts = {"images": images, "checkpoint": checkpoints.file_name(images), "samples_from": made_by}
        self.latest_evaluation = evaluation.build_document(result, facts, self.evaluation.seed)
        self.is_new_best = self.evaluation.improves(self.latest_evaluation, self.best)
        best = f"; the best {self.evaluation.best} so far" if self.is_new_best else ""
        self.note(f"the {made_by} at {images:,} images: {self.evaluation.summarize(result)}{best}")
        if images >= self.schedule.images:
            with self.reporter.tolerate_failures():
                evaluation.write_evaluation(self.folder.path, self.latest_evaluation, samples, self.data)
        return result.metrics

    def _draw_evaluated(self, evaluated: Evaluation) -> Tensor:
        """Return the samples that `gantrain evaluate` would measure, 8-bit images or points.

        Raises FloatingPointError if they are not finite.
        """
        latents = self.latents.draw(evaluated.reference_set.count, stream_generator(evaluated.seed, "sample"))
        samples = self.sampler.generate(latents)
        if not bool(samples.isfinite().all()):
            raise FloatingPointError("they are not finite")
        return to_uint8(samples) if self.has_images else samples

    def _find_best(self) -> Mapping[str, Any] | None:
        """Return the evaluation in best.pt, None if there is no such file.

        A run that was killed between two names may have left its newest checkpoint without this one; it is made here.
        """
        if self.evaluation is None or self.evaluation.best is None:
            return None
        best, newest = map(self._read_evaluation, (self.folder.checkpoints / checkpoints.BEST, self.newest_checkpoint))
        if self.newest_checkpoint is None or newest is None or not self.evaluation.improves(newest, best):
            return best
        checkpoints.link_file(checkpoints.BEST, self.newest_checkpoint)
        return newest

    def _read_evaluation(self, path: Path | None) -> Mapping[str, Any] | None:
        """Return the evaluation in a checkpoint, None for one beyond this clock."""
        try:
            bundle = checkpoints.load(path) if path is not None else {}
        except CheckpointError:
            return None
        found = bundle.get("evaluation")
        return found if isinstance(found, Mapping) and bundle["images"] <= self.state.images else None

    def draw_samples(self) -> None:
        """Draw a grid (or a scatter plot) of samples from the run's fixed latents."""
        path = self.folder.samples / f"images_{self.state.images:012d}.png"
        count = GRID_IMAGES if self.has_images else SCATTER_POINTS
        samples = self.sampler.generate(self.latents.draw_fixed(count, self.seed))
        with self.reporter.tolerate_failures():
            make_folder(path.parent)
            self._draw(samples, path, real=None if self.has_images else self.data.held_out(SCATTER_POINTS))
            self.reporter.add_picture(self.state.images, "samples", path)

    def _draw(self, points: Tensor, path: Path, *, real: Tensor | None = None, name: str = "samples") -> None:
        if self.has_images:
            plotting.save_grid(points, path)
        else:
            log_density = getattr(self.data, "log_density", None)
            pictures.save_scatter(points, path, real=real, log_density=log_density, name=name)

    def draw_curves(self) -> None:
        """Draw `losses.png` from the metrics file."""
        trained = [each.name for each in (self.objective.main_divergence, self.objective.gen_div) if each is not None]
        with self.reporter.tolerate_failures():
            reports = [row for row in read_metrics(self.folder.metrics) if "loss/discriminator" in row]
            if reports:
                pictures.save_curves(reports, self.folder.path / "losses.png", highlight=trained)
        self.last_curves_time = time.monotonic()

    def is_checkpoint_late(self) -> bool:
        """Return whether the last checkpoint, or the start, is `checkpoint_max_minutes` ago."""
        return time.monotonic() - self.last_checkpoint_time > 60 * self.schedule.checkpoint_max_minutes

    def save_checkpoint(self, *, now: bool) -> None:
        """Save the state, unless the last checkpoint is younger than `checkpoint_min_seconds` and `now` is off."""
        if not now and time.monotonic() - self.last_checkpoint_time < self.schedule.checkpoint_min_seconds:
            return
        bundle = {
            "format": checkpoints.FORMAT,
            "images": self.state.images,
            **self.provenance,
            "data": {"shape": list(self.data.shape), "fingerprint": self.data.fingerprint},
            "made_with": describe_machine(self.state.device),
            "state": self.state.state_dict(),
        }
        if self.latest_evaluation.get("images") == self.state.images:
            bundle["evaluation"] = self.latest_evaluation
        keep = self.schedule.keep_checkpoints
        self.newest_checkpoint = checkpoints.save(self.folder.checkpoints, bundle, keep=keep, best=self.is_new_best)
        if self.is_new_best:
            self.best, self.is_new_best = self.latest_evaluation, False
        self.last_checkpoint_time = time.monotonic()
        self.note(f"checkpoint {self.newest_checkpoint.name}")

    def describe_checkpoint(self) -> str:
        """Return a sentence about the last good checkpoint, for the message of an error that ends the run."""
        if self.newest_checkpoint is None:
            return "there is no good checkpoint yet"
        path, lost = self.newest_checkpoint, ", which is no longer there"
        return f"the last good checkpoint is {path}{'' if path.exists() else lost}"

    def describe_log_ratio(self) -> str:
        """Return a line about the largest |r| of held-out data and samples; empty if there is no ratio."""
        ratios = self.objective.log_ratios(*self.compute_held_out_outputs())
        largest = max((float(r.abs().max()) for r in ratios or ()), default=0.0)
        return f"the largest |r| on held-out data is {largest:.6g}\n" if ratios else ""
