"""The schema of `gantrain train`: every key with its type, range, default and meaning.

Sections are dataclasses, from which Hydra takes types and defaults; help, documentation and checks take the rest from
the same fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gantrain.data import decoding, labels, memory_map
from gantrain.devices import DEVICES
from gantrain.errors import ConfigError
from gantrain.evaluation import evaluation, features
from gantrain.networks.latents import PRIORS
from gantrain.objectives import heads
from gantrain.objectives.critics import F_DIVERGENCE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.ranges import Accepted, Choice, Numbers
from gantrain.training.setup import PRECISIONS, STATISTICS, SWITCHES, UPDATES

LOGGERS = ("tensorboard", "wandb")
# Sections whose keys depend on their name, and are checked against it.
OPEN_SECTIONS = ("architecture", "critic", "optimizer", "regularizer", "augment")
# Some of their keys, to suggest when one is mistyped.
OPEN_KEYS = (
    *("critic.pairs", "optimizer.lr", "optimizer.betas", "optimizer.weight_decay", "regularizer.weight", "augment.p"),
)
# Options that earlier versions had, with what to choose in their place.
REMOVED = {
    ("update", "reuse"): "update=reuse is gone; choose update=alternating",
    ("hydra/launcher", "packed"): "hydra/launcher=packed is now hydra/launcher=parallel; a sweep that was begun with "
    "packed goes on with its own command, hydra/launcher=parallel and resume=auto",
}


def setting(default: Any, about: str, accepted: Accepted | None = None) -> Any:
    """Return a field with a description for the help and the documentation, and the values that it takes."""
    return field(default=default, metadata={"about": about, "accepted": accepted})


def number(
    default: Any, about: str = "", *, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf
) -> Any:
    """Return a field that holds a finite number in an interval."""
    accepted = Numbers(at_least=at_least, above=above, at_most=at_most, also=(None,))  # OmegaConf knows the type
    return setting(default, about, accepted)


def choice(default: str | None, options: Iterable[str | None], about: str = "") -> Any:
    """Return a field that holds one of `options`."""
    return setting(default, about, Choice(tuple(options)))


@dataclass(frozen=True)
class DatasetConfig:
    """The dataset and how it is read; None stands for the dataset's natural value."""

    name: str = "???"
    root: str = setting("data", "folder of the published datasets; missing ones are downloaded into it")
    path: str | None = setting(None, "folder or .zip file of images, or file of an array, for dataset=folder and array")
    size: int | None = number(None, "side length to which images are resized, in pixels", at_least=1, at_most=1024)
    held_out: int | None = number(None, "number of held-out images, by default the test split or a tenth", at_least=0)
    on_bad: str = choice("error", ("error", "skip"), "action on a damaged image file")
    label: str | None = setting(None, "name of the data in outputs; by default that of the dataset")
    flip: bool | None = setting(None, "mirror each training image with probability 1/2")
    labels: str = choice("auto", labels.KINDS, "source of the classes of images, for dataset=folder")
    fit: str = choice("crop", decoding.FITS, "how images become square, for dataset=folder and array")
    range: Any = setting(
        None, "values that become black and white, [BLACK,WHITE]; auto: the least and the greatest of the data"
    )
    resident: str = choice(
        "auto", memory_map.RESIDENCES, "where images are kept; auto: the first of these places that has room for them"
    )
    weights: list[float] | None = setting(None, "weights of the Gaussians, for dataset=mixture1d")
    means: list[float] | None = setting(None, "means of the Gaussians, for dataset=mixture1d")
    stds: list[float] | None = setting(None, "standard deviations of the Gaussians, for dataset=mixture1d")
    r1_weight: float = number(10.0, "weight of regularizer=r1 and r2 unless regularizer.weight is given", at_least=0)


@dataclass(frozen=True)
class DiscriminatorDivergence:
    """The divergence of D; `own` is the loss of a critic that has one."""

    name: str = "???"


@dataclass(frozen=True)
class GeneratorDivergence:
    """The divergence of G, `own` for the critic's own loss; `affine: c` adds c·(u − 1) to its f."""

    name: str = "???"
    affine: float = number(0.0, "c: adds c·(u − 1) to f, which changes only the loss of gen_objective=ratio")


