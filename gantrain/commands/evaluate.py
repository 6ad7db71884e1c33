"""`gantrain evaluate`: metrics of the quality and the diversity of samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gantrain.config import overrides
from gantrain.config.checks import parse_config, parse_dataset, validate
from gantrain.config.compose import compose
from gantrain.config.schema import CodeOptions, choice, number
from gantrain.console import build_table, format_number, print_tables, say, show_progress
from gantrain.data import DatasetSettings
from gantrain.devices import choose_device
from gantrain.errors import CheckpointError, ConfigError
from gantrain.evaluation import evaluation, features, metrics
from gantrain.evaluation.evaluation import Result
from gantrain.evaluation.features import EvaluationSettings
from gantrain.files import expand_home, iterate_leaves
from gantrain.launch.evaluate import (
    ReferenceCache,
    SampleSource,
    evaluate_source,
    evaluate_sweep,
    is_run,
    open_run,
    open_samples,
)
from gantrain.launch.resume import change_config, refuse_sweep
from gantrain.launch.sweep_folder import is_sweep
from gantrain.runs.folder import RunFolder

if TYPE_CHECKING:
    from rich.table import Table

HELP = f"""Measure the quality and the diversity of samples by comparing them with held-out images.

  gantrain evaluate RUN|SWEEP|CHECKPOINT|FOLDER|NPZ [metrics=[…]] [count=N] [seed=0] [split=held_out]
                    [reference=true] [features=auto|classifier|inception] [classifier=FILE] [inception=FILE]
                    [ema_statistics=copied|standing] [dataset=…] [out=DIR] [architecture.object=package:function]
                    [device=auto]
  gantrain evaluate dataset=NAME [train_classifier.epochs=N] [train_classifier.width=N] [train_classifier.seed=0]
                    [classifier=FILE] [device=auto]

Examples
  gantrain evaluate RUN
  gantrain evaluate RUN count=5000 seed=1 metrics=[fid,prdc]
  gantrain evaluate SWEEP                             every run of it; its report is then updated
  gantrain evaluate DIR dataset=mnist                 a folder or .zip of images from anywhere
  gantrain evaluate samples.npz dataset=cifar10       an array: 8-bit or in [0, 1]
  gantrain evaluate RUN features=inception            the FID of the literature
  gantrain evaluate RUN count=26000 metrics=modes     of stacked_mnist: modes found, of 1,000
  gantrain evaluate dataset=cifar10 train_classifier.width=128 device=cuda       trains the classifier only

Features of images come from a classifier of the dataset's labels. A missing classifier is trained first and stored in
$XDG_CACHE_HOME/gantrain/classifiers (~/.cache/gantrain/classifiers) under the fingerprint of the images; one that was
trained with other train_classifier settings than those given is replaced. classifier=FILE uses another classifier.
By default this takes minutes of a CPU core; for colour images train_classifier.width=64 train_classifier.epochs=17 is
more accurate and takes thirty times as long.
Without samples, `gantrain evaluate dataset=NAME` trains or finds the classifier and prints its accuracy on held-out
images; classifier=FILE is then the file in which it is stored.
features=inception uses the Inception network of the literature, whose weights are downloaded once, or read from
inception=FILE. Metrics of classes are then measured only if classifier=FILE is given or metrics names them.
Samples come from the averaged generator if the run has one. ema_statistics replaces the run's own choice of its
batch-norm statistics: copied from the generator, or standing, estimated from samples of the average. Real images are
the test split or the held-out images (split=training: training images). The default of count is their number, at most
10,000; at least 20 are needed. The seed selects samples, never real images.
reference=true also measures the same number of training images, which shows what a perfect generator would get.

The numbers are printed as a table. evaluation.json and neighbours.png (samples, each with the training images nearest
to it) are written to RUN, or for FOLDER and NPZ to out, by default `evaluation`.

