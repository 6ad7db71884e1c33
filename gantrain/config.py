"""The configuration: its schema, its checks, and the options that Hydra derives from the catalogue.

A string lives only here, at the edge. Every key has a type and a range; unknown keys and choices are refused with the
nearest right one, before any data is read and without importing torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    OmegaConfBaseException,
    ValidationError,
)

from gantrain import architectures, data, divergences, evaluation, optimizers
from gantrain.comparison import better
from gantrain.errors import RESEMBLANCE, ConfigError, likeness, nearest_first, one_of
from gantrain.experiment import PRECISIONS, SWITCHES, UPDATES
from gantrain.files import safe_name
from gantrain.foreign import ForeignSource
from gantrain.latents import PRIORS
from gantrain.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.regularizers import REGULARIZERS, Regularizer
from gantrain.wandb_mirror import refuse_missing

# conf/ stands inside the package in a wheel and beside it in a checkout.
CONF = next(path for path in (Path(__file__).parent / "conf", Path(__file__).parents[1] / "conf") if path.is_dir())
DIVERGENCE_GROUPS = ("disc_div", "gen_div")
GROUPS = ("dataset", "architecture", *DIVERGENCE_GROUPS, "optimizer", "regularizer", "experiment")
# gen_objective → the divergence under which it is −log D, the practical loss of Goodfellow et al. 2014.
PRACTICAL_LOSSES = {"matched": "softened_reverse_kl", "ratio": "non_saturating", "alternative": "gan"}
LOGGERS = ("tensorboard", "wandb")
DEVICES = ("auto", "cpu", "cuda", "mps")
# Sections whose keys depend on their name, and are checked against it.
OPEN_SECTIONS = ("architecture", "optimizer", "regularizer")
# Some of their keys, to be thought of when one is mistyped.
OPEN_KEYS = ("optimizer.lr", "optimizer.betas", "optimizer.weight_decay", "regularizer.weight")


def setting(default: Any, about: str) -> Any:
    """A field of which help and documentation tell what it is `about`."""
    return field(default=default, metadata={"about": about})


def number(
    default: Any, about: str = "", *, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf
) -> Any:
    """A field that holds a finite number in a range."""
    limits = {"at_least": at_least, "above": above, "at_most": at_most}
    return field(default=default, metadata={"about": about, "limits": limits})


def choice(default: str | None, options: Iterable[str | None], about: str = "") -> Any:
    """A field that holds one of `options`."""
    return field(default=default, metadata={"about": about, "options": tuple(options)})


@dataclass
class DatasetConfig:
    """What data, and from where; None takes the dataset's natural value."""

    name: str = "???"
    root: str = setting("data", "folder of the published datasets, downloaded to where they are missing")
    path: str | None = setting(None, "of dataset=folder: the folder of images, or a .zip of one")
    size: int | None = number(None, "side to which images are resized, in pixels", at_least=1, at_most=1024)
    held_out: int | None = number(None, "images kept from training", at_least=0)
    on_bad: str = choice("error", ("error", "skip"), "what a damaged image does")
    label: str | None = setting(None, "what the data are called in place of their name")
    flip: bool | None = setting(None, "whether half of the training images are mirrored")
    weights: list[float] | None = setting(None, "of mixture1d: weights of its Gaussians")
    means: list[float] | None = setting(None, "of mixture1d: their means")
    stds: list[float] | None = setting(None, "of mixture1d: their standard deviations")


@dataclass
class DiscriminatorDivergence:
    """What D estimates."""

    name: str = "???"


@dataclass
class GeneratorDivergence:
    """What G minimises; `affine: c` adds c·(u − 1) to its f."""

    name: str = "???"
    affine: float = number(0.0, "c: adds c·(u − 1) to f, which changes no divergence, but the loss under ratio")


@dataclass
class LatentConfig:
    """The generator's input."""

    size: int = number(64, "numbers in a latent; an architecture may bring another size", at_least=1, at_most=65536)
    prior: str = choice("normal", PRIORS, "distribution of latents; uniform: in [−1, 1]")


