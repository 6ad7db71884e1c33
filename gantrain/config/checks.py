"""From a composed config to `Settings`: checked once, with objects in place of the names that stand for them.

The checks need neither data nor torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gantrain import networks
from gantrain.augmentation.augmentations import Augmentation, parse_augmentation
from gantrain.config.combinations import check_combinations, warn_of_combinations, warn_of_unusual_loss
from gantrain.config.games import build_objective
from gantrain.config.messages import config_error
from gantrain.config.schema import LOGGERS, Config, DatasetConfig, EvaluateConfig, check_values, create_node
from gantrain.data import DatasetSettings, is_endless
from gantrain.devices import check_device_name
from gantrain.errors import ConfigError, UntypedCodeError
from gantrain.evaluation import features
from gantrain.evaluation.metrics import CLASSIFIER, INCEPTION, better_direction, metrics_of
from gantrain.files import iterate_leaves
from gantrain.objectives.critics import F_DIVERGENCE
from gantrain.objectives.objective import Game
from gantrain.ranges import Choice, accepted_by_field, check_keys
from gantrain.regularizers.regularizer import SCHEDULED, Regularizer
from gantrain.regularizers.regularizers import REGULARIZERS, default_values, upgrade_section
from gantrain.reporting.wandb import check_installed
from gantrain.schedules import HalfLife, Ramp, is_ramp, parse_decay, parse_value
from gantrain.training.optimizers import OptimizerSettings, parse_optimizers, read_signature
from gantrain.training.setup import Execution

SHORTEST_SECRET = 6


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """A config that has been checked, with the objects that its sections describe.

    `objective`: the game. `tables`: the layers of both networks. `regularizers`: of the discriminator. `augmentation`:
    of what D is shown. `data`: the dataset and how it is read. `optimizers`: for each player. `averaging`: the decay of
    the averaged generator. `execution`: how iterations are computed.
    """

    objective: Game = dataclasses.field(compare=False)
    tables: networks.Tables
    regularizers: tuple[Regularizer, ...]
    augmentation: Augmentation | None
    data: DatasetSettings
    optimizers: Mapping[str, OptimizerSettings]
    averaging: float | Ramp | HalfLife
    execution: Execution


@dataclass(frozen=True)
class RunConfig:
    """The configuration of one run: its `settings`, and the config tree that they were made from.

    The tree is what is written to files; its interpolations are unresolved, so that no file holds what comes from the
    environment.
    """

    settings: Settings
    tree: DictConfig

    @property
    def document(self) -> dict[str, Any]:
        """The tree as plain data, interpolations unresolved."""
        return to_plain(self.tree)

    def to_yaml(self) -> str:
        """Return the tree as YAML, interpolations unresolved."""
        return OmegaConf.to_yaml(self.tree)


def to_plain(node: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """Return a node as dictionaries and lists, its interpolations resolved or as they stand."""
    return cast("dict[str, Any]", OmegaConf.to_container(node, resolve=resolve))


def find_secrets(tree: DictConfig) -> dict[str, str]:
    """Return the values that a config takes from environment variables, each with its interpolation."""
    taken = {key: text for key, text in iterate_leaves(to_plain(tree)) if isinstance(text, str) and "${oc.env:" in text}
    values = {str(OmegaConf.select(tree, key)): text for key, text in taken.items()}
    # A number or a short word is no secret, and would be found inside other words.
    return {value: text for value, text in values.items() if len(value) >= SHORTEST_SECRET and not value.isdecimal()}


def validate(tree: DictConfig, overrides: Iterable[str]) -> RunConfig:
    """Return the settings that a composed config describes; `overrides` are those of the user's own command line.

    Raises ConfigError for unknown keys, values out of range and parts that do not fit together, UntypedCodeError if
    only a file names code to import.
    """
    overrides = list(overrides)
    code = OmegaConf.select(tree, "architecture.object")
    if code and not any(text.lstrip("+").startswith("architecture.object=") for text in overrides):
        raise UntypedCodeError("the config", code)
    tree = normalise_tree(tree)
    if any(text.startswith("train.images=") for text in overrides):  # it takes precedence over a file's train.epochs
        tree = OmegaConf.create(tree)
        OmegaConf.update(tree, "train.epochs", None)
    return RunConfig(check_config(parse_config(tree)), tree)


def normalise_tree(tree: DictConfig) -> DictConfig:
    """Return a config with its critic and regularizers in the form that is stored and compared. Raises ConfigError."""
    if "critic" not in tree:  # stored before there were others
        tree = OmegaConf.create({"critic": {"name": F_DIVERGENCE}, **tree})
    section = OmegaConf.select(tree, "regularizer")
    if not isinstance(section, DictConfig):
        return tree
    try:
        wanted = collect_regularizers(to_plain(section, resolve=True))  # numbers, in place of that of the dataset
    except OmegaConfBaseException as error:
        raise config_error(error) from error
    tree = OmegaConf.create(tree)
    OmegaConf.update(tree, "regularizer", wanted, merge=False)
    return tree


def parse_document(document: Mapping[str, Any]) -> Settings:
    """Return the settings that a run has stored in a checkpoint. Raises ConfigError."""
    try:
        tree = OmegaConf.create(dict(document))
    except OmegaConfBaseException as error:
        raise config_error(error) from error
    return check_config(parse_config(normalise_tree(tree)))


def parse_config(tree: DictConfig) -> Config:
    """Return a composed config as an instance of the schema, interpolations resolved, types and ranges checked.

    Raises ConfigError.
    """
    try:
        resolved = to_plain(tree, resolve=True)  # first: merging would not say which key
        earlier = {"gen_weights": {"normalise": False}, "ema_statistics": "copied"}  # of runs without these keys
        merged = OmegaConf.merge(create_node(Config), earlier | resolved)
        OmegaConf.to_container(merged, throw_on_missing=True)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise config_error(error) from error
    assert isinstance(config, Config)
    check_values(config)
    return config


def check_config(config: Config) -> Settings:
    """Return the settings that a config describes. Raises ConfigError for parts that do not exist or do not fit."""
    regularizers = parse_regularizers(config.regularizer)
    game = build_objective(config, smoothing=sum(one.smoothing for one in regularizers))
    tables = networks.parse_tables(config.architecture)
    check_combinations(game, regularizers, tables, config)
    optimizers = parse_optimizers(config.optimizer)
    dataset = parse_dataset(config.dataset)
    check_device_name(config.device)
    check_evaluation(config.evaluate, config.best.metric, config.dataset.name)
    for name in config.logger:
        Choice(LOGGERS).check("logger", name)
    if "wandb" in config.logger:
        check_installed()
    if config.train.epochs is not None and is_endless(config.dataset.name):
        raise ConfigError(
            f"train.epochs={config.train.epochs:g} needs a finite dataset; "
            f"give train.images for dataset={config.dataset.name}, which is drawn without end"
        )
    return Settings(
        **vars(config),
        objective=game,
        tables=tables,
        regularizers=regularizers,
        augmentation=parse_augmentation(config.augment),
        data=dataset,
        optimizers=optimizers,
        averaging=parse_decay(config.ema),
        execution=Execution(config.update, config.precision, config.compile, config.graph),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Parts of a config


def parse_dataset(config: DatasetConfig) -> DatasetSettings:
    """Return the settings of a dataset. Raises ConfigError for a value that no dataset could have."""
    return DatasetSettings(**{key: value for key, value in vars(config).items() if key != "r1_weight"})


def collect_regularizers(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the values of each regularizer under its name; `regularizer.<key>` belongs to the only one.

    Raises ConfigError for an unknown name or key.
    """
    section = upgrade_section(section)
    chosen = {
        name: dict(values) for name, values in section.items() if isinstance(values, Mapping) and not is_ramp(values)
    }
    for name in chosen:
        Choice(tuple(REGULARIZERS)).check("regularizer", name)
    for key in section.keys() - chosen.keys():
        if not chosen:
            raise ConfigError(f"regularizer.{key} changes a regularizer; choose one, as in regularizer=r1")
        if len(chosen) > 1:
            keys = " or ".join(f"regularizer.{each}.{key}" for each in chosen)
            raise ConfigError(f"regularizer.{key} needs the name of a regularizer when there are several: {keys}")
        next(iter(chosen.values()))[key] = section[key]
    for name, values in chosen.items():
        check_keys(f"regularizer={name}", values, default_values(name))
    return chosen


