"""Composing a config with Hydra from our YAML, the user's own and the command line, before any folder is made."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import hydra
from hydra import version
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Glob
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gantrain.config.checks import PRACTICAL_LOSSES, check_config, parse_config, to_plain
from gantrain.config.groups import CONF, CataloguePath, CatalogueSource, options
from gantrain.config.messages import config_error
from gantrain.config.overrides import Argument, quote
from gantrain.config.schema import Config, create_node
from gantrain.config.trust import ForeignSource, check_not_shadowed, check_untrusted_config
from gantrain.errors import ConfigError
from gantrain.files import safe_name

MOST_JOBS = 100_000  # of a sweep
SEARCH_PATH = "hydra.searchpath"
CONFIG_NAME = "config"


def register() -> None:
    """Make the schema, the catalogue's options and the resolvers known to Hydra; safe to call again."""
    ConfigStore.instance().store(name="gantrain_schema", node=create_node(Config))
    for plugin in (CatalogueSource, CataloguePath, ForeignSource):
        Plugins.instance().register(plugin)
    OmegaConf.register_new_resolver("swept_name", swept_name, replace=True)
    OmegaConf.register_new_resolver("practical_loss", PRACTICAL_LOSSES.__getitem__, replace=True)


def swept_name(text: str) -> str:
    """Return what follows the number in the name of a sweep's job: the swept keys and values, without the mark `++`."""
    return f"-{safe_name(text.replace('++', ''))}" if text else ""


# At import, so that it also holds in a process that a launcher starts.
register()


# ---------------------------------------------------------------------------------------------------------------------
# Hydra


@contextmanager
def own_hydra() -> Iterator[Hydra]:
    """Hydra's application object for our configs; afterwards the globals of another program's Hydra are as before."""
    other, base, name = GlobalHydra.instance().hydra, version.getbase(), JobRuntime.instance().get("name")
    config = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        hydra.initialize_config_dir(str(CONF), job_name="train", version_base="1.3")
        app = GlobalHydra.instance().hydra
        assert app is not None
        yield app
    finally:
        GlobalHydra.instance().hydra = other
        version.VersionBase.instance().version_base = base
        JobRuntime.instance().set("name", name)
        HydraConfig.instance().cfg = config


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

    def check_folder(self, arguments: Iterable[Argument]) -> None:
        """Raise ConfigError if the user's own folder is none, or has a file that gantrain's own hides."""
        if self.config_dir is None:
            return
        if not self.config_dir.is_dir():
            raise ConfigError(f"--config-dir {self.config_dir} is not a folder")
        if any(argument.key == SEARCH_PATH for argument in arguments):
            raise ConfigError(f"--config-dir and {SEARCH_PATH} name the same thing; give one of them")
        check_not_shadowed(self.config_dir, CONF, [(one.key, one.override.value()) for one in arguments])

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
            trusted = self._trusted.get(tuple(ours)) or self._compose(ours).whole.hydra
            self._trusted[tuple(ours)] = trusted
            check_untrusted_config(to_plain(node), to_plain(trusted), self.config_dir)
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
    """A composer for the arguments of one command. Raises ConfigError for a `config_dir` that cannot be used."""
    with own_hydra() as app:
        composer = Composer(app, None if config_dir is None else Path(config_dir))
        composer.check_folder(arguments)
        yield composer


def compose(overrides: Sequence[str]) -> DictConfig:
    """Return the config that Hydra composes from our YAML and `key=value` arguments. Raises ConfigError."""
    with create_composer() as composer:
        return composer.compose(overrides).tree


# ---------------------------------------------------------------------------------------------------------------------
# A sweep


def check_jobs(composer: Composer, single: list[str], listed: list[Argument], *, complete: bool) -> None:
    """Compose as many jobs of a sweep as it takes to have every listed choice in one.

    Raises the ConfigError of a job with an impossible value and, if the sweep is `complete`, that of the first job if
    none can train; where one can, the others fail when they are run.
    """
    choices = [expand_choice(argument) for argument in listed]
    for argument, values in zip(listed, choices, strict=True):
        for twice in (value.lstrip("+") for value, times in Counter(values).items() if times > 1):
            raise ConfigError(f"{argument.text.lstrip('+')} lists {twice} more than once; leave one out")

    def compose_job(job: tuple[str, ...]) -> Config:
        return parse_config(composer.compose([*single, *job]).tree)

    def compose_later(job: tuple[str, ...]) -> Callable[[], object]:
        return lambda: check_config(compose_job(job))

    by_name = [one.override.is_choice_sweep() and not isinstance(one.override.value(), Glob) for one in listed]
    rounds = max((len(values) for values, is_named in zip(choices, by_name, strict=True) if is_named), default=0)
    diagonal = [tuple(values[number % len(values)] for values in choices) for number in range(rounds)]
    configs = list(map(compose_job, diagonal))
    if complete:
        others = (job for job in itertools.product(*choices) if job not in diagonal)
        check_any(itertools.chain((partial(check_config, config) for config in configs), map(compose_later, others)))


def check_any(checks: Iterable[Callable[[], object]]) -> None:
    """Call the functions until one raises no ConfigError. Raises the first error if all of them raise one."""
    first: ConfigError | None = None
    for check in checks:
        try:
            check()
            return
        except ConfigError as error:
            first = first or error
    if first is not None:
        raise first


def expand_choice(argument: Argument) -> list[str]:
    """Return an override for each value that an argument lists, in the order of Hydra's sweeper.

    Raises ConfigError if there is none, or no end of them.
    """
    override, text = argument.override, argument.text
    if not override.is_discrete_sweep():
        raise ConfigError(f"{text} has no end; list values, as in {argument.key}=…,…")
    if isinstance(override.value(), Glob):
        return expand_glob(argument)
    values = list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
    if len(values) > MOST_JOBS:
        raise ConfigError(f"{text} lists more than {MOST_JOBS:,} values; list fewer")
    prefix = text[: len(text) - len(text.lstrip("+"))]
    return [f"{prefix}{argument.key}={value}" for value in values]


def expand_glob(argument: Argument) -> list[str]:
    """Return an override for each choice of a group that a glob matches; YAML of one's own is not among them for Hydra.

    Raises ConfigError if there is none.
    """
    group, glob = argument.key, argument.override.value()
    assert isinstance(glob, Glob)
    names = [name for name in options(group) if "<" not in name]  # a pattern is no choice
    if not (found := glob.filter(names)):
        raise ConfigError(f"{argument.text} matches none of: {', '.join(names) or f'{group} is no group'}")
    return [f"{group}={name}" for name in sorted(found)]
