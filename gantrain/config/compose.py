"""What Hydra would compose of our YAML, the user's own and the command line: asked before it makes any folder."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gantrain.config import checks, overrides
from gantrain.config.overrides import quoted
from gantrain.config.trust import ForeignSource, refuse_active, refuse_shadowed
from gantrain.errors import ConfigError
from gantrain.launch.sweep import SEARCH_PATH

MOST_JOBS = 100_000  # of a sweep

# At import, so that it also holds in a process that a launcher starts.
checks.register()


def compose(typed: list[str]) -> DictConfig:
    """What Hydra composes from our YAML and `key=value` arguments. Raises ConfigError."""
    return compose_whole(typed)[0]


def compose_whole(typed: list[str]) -> tuple[DictConfig, DictConfig]:
    """The same, and Hydra's own node beside it; nothing in that node is run."""
    try:
        with composition_errors(), hydra.initialize_config_dir(str(checks.CONF), version_base="1.3"):
            whole = hydra.compose("config", typed, return_hydra_config=True)
    except (ValueError, TypeError, RecursionError) as error:  # what Hydra makes of a list of defaults that is none
        why = "they lead back to themselves" if isinstance(error, RecursionError) else error
        raise ConfigError(f"this YAML cannot be composed, look at its `defaults`: {why}") from error
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]), whole.hydra


@contextmanager
def composition_errors() -> Iterator[None]:
    """What Hydra and OmegaConf raise while they compose, as ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise checks.explained(error) from error


# ---------------------------------------------------------------------------------------------------------------------
# One job


def with_own_yaml(typed: list[str], config_dir: str | None) -> list[str]:
    """The overrides, and one that puts the user's own folder of YAML on Hydra's search path. Raises ConfigError."""
    if config_dir is None:
        return typed
    folder = Path(config_dir)
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder")
    if any(text.lstrip("+").startswith(SEARCH_PATH) for text in typed):
        raise ConfigError(f"--config-dir and {SEARCH_PATH} name the same thing; give one of them")
    refuse_shadowed(folder, checks.CONF, [(o.key_or_group, o.value()) for o in overrides.parsed(typed)])
    return [*typed, f"{SEARCH_PATH}=[{quoted(f'{ForeignSource.scheme()}://{folder.absolute()}')}]"]


def preview(typed: list[str], config_dir: str | None) -> tuple[DictConfig, RunMode | None]:
    """The config as Hydra will compose it, before Hydra makes any folder, and the mode that it asks for.

    Raises ConfigError.
    """
    composed, node = compose_whole(typed)
    for kind in ("run", "sweep"):
        if (folder := plain(node[kind])["dir"]) != "${run_dir}":
            raise ConfigError(f"hydra.{kind}.dir={folder}: the folder of a {kind} is given as run_dir={folder}")
    if config_dir is not None:
        ours = [text for text in typed if text.lstrip("+~").startswith("hydra") and not text.startswith(SEARCH_PATH)]
        if not any(text.startswith("hydra/launcher=") for text in ours):
            ours.append(f"hydra/launcher={node.runtime.choices['hydra/launcher']}")
        refuse_active(plain(node), plain(compose_whole(ours)[1]), Path(config_dir))
    return composed, node.mode


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as dictionaries, its interpolations left as they are."""
    container = OmegaConf.to_container(node, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


# ---------------------------------------------------------------------------------------------------------------------
# A sweep


def preview_sweep(typed: list[str], config_dir: str | None) -> dict[str, Any]:
    """The settings that all jobs share; every listed value has been composed once, and one job at least can train.

    Raises ConfigError.
    """
    unlisted, listed = overrides.divided(typed)
    choices = []
    for text, override in zip(listed, overrides.parsed(listed), strict=True):
        choices.append(each(text, override))
        for twice in (choice.lstrip("+") for choice, times in Counter(choices[-1]).items() if times > 1):
            raise ConfigError(f"{text.lstrip('+')} lists {twice} more than once; leave one out")
        if override.is_choice_sweep() and not isinstance(override.value(), Glob):
            for choice in choices[-1]:
                checks.typed(preview([*unlisted, choice], config_dir)[0])
    composed, mode = preview(unlisted, config_dir)
    if mode != RunMode.MULTIRUN:  # else a file lists more values
        refuse_hopeless(unlisted, choices, config_dir)
    return checks.typed(composed)


def each(text: str, override: Override) -> list[str]:
    """An override for each of the values that one lists, in the order of Hydra's sweeper.

    Raises ConfigError where there is none, or no end of them.
    """
    if not override.is_discrete_sweep():
        raise ConfigError(f"{text} has no end; list values, as in {override.key_or_group}=…,…")
    if isinstance(override.value(), Glob):
        return matching(text, override)
    values = list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
    if len(values) > MOST_JOBS:
        raise ConfigError(f"{text} lists more than {MOST_JOBS:,} values; list fewer")
    return [f"{override.get_key_element()}={value}" for value in values]


def matching(text: str, override: Override) -> list[str]:
    """An override for each choice of a group that a glob stands for, of which YAML of one's own is none for Hydra.

    Raises ConfigError where there is none.
    """
    group, glob = override.key_or_group, override.value()
    assert isinstance(glob, Glob)
    names = [name for name in checks.options(group) if "<" not in name]  # a pattern is no choice
    if not (found := glob.filter(names)):
        raise ConfigError(f"{text} matches none of: {', '.join(names) or f'{group} is no group'}")
    return [f"{group}={name}" for name in sorted(found)]


def refuse_hopeless(unlisted: list[str], choices: list[list[str]], config_dir: str | None) -> None:
    """Raise the first job's ConfigError where none could train; where some could, the others fail as they are run."""
    first = None
    for job in itertools.product(*choices):
        try:
            checks.checked(preview([*unlisted, *job], config_dir)[0])
            return
        except ConfigError as error:
            first = first or error
    if first is not None:
        raise first