def parse_regularizers(section: Mapping[str, Mapping[str, Any]]) -> tuple[Regularizer, ...]:
    """Return the regularizers of a section from `collect_regularizers`. Raises ConfigError for a value out of range."""
    parsed = []
    for name, values in section.items():
        accepted = accepted_by_field(REGULARIZERS[name], SCHEDULED)
        found = {key: parse_value(f"regularizer.{name}.{key}", value, accepted[key]) for key, value in values.items()}
        parsed.append(REGULARIZERS[name](**found))
    return tuple(parsed)


def list_warnings(settings: Settings) -> list[str]:
    """Return a sentence for each choice that may be meant otherwise, or that changes what numbers mean."""
    optimizer, unusual = settings.optimizers["discriminator"], warn_of_unusual_loss(settings)
    arguments = {**read_signature(optimizer.name), **optimizer.arguments}
    others = warn_of_combinations(settings.objective, settings.regularizers, settings.tables, arguments)
    return [*([unusual] if unusual else []), *others]


def check_evaluation(evaluate: EvaluateConfig, best: str | None, dataset: str) -> None:
    """Raise ConfigError for metrics that this dataset does not have, or that would never be computed."""
    if evaluate.every_images is None:
        given = {**{f"evaluate.{key}": value for key, value in vars(evaluate).items()}, "best.metric": best}
        for key, value in given.items():
            if value not in (None, features.AUTO, CLASSIFIER):  # once the default, kept in checkpoints
                raise ConfigError(f"{key}={value} needs evaluate.every_images=N: after how many images to measure")
        return
    network, known = features.choose_network(evaluate.features, evaluate.inception), metrics_of(dataset)
    if evaluate.metrics == []:
        raise ConfigError(f"evaluate.metrics=[] measures nothing; name some of: {', '.join(known)}")
    for name in evaluate.metrics or ():
        Choice(tuple(known)).check("evaluate.metrics", name)
    if best is None:
        return
    metrics = {number: name for name in known for number in known[name].names(network)}
    if best not in metrics and any(best in metric.names(INCEPTION) for metric in known.values()):
        raise ConfigError(f"best.metric={best} is a number of the Inception network; add evaluate.features=inception")
    ranked = [number for number in metrics if better_direction(number)]
    if best in metrics and best not in ranked:
        others = ", ".join(ranked)
        raise ConfigError(
            f"best.metric={best} cannot be followed: neither more nor less is better; take one of: {others}"
        )
    Choice(tuple(ranked)).check("best.metric", best)
    if evaluate.metrics and metrics[best] not in evaluate.metrics:
        raise ConfigError(f"best.metric={best} needs {metrics[best]} among evaluate.metrics; add it there")
