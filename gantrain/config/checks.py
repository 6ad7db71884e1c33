"""The configuration: the options that Hydra derives from the catalogue, and the checks of what it composed.

A string lives only here, at the edge, and in the schema; unknown keys and choices are refused with the
nearest right one, before any data is read and without importing torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
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

from gantrain import data
from gantrain import networks as architectures
from gantrain.config.schema import DEVICES, LOGGERS, OPEN_SECTIONS, Config, check_range, check_ranges, keys, kind
from gantrain.config.trust import ForeignSource
from gantrain.errors import RESEMBLANCE, ConfigError, likeness, meant, nearest_first, one_of
from gantrain.evaluation import features
from gantrain.evaluation.metrics import CLASSIFIER, INCEPTION, better_direction, metrics_of, number_names
from gantrain.files import safe_name
from gantrain.objectives import divergences, weighting
from gantrain.objectives.objective import Objective
from gantrain.objectives.regularizers import REGULARIZERS, Regularizer
from gantrain.objectives.weighting import Weighting
from gantrain.reporting.wandb import refuse_missing
from gantrain.training import optimizers

# conf/ stands inside the package in a wheel and beside it in a checkout.
CONF = next(path for path in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf") if path.is_dir())
DIVERGENCE_GROUPS = ("disc_div", "gen_div")
GROUPS = ("dataset", "architecture", *DIVERGENCE_GROUPS, "optimizer", "regularizer", "experiment")
CHOSEN_BY_YAML = (*GROUPS, "hydra/launcher")
RENAMED_CHOICES = {"hydra/launcher/packed": "hydra/launcher=parallel"}
# gen_objective → the divergence under which it is −log D, the practical loss of Goodfellow et al. 2014.
PRACTICAL_LOSSES = {"matched": "softened_reverse_kl", "ratio": "non_saturating", "alternative": "gan"}


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


# ---------------------------------------------------------------------------------------------------------------------
# What went wrong, in words


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence that refuses `key`, with up to three keys like it: by the whole, by the part after the last dot, or
    by one word of that part."""
    known = list(known)
    section, _, rest = key.partition(".")
    if section == "hydra":
        return f"there is no key {key}; gantrain train --cfg hydra shows Hydra's own"
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


def explained(error: BaseException, schema: type = Config) -> ConfigError:
    """Hydra's and OmegaConf's complaints about a config of this schema, as one short message."""
    return ConfigError(_wrong_choice(error) or _wrong_value(error, schema))


def _wrong_choice(error: BaseException) -> str | None:
    """Of a choice of a group: one that there is not, or one that the `defaults` of some YAML cannot make."""
    said = str(error)
    place = re.match(r"In '(?!hydra/)([^']+/[^']+)'", said)  # not config.yaml, into which the command line is read
    where = f"{place[1]}.yaml: " if place else ""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if renamed := RENAMED_CHOICES.get(error.missing_cfg_file):
            return (
                f"{where}{group}={name} is now {renamed}; a sweep that was begun with {name} goes on with its own "
                f"command, {renamed} and resume=auto"
            )
        ours = options(group) if group in GROUPS else ()
        if choices := dict.fromkeys([*(error.options or ()), *ours]):
            return where + one_of(group, name, choices)
    elif found := re.search(r"(?:Could not override '|Multiple values for )([\w/]+).*(?:No match|To override)", said):
        group = found[1]
    else:
        return None
    name = group.removeprefix("experiment/")  # from where a file means it, unless it has a slash
    near = nearest_first(name, CHOSEN_BY_YAML)[0]
    right = near if likeness(name, near) >= RESEMBLANCE else "GROUP"
    groups = "" if right == near else f"; the groups are {', '.join(CHOSEN_BY_YAML)}"
    return f"{where}`defaults` cannot choose {group} like this; write `override /{right}: …`{groups}"


