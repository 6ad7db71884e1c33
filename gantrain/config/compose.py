"""Composition of a config by Hydra, from our YAML, the user's own and the command line."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra import version
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep, Glob
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gantrain.config.checks import check_config, normalise_tree, parse_config, to_plain
from gantrain.config.combinations import PRACTICAL_LOSSES
from gantrain.config.groups import CONF, OWN, CataloguePath, CatalogueSource, options
from gantrain.config.messages import config_error
from gantrain.config.overrides import FIELDS, Argument, quote
from gantrain.config.schema import Config, create_node
from gantrain.config.trust import ForeignSource, check_not_shadowed, check_untrusted_config
from gantrain.errors import ConfigError
from gantrain.files import expand_home, safe_name

MOST_JOBS = 100_000  # of a sweep
SEARCH_PATH = "hydra.searchpath"
CONFIG_NAME = "config"


def swept_name(text: str) -> str:
    """Return what follows the number in the name of a sweep's job: the swept keys and values, without the mark `++`."""
    return f"-{safe_name(text.replace('++', ''))}" if text else ""


# What Hydra knows of gantrain; at import, so that it also holds in a process that a launcher starts.
ConfigStore.instance().store(name="gantrain_schema", node=create_node(Config))
for plugin in (CatalogueSource, CataloguePath, ForeignSource):
    Plugins.instance().register(plugin)
OmegaConf.register_new_resolver("swept_name", swept_name, replace=True)
OmegaConf.register_new_resolver("practical_loss", PRACTICAL_LOSSES.__getitem__, replace=True)


@contextmanager
def composition_errors() -> Iterator[None]:
    """Raise what Hydra and OmegaConf raise while they compose as ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise config_error(error) from error


@dataclass
class Composed:
    """A composed config: `whole` has our keys and Hydra's own node, `tree` only our keys."""

    whole: DictConfig
    tree: DictConfig

    @property
    def mode(self) -> RunMode | None:
        """The mode that the config asks for."""
        mode: RunMode | None = self.whole.hydra.mode
        return mode


