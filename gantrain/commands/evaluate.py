"""`gantrain evaluate`: how good the samples of a generator are and how diverse, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain import data
from gantrain.commands import classifier as classifiers
from gantrain.commands.resume import changed_by, refuse_sweep
from gantrain.comparison import comparison
from gantrain.config import checks, overrides
from gantrain.config.schema import choice, number
from gantrain.console import say, seen_or_not
from gantrain.errors import CheckpointError, ConfigError, DivergedError, GantrainError, StorageError, one_of
from gantrain.evaluation import evaluation, metric_names
from gantrain.evaluation import features as eyes
from gantrain.evaluation.evaluation import FEWEST, Result, Yardstick
from gantrain.files import reason
from gantrain.launch import sweep
from gantrain.runs.folder import RunFolder
from gantrain.screen import console

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from gantrain.data import Dataset

HELP = """Measure the quality and the diversity of samples against images that were kept from training.

  gantrain evaluate RUN|SWEEP|CHECKPOINT|FOLDER|NPZ [metrics=[…]] [count=N] [seed=0] [split=held_out]
                    [reference=true] [features=auto|classifier|inception] [classifier=FILE] [inception=FILE]
                    [dataset=…] [out=DIR] [object=package:function] [device=auto]

Examples
  gantrain evaluate RUN
  gantrain evaluate RUN count=5000 seed=1 metrics=[fid,prdc]
  gantrain evaluate SWEEP                             every run of it; then its report is made anew
  gantrain evaluate DIR dataset=mnist                 a folder or .zip of images that anything made
  gantrain evaluate samples.npz dataset=cifar10       an array: 8-bit or in [0, 1]
  gantrain evaluate RUN features=inception            the FID of the literature
  gantrain evaluate RUN count=26000 metrics=modes     of stacked_mnist: modes found, of 1,000

Images are seen through a classifier of the dataset's labels (gantrain classifier), which is trained first where it is
missing; classifier=FILE takes another one. features=inception takes the Inception network instead, whose weights are
downloaded once; inception=FILE says where they lie. Without any of these, coloured images are seen through Inception
where torch-fidelity is installed and its weights are present or can be downloaded. Classes are then told by a
classifier, where there is one or `classes` is asked for by name. Points of a density are measured as they are.
Samples come from the averaged generator where the run kept one. Real images are the test split or those held out
(split=training takes others); N is their number, at most 10,000. The seed chooses samples, never real images.
reference=true measures as many training images too: what a perfect generator would get.

A table is printed, and evaluation.json and neighbours.png (samples, each with the training images nearest to it) are
written to RUN; for FOLDER and NPZ to out, by default `evaluation`.