Metrics of images: {", ".join(metrics.IMAGES)}
Metrics of stacked_mnist, from each channel by itself: {", ".join(metrics.STACKS)}
Metrics of points: {", ".join(metrics.POINTS)}
(prdc is precision, recall, density and coverage; classes is how the classes, or modes, differ from the data's)"""

BETTER = {metrics.HIGHER: "higher", metrics.LOWER: "lower", metrics.NEITHER: ""}
OF_CLASSIFIER = ("classifier", "train_classifier", "device")  # options without samples


@dataclass
class TrainClassifier:
    """Settings of the classifier's training."""

    epochs: int | None = number(None, at_least=1, at_most=10_000)
    width: int | None = number(None, at_least=1, at_most=1024)
    seed: int | None = number(None, at_least=0, at_most=2**63 - 1)


@dataclass
class Options(CodeOptions):
    """The options of `gantrain evaluate` beside the dataset."""

    metrics: list[str] | None = None
    count: int | None = number(None, at_least=evaluation.MIN_COUNT, at_most=100_000)
    seed: int = number(0, at_least=0, at_most=2**63 - 1)
    split: str = choice("held_out", ("held_out", "training"))
    features: str = choice(features.AUTO, features.FEATURES)
    reference: bool = True
    classifier: str | None = None
    inception: str | None = None
    train_classifier: TrainClassifier = field(default_factory=TrainClassifier)
    out: str | None = None
    device: str = "auto"

    def settings(self) -> EvaluationSettings:
        """Return what is measured."""
        values = {item.name: getattr(self, item.name) for item in fields(EvaluationSettings)}
        return EvaluationSettings(**values | {"train_classifier": self.training_overrides()})

    def training_overrides(self) -> dict[str, int]:
        """Return the settings of the classifier's training that were given."""
        return {key: value for key, value in asdict(self.train_classifier).items() if value is not None}


def run(arguments: list[str]) -> None:
    """Evaluate what the first argument names, or train the classifier of a dataset if there are no samples."""
    samples, typed = overrides.split_source(arguments, Options)
    dataset, others = split_arguments(typed)
    options = overrides.parse_into(Options, overrides.bracket_list(others, "metrics"))
    if samples is None:
        return store_classifier(dataset, options)
    path = expand_home(samples)
    if options.classifier and (given := options.training_overrides()):
        raise ConfigError(
            f"train_classifier.{next(iter(given))} trains the classifier of the data, and classifier="
            f"{options.classifier} takes another; give one of them"
        )
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a run folder, a checkpoint, a folder of images or an array")

    references = ReferenceCache(options.settings(), choose_device(options.device), show_progress)
    if not is_sweep(path):
        refuse_sweep(path, "evaluate")
        return evaluate(path, dataset, options, references=references)
    if options.out is not None:
        raise ConfigError(f"out={options.out}: an evaluation of a sweep is written into each of its runs; remove out=")
    return evaluate_sweep(path, lambda run: evaluate(run, dataset, options, references=references))


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments that describe the dataset, as `gantrain train` takes them, and the others."""
    dataset = [text for text in arguments if text.partition("=")[0].partition(".")[0] == "dataset"]
    others = [text for text in arguments if text not in dataset]
    return [argument.text for argument in overrides.parse_train(dataset)], others


def compose_dataset(arguments: list[str]) -> DatasetSettings:
    """Return the settings of the dataset that the arguments describe. Raises ConfigError."""
    return validate(compose(arguments), arguments).settings.data


def store_classifier(dataset: list[str], options: Options) -> None:
    """Train the classifier of a dataset, unless it is there, and say how accurate it is."""
    if not any(text.startswith("dataset=") for text in dataset):
        raise ConfigError(
            "evaluate needs a run, a checkpoint, a folder of images or an array: gantrain evaluate RUN; without one, "
            "gantrain evaluate dataset=NAME trains the classifier of a dataset"
        )
    given, default = (dict(iterate_leaves(asdict(each), into_lists=False)) for each in (options, Options()))
    for key, value in given.items():
        if key.partition(".")[0] not in OF_CLASSIFIER and value != default[key]:
            raise ConfigError(
                f"{key}={value} is for the evaluation of samples, and there are none: gantrain evaluate RUN {key}=…; "
                "without samples the classifier is trained, by train_classifier.epochs, .width and .seed"
            )
    settings = compose_dataset(dataset)

    from gantrain.evaluation.classifier import cache_path
    from gantrain.evaluation.classifier_training import obtain_classifier

    device = choose_device(options.device)
    images = features.load_images(features.choose_classifier_data(settings), device)
    path = expand_home(options.classifier) if options.classifier else cache_path(images)
    stored = obtain_classifier(images, path, options.training_overrides(), progress=show_progress)
    extractor = features.classifier_extractor(stored, device)
    classes = len(extractor.classes)
    say(f"{path}: {features.describe_features(extractor.description)}, {classes} classes")


def evaluate(path: Path, arguments: list[str], options: Options, *, references: ReferenceCache) -> None:
    """Evaluate a run, a checkpoint or stored samples, and print the numbers."""
    device, values = references.device, overrides.single_values(overrides.parse(arguments))
    if is_run(path):
        folder = RunFolder.containing(path)
        if options.out is None:
            folder.refuse_links()
        out, source = folder.path, open_run(path, options.seed, device, options)
    else:
        out, source = Path("evaluation"), open_samples(path, options.seed)
    if "dataset" in values:
        settings = compose_dataset(arguments)
    elif source.config is None:
        raise ConfigError(f"{path} is no run, so the data to compare with have to be named: dataset=…")
    else:
        # Only the dataset is validated: the rest of the config may be for another machine.
        settings = parse_dataset(parse_config(change_config(source.config, values)).dataset)
    if values.keys() - {"dataset.root", "dataset.path", "dataset.labels"}:
        source = replace(source, fingerprint=None)  # other data
    out = expand_home(options.out or out)
    result = evaluate_source(source, settings, references, out=out)
    print_result(source, result)
    say(f"evaluation.json is in {out}")


def print_result(source: SampleSource, result: Result) -> None:
    """Print how the numbers were obtained, and the table."""
    origin, images = source.facts["samples_from"], source.facts["images"]
    if images is not None:
        origin = f"the {origin} at {images:,} images"
    description = features.describe_features(result.reference_set.extractor.description)
    say(f"{result.describe(source.seed, origin)}; features: {description}")
    print_tables(result_table(result))
    if result.missing and "diversity/missing_classes" in result.metrics:
        say(f"missing: {', '.join(result.missing)}")


def result_table(result: Result) -> Table:
    """Return a table with a row for each number, beside that of training examples."""
    columns, reference = {"samples": result.metrics}, result.reference_set.reference
    if reference:
        columns[result.reference_name] = reference
    rows = [
        [name, *(with_error(name, each) for each in columns.values()), BETTER[metrics.better_direction(name)]]
        for name in result.metrics
        if not name.endswith("_error")
    ]
    return build_table(["metric", *columns, "better"], rows, right=columns)


def with_error(name: str, values: Mapping[str, float]) -> str:
    """Return a number with four digits, ± its error if it has one."""
    error, value = values.get(f"{name}_error"), values[name]
    text = format_number(value, ",.0f" if abs(value) >= 10_000 else "")
    return text if error is None else f"{text} ± {format_number(error, '.2g')}"