def _wrong_value(error: BaseException, schema: type) -> str:
    """Of a key or a value."""
    inner = [one for one in causes(error) if isinstance(one, OmegaConfBaseException)]
    cause = next((one for one in inner if one.full_key), [error, *inner][-1])
    key, value = getattr(cause, "full_key", None), getattr(cause, "value", None)
    if found := re.match(r"Merge error: \w+ is not a subclass of (\w+)\. value: (.*)", str(cause)):
        sections = {getattr(item.default_factory, "__name__", None): name for name, item in keys(schema).items()}
        key, value = sections.get(found[1], "hydra"), found[2]
    if key and key.partition(".")[0] == "experiment":
        return "a file of the group experiment has to begin with the line `# @package _global_`"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
        return unknown_key(key, keys(schema))
    if isinstance(cause, ValidationError | ConfigTypeError | TypeError) and key and not key.startswith("hydra."):
        chosen = f"; YAML chooses one by `override /{key}: {value}` in its `defaults`"
        rule = kind(key, schema) + (chosen if key in GROUPS and schema is Config else "")
        return f"{key if value is None else f'{key}={value}'} must be {rule}"
    reason = (str(getattr(cause, "msg", None) or cause).splitlines() or [type(cause).__name__])[0]
    reason = re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", reason)
    return f"{key}: {reason}" if key else reason


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def typed(config: DictConfig) -> dict[str, Any]:
    """The composed config as plain data, interpolations resolved, types and ranges checked. Raises ConfigError."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True)  # first: merging would not say which key
        if isinstance(resolved, dict) and "gen_weights" not in resolved:  # stored before there were such weights
            resolved["gen_weights"] = {"normalise": False}
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


def unusual(settings: Mapping[str, Any]) -> str | None:
    """A sentence for a loss that has the name of the usual non-saturating one, and is another."""
    usual, name = PRACTICAL_LOSSES[settings["gen_objective"]], settings["gen_div"]["name"]
    if name == usual or name not in (PRACTICAL_LOSSES["matched"], PRACTICAL_LOSSES["ratio"]):
        return None
    return f"This is not the usual non-saturating loss −log D, which here is gen_div={usual}"


def check_evaluation(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for numbers that samples of these data do not have, or that nothing would measure."""
    asked, best = settings["evaluate"], settings["best"]["metric"]
    if asked["every_images"] is None:
        for key, value in {**{f"evaluate.{key}": value for key, value in asked.items()}, "best.metric": best}.items():
            if value not in (None, features.AUTO, CLASSIFIER):  # once the default, kept in checkpoints
                raise ConfigError(f"{key}={value} needs evaluate.every_images=N: after how many images to measure")
        return
    dataset, network = settings["dataset"]["name"], features.choose_network(asked["features"], asked["inception"])
    known = metrics_of(dataset)
    if asked["metrics"] == []:
        raise ConfigError(f"evaluate.metrics=[] measures nothing; name some of: {', '.join(known)}")
    for name in asked["metrics"] or ():
        if name not in known:
            raise ConfigError(one_of("evaluate.metrics", name, known))
    if best is None:
        return
    metrics = {number: name for name in known for number in known[name].names(network)}
    ranked = [number for number in metrics if better_direction(number)]
    if best in number_names(known, dataset, INCEPTION) and best not in metrics:
        raise ConfigError(f"best.metric={best} is a number of the Inception network; add evaluate.features=inception")
    if best in metrics and best not in ranked:
        raise ConfigError(
            f"best.metric={best} cannot be followed: neither more nor less is better; take one of: {', '.join(ranked)}"
        )
    if best not in ranked:
        raise ConfigError(one_of("best.metric", best, ranked))
    if asked["metrics"] and metrics[best] not in asked["metrics"]:
        raise ConfigError(f"best.metric={best} needs {metrics[best]} among evaluate.metrics; add it there")


def check_device(name: str) -> None:
    """Raise ConfigError unless `name` is a device's; whether the machine has it, only torch knows."""
    kind, colon, number = name.partition(":")
    if kind.lower() == "gpu":
        raise ConfigError(f"device={name} is called device=cuda{colon}{number} here, and on a Mac device=mps")
    if name not in DEVICES and not (kind == "cuda" and colon and number.isdecimal()):
        raise ConfigError(one_of("device", name, (*DEVICES, "cuda:1")))


def refuse_untyped_object(config: DictConfig, overrides: Iterable[str]) -> None:
    """Raise ConfigError where a file, and not the user's own command line, names code to import."""
    name = OmegaConf.select(config, "architecture.object")
    if name and not any(text.lstrip("+").startswith("architecture.object=") for text in overrides):
        raise ConfigError(
            f"architecture.object={name} stands in a file; code is imported only when it is typed on the command line"
        )


def objective(settings: Mapping[str, Any]) -> Objective:
    """The game that the config describes. Raises ConfigError for one that cannot train."""
    gen_div = divergences.get(settings["gen_div"]["name"], "gen_div")
    build = partial(
        Objective,
        disc_div=divergences.get(settings["disc_div"]["name"], "disc_div"),
        gen_div=gen_div.shifted(settings["gen_div"]["affine"]),
        gen_objective=settings["gen_objective"],
        head=settings["head"],
        regularizer=regularizer(settings["regularizer"]),
    )
    if settings["gen_weights"] == {"normalise": None, "spread": None}:
        game = build()
        return build(weighting=weighting.DEFAULT) if game.has_weights else game
    return build(weighting=weighting_of(**settings["gen_weights"]))


def weighting_of(normalise: bool | None, spread: float | None) -> Weighting:
    """The weighting of samples that two keys of the config ask for. Raises ConfigError where they contradict."""
    if normalise is False and spread is not None:
        raise ConfigError(
            f"gen_weights.spread={spread} tempers weights that are normalised too, and gen_weights.normalise=false; "
            "leave out one of them"
        )
    return Weighting(normalise=bool(normalise) or spread is not None, spread=spread)


def regularizer(settings: Mapping[str, Any]) -> Regularizer:
    """The regularizer called `name`, its other keys checked against that class's fields."""
    name, values = settings.get("name"), {key: value for key, value in settings.items() if key != "name"}
    if not isinstance(name, str) or name not in REGULARIZERS:
        raise ConfigError(one_of("regularizer.name", name, REGULARIZERS))
    known = [item.name for item in dataclasses.fields(REGULARIZERS[name])]
    for key, value in values.items():
        if key not in known:
            keys = ", ".join(known) or "none"
            raise ConfigError(f"regularizer={name} has no key {key}{meant(key, known)}\n  keys: {keys}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"regularizer.{key}={value} must be a number")
        check_range(f"regularizer.{key}", value, at_least=0, above=-math.inf, at_most=math.inf)
    return REGULARIZERS[name](**values)