Metrics of images: {images}
Metrics of stacked_mnist, whose channels are seen one by one: {stacks}
Metrics of points: {points}
(prdc is precision, recall, density and coverage; classes is how the classes, or modes, differ from the data's)"""

BETTER = {1: "higher", -1: "lower", 0: ""}


@dataclass
class Options:
    """What `gantrain evaluate` can be told beside the dataset."""

    metrics: list[str] | None = None
    count: int | None = number(None, at_least=FEWEST, at_most=100_000)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    split: str = choice("held_out", ("held_out", "training"))
    features: str = choice(eyes.AUTO, eyes.FEATURES)
    reference: bool = True
    classifier: str | None = None
    inception: str | None = None
    out: str | None = None
    object: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Source:
    """Where samples come from. `draw(count, shape)` gives at most `count` of them: uint8 images, or points."""

    settings: dict[str, Any]  # of the dataset
    fingerprint: str | None  # of the images it was trained on; None where it is not known, or others were named
    draw: Callable[[int, tuple[int, ...]], Tensor]
    facts: dict[str, Any]
    out: Path


@dataclass(frozen=True)
class Ground:
    """Data that samples are compared with. `yardstick(count)`, for so many samples, looks at them once."""

    dataset: Dataset
    count: int  # of samples to take
    yardstick: Callable[[int], Yardstick]


Grounds = dict[str, Ground]  # by the settings of the dataset


def help_text() -> str:
    """The command's help."""
    return HELP.format(
        images=", ".join(metric_names.IMAGES),
        stacks=", ".join(metric_names.STACKS),
        points=", ".join(metric_names.POINTS),
    )


def run(arguments: list[str]) -> None:
    """Evaluate what the first argument names."""
    if not arguments or "=" in arguments[0]:
        raise ConfigError("evaluate needs a run, a checkpoint, a folder of images or an array: gantrain evaluate RUN")
    path = Path(arguments[0])
    theirs, ours = classifiers.divided(arguments[1:])
    options = overrides.read(Options, [listed(text) for text in ours])
    refuse_unknown(options.metrics)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a run folder, a checkpoint, a folder of images or an array")
    if eyes.named_networks(vars(options)) == (metric_names.INCEPTION,):  # looked for before anything is read
        from gantrain.evaluation import inception

        inception.obtained(Path(options.inception) if options.inception else None)
    if sweep.is_sweep(path):
        return evaluate_sweep(path, theirs, options)
    refuse_sweep(path, "evaluate")
    return evaluate(path, theirs, options, {})


def evaluate_sweep(root: Path, theirs: list[str], options: Options) -> None:
    """Evaluate every run of a sweep, and lay them side by side anew. Raises RunFailed at the end, where one could not
    be measured."""
    if options.out is not None:
        raise ConfigError(f"out={options.out}: an evaluation of a sweep is kept in each of its runs; leave out away")
    failed: dict[str, GantrainError] = {}
    grounds: Grounds = {}
    for run in sorted(root.glob("*/checkpoints"), key=lambda path: sweep.job_number(path.parent)):
        say(f"\n{run.parent}")
        try:
            evaluate(run.parent, theirs, options, grounds)
        except GantrainError as error:
            failed[run.parent.name] = error
            say(f"failed: {error}", error=True)
    say("")
    sweep.compare_runs(root)
    if failed:
        count = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
        reasons = sweep.listed_reasons({name: str(error) for name, error in failed.items()})
        code = next(iter(failed.values())).exit_code
        raise sweep.RunFailed(f"{count} could not be measured:\n{reasons}", code)


def evaluate(path: Path, theirs: list[str], options: Options, grounds: Grounds) -> None:
    """Evaluate a run, a checkpoint, or stored samples, on one of the `grounds` where the data are the same."""
    is_run = path.suffix == ".pt" or (path / "checkpoints").is_dir()
    source = trained(path, theirs, options) if is_run else stored(path, theirs, options)
    result = measured(source, ground_of(source.settings, options, grounds))
    write(source, result, options)  # before anything is shown: the reader of a pipe may leave
    show(source, result, options)
    say(f"evaluation.json is in {source.out}")


def listed(argument: str) -> str:
    """`metrics=fid,kid` as `metrics=[fid,kid]`; other arguments as they are."""
    key, _, names = argument.partition("=")
    return f"metrics=[{names.removeprefix('[').removesuffix(']')}]" if key == "metrics" else argument


def refuse_unknown(metrics: list[str] | None) -> None:
    """Raise ConfigError for a name that is no metric's."""
    for name in metrics or ():
        if name not in (known := dict.fromkeys(metric_names.IMAGES + metric_names.STACKS + metric_names.POINTS)):
            raise ConfigError(one_of("metrics", name, known))


# ---------------------------------------------------------------------------------------------------------------------
# Samples


def trained(path: Path, typed: list[str], options: Options) -> Source:
    """The generator of a run or a checkpoint, and the data of its run unless others are `typed`."""
    from gantrain.evaluation.samples import quantised
    from gantrain.launch.build import choose_device
    from gantrain.runs import checkpoints
    from gantrain.training import state

    folder = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    if options.out is None:
        RunFolder(folder).refuse_links()
    problems: list[str] = []
    if path.is_dir():
        path, bundle, problems = checkpoints.newest(path / "checkpoints")
    else:
        bundle = checkpoints.load(path)
    for problem in problems:
        say(f"passed over: {problem}")
    values = overrides.values(typed)
    settings = (
        classifiers.composed(typed)
        if "dataset" in values
        else checks.typed(changed_by(values, bundle["config"]))["dataset"]  # the rest may be for another machine
    )
    generator = state.load(path, object=options.object).to(choose_device(options.device))

    def draw(count: int, shape: tuple[int, ...]) -> Tensor:
        samples = generator.sample(count, options.seed)
        if not bool(samples.isfinite().all()):
            raise DivergedError(f"{path}: samples are not finite; the generator has diverged")
        if samples.shape[1:] != shape:
            raise ConfigError(f"{path} makes samples of shape {list(samples.shape[1:])}, the data have {list(shape)}")
        return quantised(samples) if len(shape) == 3 else samples

    return Source(
        settings,
        fingerprint=None if values.keys() - {"dataset.root", "dataset.path"} else bundle["data"].get("fingerprint"),
        draw=draw,
        facts={
            "images": generator.images,
            "checkpoint": path.name,
            "samples_from": "averaged generator" if "average" in bundle["state"] else "generator",
        },
        out=Path(options.out or folder),
    )


def stored(path: Path, typed: list[str], options: Options) -> Source:
    """Samples that lie on the disk, and the data that are `typed`."""
    if not any(text.startswith("dataset=") for text in typed):
        raise ConfigError(f"{path} is no run, so the data to compare with have to be named: dataset=…")
    settings = classifiers.composed(typed)

    def draw(count: int, shape: tuple[int, ...]) -> Tensor:
        from gantrain.evaluation import samples as stored

        return evaluation.some(stored.read(path, shape), count, "samples", options.seed)

    facts = {"images": None, "checkpoint": None, "samples_from": path.name}
    return Source(settings, None, draw, facts, Path(options.out or "evaluation"))


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def ground_of(settings: dict[str, Any], options: Options, grounds: Grounds) -> Ground:
    """The ground of a dataset with these settings, kept in `grounds` in place of the one before."""
    if (key := repr(settings)) not in grounds:
        grounds.clear()  # first: two datasets at a time might not fit in memory
        grounds[key] = read(settings, options)
    return grounds[key]


def read(settings: dict[str, Any], options: Options) -> Ground:
    """The data with these settings; its yardstick raises DataError for too few examples to measure any."""
    from gantrain.launch.build import choose_device

    device = choose_device(options.device)
    dataset = data.load(**settings, device=device)
    asked = vars(options)
    network = eyes.network_for(dataset, asked)
    metrics = classifiers.chosen(asked, dataset, settings, network)
    real, split = evaluation.real_examples(dataset, options.count, options.split)

    @cache
    def yardstick(count: int) -> Yardstick:
        fitting = real[:count]  # of fewer samples than real ones, coverage would say nothing
        evaluation.refuse_few(count, len(fitting))
        wanted = options.reference and split != "training"
        reference = evaluation.training_examples(dataset, count) if wanted else None
        seen_by = classifiers.eyes_for(asked, dataset, settings, network, metrics, device)
        return Yardstick.of(dataset, fitting, split, seen_by, metrics, reference, classifiers.progress)

    return Ground(dataset, options.count or len(real), yardstick)


def measured(source: Source, ground: Ground) -> Result:
    """All numbers that were asked for. Raises CheckpointError for other data than those of the training."""
    dataset = ground.dataset
    if source.fingerprint not in (None, dataset.fingerprint):
        raise CheckpointError(
            f"{dataset.label} has changed since the run was trained: its fingerprint is {dataset.fingerprint}, was "
            f"{source.fingerprint}; restore the images, or name the data to compare with: dataset=…"
        )
    samples = source.draw(ground.count, dataset.shape)
    result = ground.yardstick(len(samples)).measure(samples, classifiers.progress)
    if isinstance(dataset, data.Images):
        with writing(source.out):
            evaluation.draw_neighbours(samples, dataset.train, source.out)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# On the screen and on the disk


def show(source: Source, result: Result, options: Options) -> None:
    """Print how the numbers were obtained, and the table."""
    samples, real = result.counts
    facts, split = source.facts, result.split.replace(" ", "-")
    origin = facts["samples_from"]
    if facts["images"] is not None:
        origin = f"the {origin} at {facts['images']:,} images"
    say(
        f"{samples:,} samples of {origin} against {real:,} {split} examples of {result.label}, "
        f"seed {options.seed}; features: {eyes.described(result.features)}"
    )
    with seen_or_not():
        console().print(table(result))
    if result.missing and "diversity/missing_classes" in result.metrics:
        say(f"missing: {', '.join(result.missing)}")


def table(result: Result) -> Table:
    """One row a number, beside what as many training examples give, or all of them where there are fewer."""
    from rich.table import Table

    rows = Table(box=None, pad_edge=False)
    for head in ("metric", "samples", *([result.reference_name] if result.reference else []), "better"):
        rows.add_column(head, justify="left" if head in ("metric", "better") else "right", no_wrap=True)
    for name in result.metrics:
        if not name.endswith("_error"):
            values = [result.metrics, *([result.reference] if result.reference else [])]
            rows.add_row(name, *(with_error(name, each) for each in values), BETTER[comparison.better(name)])
    return rows


def with_error(name: str, values: Mapping[str, float]) -> str:
    """A number to four digits, ± its error where it has one."""
    error = values.get(f"{name}_error")
    text = f"{values[name]:,.0f}" if abs(values[name]) >= 10_000 else f"{values[name]:.4g}"
    return (text + (f" ± {error:.2g}" if error is not None else "")).replace("-", "−")


def write(source: Source, result: Result, options: Options) -> None:
    """Write evaluation.json."""
    with writing(source.out):
        evaluation.write(source.out, evaluation.document(result, source.facts, options.seed))


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an OSError into one sentence about `out`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or out} cannot be written: {reason(error)}; or give another out=DIR"
        ) from error