@dataclass(frozen=True)
class GeneratorWeights:
    """Weights of samples under `matched`; with both keys null, the default if the objective has weights, else none."""

    normalise: bool | None = setting(
        None, "under matched: divide samples' weights by their mean over the batch (true), or keep them plain (false)"
    )
    spread: float | None = number(
        None,
        "under matched: standard deviation of the log-ratio above which weights are tempered; 0.25 without normalise",
        above=0,
    )


@dataclass(frozen=True)
class LatentConfig:
    """The latents, the generator's input."""

    size: int = number(64, "dimension of the latents; a dataset may set another", at_least=1, at_most=65536)
    prior: str = choice("normal", PRIORS, "distribution of the latents; uniform: on [−1, 1]")


@dataclass(frozen=True)
class TrainConfig:
    """Length and intervals of training, in images shown to D; `epochs` takes precedence over `images`."""

    images: int = number(  # a checkpoint's name has twelve digits
        1_000_000, "length of the run, in images shown to D; a dataset may set another", at_least=1, at_most=10**12 - 1
    )
    epochs: float | None = number(
        None, "length in passes over the training images, in place of train.images", above=0, at_most=1_000_000
    )
    batch_size: int = number(100, "images per step", at_least=1, at_most=1_000_000)
    discriminator_steps: int = number(1, "updates of D per update of G", at_least=1, at_most=1000)
    report_every_images: int = number(10_000, "interval between reports of losses, bounds and calibration", at_least=1)
    sample_every_images: int = number(50_000, "interval between grids of samples", at_least=1)
    checkpoint_every_images: int = number(50_000, "interval between checkpoints", at_least=1)
    checkpoint_min_seconds: float = number(
        30.0, "shortest time between checkpoints, in seconds, except at the end", at_least=0
    )
    checkpoint_max_minutes: float = number(
        10.0, "longest time between checkpoints, and between grids of samples, in minutes", above=0
    )
    keep_checkpoints: int = number(3, "number of checkpoints kept, besides the best", at_least=2)
    held_out_images: int = number(
        2_000,
        "number of held-out examples, and of samples, from which a report computes bounds; all if there are fewer",
        at_least=1,
        at_most=1_000_000,
    )


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluations of samples while training; but for `every_images`, the keys of `gantrain evaluate`."""

    every_images: int | None = number(None, "interval between evaluations, with one at the end", at_least=1)
    count: int | None = number(
        None, "number of samples; by default that of held-out images", at_least=evaluation.MIN_COUNT, at_most=100_000
    )
    metrics: list[str] | None = setting(None, "list of metrics; all by default")
    features: str = choice(features.AUTO, features.FEATURES, "network that extracts features of images")
    classifier: str | None = setting(None, "file of a classifier, in place of the dataset's own")
    inception: str | None = setting(None, "file of the Inception network's weights")


@dataclass(frozen=True)
class BestConfig:
    """How the best checkpoint is chosen."""

    metric: str | None = setting(None, "metric by which best.pt is chosen, such as quality/fid_classifier")


@dataclass
class OwnNetworks:
    """Networks in code of the user's own, as a key of the commands that open a run."""

    object: str | None = None


@dataclass
class CodeOptions:
    """Options of every command that opens a run: code is imported only if the command names it.

    `ema_statistics` replaces the run's own.
    """

    architecture: OwnNetworks = field(default_factory=OwnNetworks)
    ema_statistics: str | None = choice(None, (None, *STATISTICS))