@dataclass
class TrainConfig:
    """How long and how often, in images shown to D; `epochs` is a synonym for images and wins over it."""

    images: int = number(  # a checkpoint's name has twelve digits
        1_000_000,
        "length of the run, in images shown to D; a dataset may bring another",
        at_least=1,
        at_most=10**12 - 1,
    )
    epochs: float | None = number(None, "the same, in passes over the training images", above=0, at_most=1_000_000)
    batch_size: int = number(100, "images a step", at_least=1, at_most=1_000_000)
    discriminator_steps: int = number(1, "steps of D for each of G", at_least=1, at_most=1000)
    report_every_images: int = number(10_000, "one report: losses, bounds, calibration, curves", at_least=1)
    sample_every_images: int = number(50_000, "one grid of samples", at_least=1)
    checkpoint_every_images: int = number(50_000, "one checkpoint", at_least=1)
    checkpoint_min_seconds: float = number(
        30.0, "how old the last checkpoint is at least, except at the end", at_least=0
    )
    keep_checkpoints: int = number(3, "older ones are removed, except the best", at_least=2)
    held_out_images: int = number(
        500, "held-out examples, and as many samples, for the bounds of a report", at_least=1, at_most=1_000_000
    )


@dataclass
class EvaluateConfig:
    """Measuring samples every so many images, and at the end; `every_images: null` never does.

    The other keys are those of `gantrain evaluate`, where `inception` is the file of its weights.
    """

    every_images: int | None = number(None, "measure samples so often, and at the end", at_least=1)
    count: int | None = number(None, "samples, as in gantrain evaluate", at_least=evaluation.FEWEST, at_most=100_000)
    metrics: list[str] | None = setting(None, "which numbers; all by default")
    features: str = choice(evaluation.AUTO, evaluation.FEATURES, "the network that looks at images")
    classifier: str | None = setting(None, "file of another classifier than that of the data")
    inception: str | None = setting(None, "file of Inception's weights")


@dataclass
class BestConfig:
    """The number that best.pt follows, such as quality/fid_classifier; None keeps no best.pt."""

    metric: str | None = setting(None, "the number that best.pt follows, such as quality/fid_classifier")