@dataclass
class Composer:
    """Composes configs with Hydra's `app`; `config_dir` is a folder of the user's own YAML, which is not trusted."""

    app: Hydra
    config_dir: Path | None = None
    _trusted: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)

    @property
    def search_path(self) -> list[str]:
        """The override that puts the user's own folder on Hydra's search path, if there is one."""
        if self.config_dir is None:
            return []
        return [f"{SEARCH_PATH}=[{quote(f'{ForeignSource.scheme()}://{self.config_dir.absolute()}')}]"]

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Compose the config of one job. Nothing in it is run. Raises ConfigError."""
        composed = self._compose([*overrides, *self.search_path])
        node = composed.whole.hydra
        for kind in ("run", "sweep"):
            if (folder := to_plain(node[kind])["dir"]) != "${run_dir}":
                raise ConfigError(f"hydra.{kind}.dir={folder}: the folder of a {kind} is given as run_dir={folder}")
        if self.config_dir is not None:
            ours = [text for text in overrides if text.lstrip("+~").startswith("hydra")]
            if not any(text.startswith("hydra/launcher=") for text in ours):
                ours.append(f"hydra/launcher={node.runtime.choices['hydra/launcher']}")
            if tuple(ours) not in self._trusted:
                self._trusted[tuple(ours)] = self._compose(ours).whole.hydra
            check_untrusted_config(to_plain(node), to_plain(self._trusted[tuple(ours)]), self.config_dir)
        return composed

    def _compose(self, overrides: list[str]) -> Composed:
        try:
            with composition_errors():
                whole = self.app.compose_config(CONFIG_NAME, overrides, run_mode=RunMode.RUN, from_shell=False)
        except (ValueError, TypeError, RecursionError) as error:  # what Hydra makes of a list of defaults that is none
            why = "they lead back to themselves" if isinstance(error, RecursionError) else error
            raise ConfigError(f"this YAML cannot be composed, look at its `defaults`: {why}") from error
        return Composed(whole, OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]))


@contextmanager
def create_composer(arguments: Sequence[Argument] = (), config_dir: str | Path | None = None) -> Iterator[Composer]:
    """Yield a composer for the arguments of one command, then restore the globals of another program's Hydra.

    Raises ConfigError for a `config_dir` that is no folder, or that has a file which gantrain's own hides.
    """
    folder = None if config_dir is None else expand_home(config_dir)
    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder} is not a folder")
        if any(argument.key == SEARCH_PATH for argument in arguments):
            raise ConfigError(f"--config-dir and {SEARCH_PATH} name the same thing; give one of them")
        check_not_shadowed(folder, [(one.key, one.override.value()) for one in arguments])

    other, base, name = GlobalHydra.instance().hydra, version.getbase(), JobRuntime.instance().get("name")
    config = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        hydra.initialize_config_dir(str(CONF), job_name="train", version_base="1.3")
        app = GlobalHydra.instance().hydra
        assert app is not None
        yield Composer(app, folder)
    finally:
        GlobalHydra.instance().hydra = other
        version.VersionBase.instance().version_base = base
        JobRuntime.instance().set("name", name)
        HydraConfig.instance().cfg = config


def compose(overrides: Sequence[str]) -> DictConfig:
    """Return the config that Hydra composes from our YAML and `key=value` arguments. Raises ConfigError."""
    with create_composer() as composer:
        return composer.compose(overrides).tree


# ---------------------------------------------------------------------------------------------------------------------
# A sweep


def check_jobs(composer: Composer, single: list[str], listed: list[Argument], *, complete: bool) -> None:
    """Check a sweep before its first run.

    Each listed name or value has to be in a job that composes, and none may be listed twice. If the sweep is
    `complete`, one of its jobs has to be able to train, too; the others fail when they are run. Of seeds, which decide
    nothing here, only the first is tried. Raises ConfigError, that of the first job if none can train.
    """
    choices = [expand_choice(argument) for argument in listed]
    for argument, values in zip(listed, choices, strict=True):
        for twice in (value.lstrip("+") for value, times in Counter(values).items() if times > 1):
            raise ConfigError(f"{argument.text.lstrip('+')} lists {twice} more than once; leave one out")

    choices = [values[:1] if lists_seeds(one) else values for one, values in zip(listed, choices, strict=True)]
    by_name = [isinstance(one.override.value(), ChoiceSweep) for one in listed]
    rounds = max((len(values) for values, is_named in zip(choices, by_name, strict=True) if is_named), default=0)
    diagonal = [tuple(values[number % len(values)] for values in choices) for number in range(rounds)]
    errors: list[ConfigError] = []
    has_trainable = not complete
    for number, job in enumerate(itertools.chain(diagonal, itertools.product(*choices))):
        if number >= rounds and has_trainable:
            return
        config = parse_config(normalise_tree(composer.compose([*single, *job]).tree))
        if not has_trainable:
            try:
                check_config(config)
                has_trainable = True
            except ConfigError as error:
                errors.append(error)
    if errors:
        raise errors[0]


def lists_seeds(argument: Argument) -> bool:
    """Return whether an argument lists seeds, all of which a config may have."""
    if argument.key != "seed":
        return False
    limits = FIELDS["seed"].metadata["accepted"]
    values = argument.override.sweep_iterator()
    return all(type(value) is int and limits.at_least <= value <= limits.at_most for value in values)


def expand_choice(argument: Argument) -> list[str]:
    """Return an override for each value that an argument lists, in the order of Hydra's sweeper.

    Raises ConfigError if there is none, or no end of them.
    """
    override, text, value = argument.override, argument.text, argument.override.value()
    if not override.is_discrete_sweep():
        raise ConfigError(f"{text} has no end; list values, as in {argument.key}=…,…")
    if isinstance(value, Glob):
        names = [name for name in options(argument.key) if "<" not in name and name != OWN]  # a pattern is no choice
        if not (found := value.filter(names)):
            raise ConfigError(f"{text} matches none of: {', '.join(names) or f'{argument.key} is no group'}")
        return [f"{argument.key}={name}" for name in sorted(found)]
    values = list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
    if not values:
        raise ConfigError(f"{text} lists no values; list some, as in {argument.key}=…,…")
    if len(values) > MOST_JOBS:
        raise ConfigError(f"{text} lists more than {MOST_JOBS:,} values; list fewer")
    prefix = text[: len(text) - len(text.lstrip("+"))]
    return [f"{prefix}{argument.key}={each}" for each in values]