@dataclass(frozen=True)
class Config:
    """All keys of `gantrain train`."""

    seed: int = number(0, "random seed of weights, latents and the order of the data", at_least=0, at_most=2**63 - 1)
    device: str = setting("auto", f"device that trains: {', '.join(DEVICES)}, or one of several, as in cuda:1")
    devices: Any = setting(
        1,
        "number of devices that train one run together, each on a part of the batch; auto: all CUDA devices",
        Numbers(whole=True, at_least=1, at_most=4096, also=("auto",)),
    )
    run_dir: str | None = setting(None, "run folder; by default runs/<dataset>/<divergences>/<date_time>-s<seed>")
    resume: str = choice("never", ("never", "auto"), "auto: continue the run in run_dir, if there is one")
    init: str | None = setting(None, "run folder or checkpoint from which the networks take their initial weights")
    head: str = choice("log_ratio", heads.HEADS, "parametrisation of D's output")
    gen_objective: str = choice("matched", GENERATOR_OBJECTIVES, "loss of G")
    update: str = choice("alternating", UPDATES, "update D and G in turn, or both from the same samples")
    precision: str = choice("float32", PRECISIONS, "precision of multiplications")
    compile: str = choice("auto", SWITCHES, "fuse operations with torch.compile")
    graph: str = choice("auto", SWITCHES, "replay an iteration as one CUDA graph")
    ema: Any = setting(0.999, "decay of the averaged generator, or {half_life: IMAGES, ramp: SHARE}; 0: no average")
    ema_statistics: str = choice(
        "standing", STATISTICS, "batch-norm statistics of the averaged generator: G's, or those of its own samples"
    )
    logger: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={
            "about": f"loggers besides metrics.jsonl: a list of {', '.join(LOGGERS)}",
            "example": f"[{','.join(LOGGERS)}]",
        },
    )
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    architecture: dict[str, Any] = field(default_factory=dict)
    critic: dict[str, Any] = field(default_factory=lambda: {"name": F_DIVERGENCE})
    disc_div: DiscriminatorDivergence = field(default_factory=DiscriminatorDivergence)
    gen_div: GeneratorDivergence = field(default_factory=GeneratorDivergence)
    gen_weights: GeneratorWeights = field(default_factory=GeneratorWeights)
    optimizer: dict[str, Any] = field(default_factory=dict)
    regularizer: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] = field(default_factory=dict)
    latent: LatentConfig = field(default_factory=LatentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    best: BestConfig = field(default_factory=BestConfig)


# ---------------------------------------------------------------------------------------------------------------------
# Keys and types


def keys(schema: type, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Return every dotted key of a schema with its field."""
    found = {}
    for item in dataclasses.fields(schema):
        found[prefix + item.name] = item
        section = item.default_factory
        if dataclasses.is_dataclass(section):
            found |= keys(section, f"{prefix}{item.name}.")
    return found


def create_node(schema: type) -> DictConfig:
    """Return a schema as a config into which values can be merged: frozen dataclasses would make it read-only."""
    node = OmegaConf.structured(schema)
    for section in ("", *(key for key, item in keys(schema).items() if dataclasses.is_dataclass(item.default_factory))):
        OmegaConf.set_readonly(OmegaConf.select(node, section) if section else node, None)
    return node


def describe_keys() -> Iterator[tuple[str, str, str]]:
    """Yield each key that has a default of its own, the default as it is typed, and its description with choices."""
    for key, item in keys(Config).items():
        if "about" in item.metadata:
            value = item.default_factory() if callable(item.default_factory) else item.default
            accepted = item.metadata.get("accepted")
            choices = ", ".join(map(str, accepted.options)) if isinstance(accepted, Choice) else ""
            typed = "" if value is None else str(value).replace("'", "")
            yield key, typed, item.metadata["about"] + (f" ({choices})" if choices else "")


def describe_kind(key: str, schema: type) -> str:
    """Return the type of a key, or of an item of its list, in words."""
    name, item, _ = key.partition("[")
    known = keys(schema)
    hint = str(known[name].type).removesuffix(" | None") if name in known else ""
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    if hint.startswith("list["):
        example = known[name].metadata.get("example", "[a,b]" if hint == "list[str]" else "[1,2]")
        return words[hint[5:-1]] if item else f"a list, as in {name}={example}"
    return words.get(hint, "keys and values")


def check_values(values: Any, prefix: str = "") -> None:
    """Raise ConfigError for a value of this instance of a schema that is outside its field's range or choices."""
    for item in dataclasses.fields(values):
        key, value = prefix + item.name, getattr(values, item.name)
        if dataclasses.is_dataclass(value):
            check_values(value, f"{key}.")
        elif isinstance(value, str) and (key, value) in REMOVED:
            raise ConfigError(REMOVED[key, value])
        elif (accepted := item.metadata.get("accepted")) is not None:
            accepted.check(key, value)
        elif isinstance(value, str) and (not value.strip() or "\0" in value):
            raise ConfigError(f"{key}={value} is empty; give it a value, or leave it out")