@dataclass
class Config:
    """Everything `gantrain train` can be told."""

    seed: int = number(0, "decides weights, latents and the order of the data", at_least=0, at_most=2**63 - 1)
    device: str = setting("auto", f"{', '.join(DEVICES)}, cuda:1")
    run_dir: str | None = setting(None, "the run's folder; else runs/<dataset>/<divergences>/<date_time>-s<seed>")
    resume: str = choice("never", ("never", "auto"), "whether to go on with what is found in run_dir")
    head: str = choice("log_ratio", divergences.HEADS, "how D's output is read")
    gen_objective: str = choice("matched", GENERATOR_OBJECTIVES, "which loss G minimises")
    update: str = choice("alternating", UPDATES, "whether D and G learn from the same samples at once")
    precision: str = choice("float32", PRECISIONS, "of multiplications")
    compile: str = choice("auto", SWITCHES, "fuse operations with torch.compile")
    graph: str = choice("auto", SWITCHES, "replay an iteration as one CUDA graph")
    ema: float = number(0.999, "decay of the averaged generator; 0 keeps none", at_least=0, at_most=1)
    logger: list[str] = field(
        default_factory=lambda: ["tensorboard"],
        metadata={"about": f"beside metrics.jsonl: a list of {', '.join(LOGGERS)}"},
    )
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    architecture: dict[str, Any] = field(default_factory=dict)
    disc_div: DiscriminatorDivergence = field(default_factory=DiscriminatorDivergence)
    gen_div: GeneratorDivergence = field(default_factory=GeneratorDivergence)
    optimizer: dict[str, Any] = field(default_factory=dict)
    regularizer: dict[str, Any] = field(default_factory=dict)
    latent: LatentConfig = field(default_factory=LatentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    best: BestConfig = field(default_factory=BestConfig)


class CatalogueSource(ConfigSource):
    """Hydra's options of `disc_div` and `gen_div`, which are the catalogue's names and patterns."""

    @staticmethod
    def scheme() -> str:
        return "catalogue"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.strip("/") in ("", *DIVERGENCE_GROUPS)

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.strip("/").partition("/")
        return group in DIVERGENCE_GROUPS and bool(name) and known_divergence(name.removesuffix(".yaml"))

    def load_config(self, config_path: str) -> ConfigResult:
        node = OmegaConf.create({"name": config_path.rpartition("/")[2].removesuffix(".yaml")})
        return ConfigResult(provider=self.provider, path="catalogue://", config=node, header={"package": None})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        here = config_path.strip("/")
        if here == "":
            return [] if results_filter == ObjectType.CONFIG else list(DIVERGENCE_GROUPS)
        if here not in DIVERGENCE_GROUPS or results_filter == ObjectType.GROUP:
            return []
        return list(divergences.CATALOGUE)


class CataloguePath(SearchPathPlugin):
    """Puts the catalogue on Hydra's search path from the beginning, so that glob(*) sees it too."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("gantrain", "catalogue://")


def known_divergence(name: str) -> bool:
    """Whether `name` is in the catalogue or matches one of its patterns."""
    try:
        divergences.get(name)
    except ConfigError:
        return False
    return True


def swept_name(text: str) -> str:
    """What follows its number in the name of a job's folder in a sweep: the swept keys and values, if any, without the
    mark that opens a section to a new key."""
    return f"-{safe_name(text.replace('++', ''))}" if text else ""


def register() -> None:
    """Make the schema, the catalogue's options and the resolvers known to Hydra; safe to call again."""
    ConfigStore.instance().store(name="schema", node=Config)
    Plugins.instance().register(CatalogueSource)
    Plugins.instance().register(CataloguePath)
    Plugins.instance().register(ForeignSource)
    OmegaConf.register_new_resolver("swept_name", swept_name, replace=True)
    OmegaConf.register_new_resolver("practical_loss", PRACTICAL_LOSSES.__getitem__, replace=True)


def options(group: str) -> list[str]:
    """The choices of a config group, by name."""
    if group in DIVERGENCE_GROUPS:
        return [*divergences.CATALOGUE, *divergences.PATTERNS]
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def keys(schema: type, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Every key of a schema, dotted, with its field."""
    found = {}
    for item in dataclasses.fields(schema):
        found[prefix + item.name] = item
        section = item.default_factory
        if dataclasses.is_dataclass(section):
            found |= keys(section, f"{prefix}{item.name}.")
    return found


def explained_keys() -> Iterator[tuple[str, str, str]]:
    """Each key with a default of its own, that default as it is typed, and what it is about, with its choices."""
    defaults = OmegaConf.structured(Config)
    for key, item in keys(Config).items():
        value = OmegaConf.select(defaults, key)
        if "about" in item.metadata:
            choices = ", ".join(item.metadata.get("options", ()))
            typed = "" if value is None else str(value).replace("'", "")
            yield key, typed, item.metadata["about"] + (f" ({choices})" if choices else "")


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence that refuses `key`, with up to three keys like it: by the whole, by the part after the last dot, or
    by one word of that part."""
    known = list(known)
    section, _, rest = key.partition(".")
    sections = {name.partition(".")[0] for name in known}
    if rest and section not in sections and (right := nearest_first(section, sections)[0]) in OPEN_SECTIONS:
        known = [f"{right}.{rest}", *known]

    def nearness(name: str) -> float:
        last, typed = name.rpartition(".")[2], key.rpartition(".")[2]
        by_word = max(likeness(typed, word) for word in last.split("_"))
        return max(likeness(key, name), 0.9 * likeness(typed, last), 0.8 * by_word)

    ranked = sorted(dict.fromkeys(known), key=nearness, reverse=True)
    near = [name for name in ranked if nearness(name) >= RESEMBLANCE][:3]
    if not near:
        return f"there is no key {key}; --help lists the keys"
    others = f" Near it too: {', '.join(near[1:])}" if near[1:] else ""
    return f"there is no key {key}; did you mean {near[0]}?{others}"


def explained(error: BaseException) -> ConfigError:
    """Hydra's and OmegaConf's complaints about a config, as one short message."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        choices = [*(error.options or []), *(divergences.PATTERNS if group in DIVERGENCE_GROUPS else ())]
        return ConfigError(one_of(group, name, choices) if choices else f"there is no config group {group}")
    inner = [one for one in causes(error) if isinstance(one, OmegaConfBaseException)]
    cause = next((one for one in inner if one.full_key), [error, *inner][-1])
    key = getattr(cause, "full_key", None)
    if key and key.partition(".")[0] == "experiment":
        return ConfigError("a file of the group experiment has to begin with the line `# @package _global_`")
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
        return ConfigError(unknown_key(key, keys(Config)))
    if isinstance(cause, ValidationError | ConfigTypeError | TypeError) and key and not key.startswith("hydra."):
        value = getattr(cause, "value", None)
        return ConfigError(f"{key if value is None else f'{key}={value}'} must be {kind(key)}")
    reason = (str(getattr(cause, "msg", None) or cause).splitlines() or [type(cause).__name__])[0]
    reason = re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", reason)
    return ConfigError(f"{key}: {reason}" if key else reason)


def kind(key: str) -> str:
    """What the schema asks of the key, or of an item of its list, in words."""
    name, item, _ = key.partition("[")
    hint = str(keys(Config)[name].type).removesuffix(" | None") if name in keys(Config) else ""
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    if hint.startswith("list["):
        return words[hint[5:-1]] if item else f"a list, as in {'[a,b]' if hint == 'list[str]' else '[1,2]'}"
    return words.get(hint, "keys and values")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def typed(config: DictConfig) -> dict[str, Any]:
    """The composed config as plain data, interpolations resolved, types and ranges checked. Raises ConfigError."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True)  # first: merging would not say which key
        merged = OmegaConf.merge(OmegaConf.structured(Config), resolved)
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explained(error) from error
    assert isinstance(plain, dict)
    settings = {str(key): value for key, value in plain.items()}
    check_ranges(Config, settings)
    return settings


def checked(config: DictConfig) -> dict[str, Any]:
    """`typed`, and parts that exist and fit: a game that can train, known words in tables. Raises ConfigError."""
    settings = typed(config)
    objective(settings)
    architectures.check(settings["architecture"])
    optimizers.check(settings["optimizer"])
    data.check(**settings["dataset"])
    check_device(settings["device"])
    check_evaluation(settings)
    for name in settings["logger"]:
        if name not in LOGGERS:
            raise ConfigError(one_of("logger", name, LOGGERS))
    if "wandb" in settings["logger"]:
        refuse_missing()
    if settings["train"]["epochs"] is not None and data.is_endless(settings["dataset"]["name"]):
        raise ConfigError(
            f"train.epochs={settings['train']['epochs']:g} needs a finite dataset; "
            f"give train.images for dataset={settings['dataset']['name']}, which is drawn without end"
        )
    return settings


def check_evaluation(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for numbers that samples of these data do not have, or that nothing would measure."""
    asked, best = settings["evaluate"], settings["best"]["metric"]
    if asked["every_images"] is None:
        for key, value in {**{f"evaluate.{key}": value for key, value in asked.items()}, "best.metric": best}.items():
            if value not in (None, evaluation.AUTO, evaluation.CLASSIFIER):  # once the default, kept in checkpoints
                raise ConfigError(f"{key}={value} needs evaluate.every_images=N: after how many images to measure")
        return
    dataset, networks = settings["dataset"]["name"], evaluation.named_networks(asked)
    known = evaluation.metrics_of(dataset, networks[0])  # the classifier's, which are the most
    if asked["metrics"] == []:
        raise ConfigError(f"evaluate.metrics=[] measures nothing; name some of: {', '.join(known)}")
    for name in asked["metrics"] or ():
        if name not in known:
            raise ConfigError(one_of("evaluate.metrics", name, known))
    if best is None:
        return
    metrics = {
        number: name
        for network in networks
        for name in evaluation.metrics_of(dataset, network)
        for number in evaluation.numbers_of([name], dataset, network)
    }
    if best not in (ranked := [number for number in metrics if better(number)]):
        raise ConfigError(one_of("best.metric", best, ranked))
    if asked["metrics"] and metrics[best] not in asked["metrics"]:
        raise ConfigError(f"best.metric={best} needs {metrics[best]} among evaluate.metrics; add it there")
    if not evaluation.fitting_networks(asked, dataset, best):
        others = set(asked["metrics"] or ()).difference(evaluation.INCEPTION_METRICS)
        raise ConfigError(f"best.metric={best} comes from Inception, which has no {', '.join(sorted(others))}")


def check_device(name: str) -> None:
    """Raise ConfigError unless `name` is a device's; whether the machine has it, only torch knows."""
    kind, colon, number = name.partition(":")
    if name not in DEVICES and not (kind == "cuda" and colon and number.isdecimal()):
        raise ConfigError(one_of("device", name, (*DEVICES, "cuda:1")))


def refuse_untyped_object(config: DictConfig, overrides: Iterable[str]) -> None:
    """Raise ConfigError where a file, and not the user's own command line, names code to import."""
    name = OmegaConf.select(config, "architecture.object")
    if name and not any(text.lstrip("+").startswith("architecture.object=") for text in overrides):
        raise ConfigError(
            f"architecture.object={name} stands in a file; code is imported only when it is typed on the command line"
        )


def check_ranges(schema: type, settings: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse a value outside its field's range or choices."""
    for item in dataclasses.fields(schema):
        key, value = prefix + item.name, settings[item.name]
        if dataclasses.is_dataclass(item.default_factory):
            check_ranges(item.default_factory, value, f"{key}.")
        elif "options" in item.metadata and value not in item.metadata["options"]:
            raise ConfigError(one_of(key, value, item.metadata["options"]))
        elif isinstance(value, str) and (not value.strip() or "\0" in value):
            raise ConfigError(f"{key}={value} is empty; give it a value, or leave it out")
        elif "limits" in item.metadata and value is not None:
            check_range(key, value, **item.metadata["limits"])


def check_range(key: str, value: float, at_least: float, above: float, at_most: float) -> None:
    """Raise ConfigError unless above < value, at_least ≤ value ≤ at_most and value is finite."""
    if math.isfinite(value) and value > above and at_least <= value <= at_most:
        return
    limits = {"at least": at_least, "above": above, "at most": at_most}
    rules = [f"{words} {limit:,}" for words, limit in limits.items() if math.isfinite(limit)]
    raise ConfigError(f"{key}={value} must be {' and '.join(rules) or 'finite'}")


def objective(settings: Mapping[str, Any]) -> Objective:
    """The game that the config describes. Raises ConfigError for one that cannot train."""
    gen_div = divergences.get(settings["gen_div"]["name"], "gen_div")
    return Objective(
        disc_div=divergences.get(settings["disc_div"]["name"], "disc_div"),
        gen_div=gen_div.shifted(settings["gen_div"]["affine"]),
        gen_objective=settings["gen_objective"],
        head=settings["head"],
        regularizer=regularizer(settings["regularizer"]),
    )


def regularizer(settings: Mapping[str, Any]) -> Regularizer:
    """The regularizer called `name`, its other keys checked against that class's fields."""
    name, values = settings.get("name"), {key: value for key, value in settings.items() if key != "name"}
    if not isinstance(name, str) or name not in REGULARIZERS:
        raise ConfigError(one_of("regularizer.name", name, REGULARIZERS))
    known = [item.name for item in dataclasses.fields(REGULARIZERS[name])]
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"regularizer={name} has no key {key}; its keys are: {', '.join(known) or 'none'}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"regularizer.{key}={value} must be a number")
        check_range(f"regularizer.{key}", value, at_least=0, above=-math.inf, at_most=math.inf)
    return REGULARIZERS[name](**values)
