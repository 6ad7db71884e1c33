"""Evaluation of runs, sweeps and stored samples: where samples come from, and the data that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import data, plotting
from gantrain.config.schema import CodeOptions
from gantrain.console import Progress, say
from gantrain.errors import CheckpointError, ConfigError, GantrainError, drop_traceback
from gantrain.evaluation import evaluation
from gantrain.evaluation.evaluation import ReferenceSet, Result
from gantrain.evaluation.features import EvaluationSettings
from gantrain.files import check_writable, convert_system_errors, convert_write_errors
from gantrain.launch.sweep import raise_failures
from gantrain.launch.sweep_folder import compare_sweep, job_number
from gantrain.runs import checkpoints

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gantrain.data import Dataset, DatasetSettings


@dataclass(frozen=True)
class SampleSource:
    """Where samples come from. `draw(count, shape)` gives at most `count` of them: uint8 images, or points."""

    draw: Callable[[int, tuple[int, ...]], Tensor]
    facts: dict[str, Any]  # for evaluation.json
    seed: int
    config: Mapping[str, Any] | None = None  # of the run
    fingerprint: str | None = None  # of the images it was trained on


def is_run(path: Path) -> bool:
    """Return whether `path` is a run folder or a checkpoint, rather than stored samples."""
    return path.suffix == ".pt" or (path / "checkpoints").is_dir()


def open_run(path: Path, seed: int, device: torch.device, options: CodeOptions) -> SampleSource:
    """Load the generator of a run or a checkpoint. Raises CheckpointError if there is none that is whole."""
    from gantrain.evaluation.samples import to_uint8
    from gantrain.training.generator import restore_generator

    path, bundle, problems = checkpoints.load_run(path)
    for problem in problems:
        say(f"passed over: {problem}")
    code, statistics = options.architecture.object, options.ema_statistics
    generator = restore_generator(path, bundle, problems, object=code, ema_statistics=statistics).to(device)

    def draw(count: int, shape: tuple[int, ...]) -> Tensor:
        samples = generator.sample(count, seed)
        plotting.check_finite(samples, f"values in the samples of {path}")
        if samples.shape[1:] != shape:
            raise ConfigError(f"{path} makes samples of shape {list(samples.shape[1:])}, the data have {list(shape)}")
        return to_uint8(samples) if len(shape) == 3 else samples

    facts = {"images": generator.images, "checkpoint": path.name, "samples_from": generator.source}
    return SampleSource(draw, facts, seed, bundle["config"], bundle["data"].get("fingerprint"))


def open_samples(path: Path, seed: int) -> SampleSource:
    """Return the samples in a folder, a .zip or an array, which are read when they are drawn."""

    def draw(count: int, shape: tuple[int, ...]) -> Tensor:
        from gantrain.evaluation.samples import choose_examples, read_samples

        return choose_examples(read_samples(path, shape), count, "samples", seed=seed)

    return SampleSource(draw, {"images": None, "checkpoint": None, "samples_from": path.name}, seed)


class ReferenceCache:
    """One dataset, and its reference sets by number of samples, which the runs of a sweep share."""

    def __init__(self, settings: EvaluationSettings, device: torch.device, progress: Progress) -> None:
        self.settings, self.device, self.progress = settings, device, progress
        self._dataset: tuple[DatasetSettings, Dataset] | None = None
        self._sets: dict[int, ReferenceSet] = {}

    def load_dataset(self, dataset_settings: DatasetSettings) -> Dataset:
        """Return the dataset with these settings. Raises ConfigError for metrics that it does not have."""
        if self._dataset is None or self._dataset[0] != dataset_settings:
            self._dataset, self._sets = None, {}  # first: two datasets at a time might not fit in memory
            evaluation.choose_metrics(self.settings, dataset_settings.name)
            self._dataset = dataset_settings, data.load_dataset(dataset_settings, device=self.device)
        return self._dataset[1]

    def build_reference_set(self, dataset_settings: DatasetSettings, count: int) -> ReferenceSet:
        """Return the reference set of a dataset for `count` samples."""
        dataset = self.load_dataset(dataset_settings)
        if count not in self._sets:
            self._sets[count] = evaluation.build_reference_set(
                dataset, dataset_settings, self.settings, device=self.device, count=count, progress=self.progress
            )
        return self._sets[count]


def evaluate_source(
    source: SampleSource, dataset_settings: DatasetSettings, references: ReferenceCache, *, out: Path
) -> Result:
    """Measure samples, and write evaluation.json and neighbours.png to `out`.

    Raises CheckpointError if the data are not those that the source was trained on, StorageError.
    """
    from gantrain.evaluation.samples import select_real_examples

    with convert_write_errors(out):
        check_writable(out)  # before a measurement, which may take minutes
    dataset, settings = references.load_dataset(dataset_settings), references.settings
    if source.fingerprint not in (None, dataset.fingerprint):
        raise CheckpointError(
            f"{dataset.label} has changed since the run was trained: its fingerprint is {dataset.fingerprint}, was "
            f"{source.fingerprint}; restore the images, or name the data to compare with: dataset=…"
        )
    real, _ = select_real_examples(dataset, settings.count, settings.split)
    samples = source.draw(settings.count or len(real), dataset.shape)
    reference_set = references.build_reference_set(dataset_settings, len(samples))
    result = reference_set.measure(samples, references.progress)
    with convert_write_errors(out):
        document = evaluation.build_document(result, source.facts, source.seed)
        evaluation.write_evaluation(out, document, samples, dataset)
    return result


def evaluate_sweep(root: Path, evaluate_run: Callable[[Path], None]) -> None:
    """Evaluate every run of a sweep and update its report. Raises RunFailed at the end if one could not be measured."""
    failed: dict[str, GantrainError] = {}
    for run in sorted(root.glob("*/checkpoints"), key=lambda path: job_number(path.parent)):
        say(f"\n{run.parent}")
        try:
            with convert_system_errors(run.parent, "ask for fewer samples: count=N"):
                evaluate_run(run.parent)
        except GantrainError as error:
            failed[run.parent.name] = drop_traceback(error)
            say(f"failed: {error}", error=True)
    say("")
    compare_sweep(root, names_failures=True)
    raise_failures(failed, "could not be measured")
