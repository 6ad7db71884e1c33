"""Checks of YAML from outside the package: it may choose values, but not make anything run.

Hydra instantiates launchers, sweepers, callbacks and logging handlers that a config names, so a config received from
others could execute code. `ForeignSource` reads a file of the user's `--config-dir` with a safe loader, up to a size,
and only from inside the folder. The composed node `hydra` is then compared with the one composed without these files:
they may change the names of a sweep's runs, the mode, the sweeper's parameters, and the launcher, which is chosen by
name, with numbers and names as its settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gantrain.errors import ConfigError
from gantrain.files import CONF, iterate_leaves, read_regular_file

ALLOWED = ("sweep.subdir", "mode", "sweeper.params")
# What Hydra itself fills in from the command line.
FILLED_IN = ("runtime", "overrides", "searchpath", "job.name", "job.override_dirname", "job.config_name", "job.id")
# Settings of launchers that may come from a file; others hold commands for a shell, or folders.
LAUNCHER_SETTINGS = (
    "jobs|devices|n_jobs|array_parallelism|batch_size|pre_dispatch|verbose|backend|prefer|timeout|timeout_min|"
    "max_num_timeout|signal_delay_s|stderr_to_stdout|nodes|tasks_per_node|mem_gb|cpus_per_task|cpus_per_gpu|"
    "gpus_per_node|gpus_per_task|mem_per_cpu|mem_per_gpu|partition|qos|account|constraint|gres"
)
LAUNCHER_SETTING = re.compile(rf"launcher\.({LAUNCHER_SETTINGS})(\.\d+)?=(\[[\w.:,-]*\]|[\w.:-]*)")
LARGEST_BYTES = 2**20
MOST_VALUES = 10_000
DEEPEST = 50


class ForeignSource(FileConfigSource):
    """A folder of YAML on Hydra's search path, `foreign://FOLDER`, that is not trusted."""

    @staticmethod
    def scheme() -> str:
        return "foreign"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        read_yaml_file(path, Path(self.path))
        try:
            result = super().load_config(config_path)
        except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as YAML: {describe_yaml_error(error)}") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise ConfigError(f"{path} holds no keys and values") from error  # but a number or a text
        if not isinstance(result.config, DictConfig):
            raise ConfigError(f"{path} holds no keys and values")
        return result


def read_yaml_file(path: Path, folder: Path) -> str:
    """Return the text of a YAML file.

    Raises ConfigError for one that is not inside `folder`, is no text, or is made to exhaust its reader.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{path} leads out of the folder {folder}; put the file itself there")
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise ConfigError(f"{path} is larger than {LARGEST_BYTES:,} bytes")
        text = read_regular_file(path).decode()
        count = count_values(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {describe_yaml_error(error)}") from error
    if count > MOST_VALUES:
        raise ConfigError(
            f"{path} is nested more than {DEEPEST} deep, or stands for more than {MOST_VALUES:,} values once its "
            "aliases are written out"
        )
    return text


def count_values(text: str) -> float:
    """Return how many values YAML stands for once its aliases are written out, counted until they are too many.

    Infinity for YAML that is nested too deeply: the parser's time is quadratic in the depth.
    """
    sizes: dict[str | None, int] = {}  # by anchor
    open_collections: list[tuple[str | None, int]] = [(None, 0)]  # anchor, values so far
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((event.anchor, 1))
            if len(open_collections) > DEEPEST:
                return math.inf
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_collections.pop()
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        else:
            continue
        sizes[anchor] = size
        outer, count = open_collections[-1]
        if count + size > MOST_VALUES:
            return count + size
        open_collections[-1] = outer, count + size
    return open_collections[0][1]


def describe_yaml_error(error: Exception) -> str:
    """Return the problem that the YAML parser found, and its line."""
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or str(error).partition("\n")[0] or type(error).__name__
    return f"{reason}{f', line {mark.line + 1}' if mark else ''}"


def check_not_shadowed(folder: Path, chosen: Iterable[tuple[str, Any]]) -> None:
    """Raise ConfigError if a choice (group, name) is a file in `folder` that is not read because ours has its name."""
    for group, name in chosen:
        file = Path(group, f"{name}.yaml")
        if (CONF / file).is_file() and (folder / file).is_file():
            raise ConfigError(
                f"{folder / file} would never be read: gantrain has {group}={name} of its own; "
                "give the file another name"
            )


def check_untrusted_config(hydra: Mapping[str, Any], without: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError if the YAML in `folder` sets a key of `hydra` that could make Hydra run something.

    `hydra` and `without` are Hydra's own node composed with and without the YAML, with the same launcher.
    """
    ours, theirs = dict(iterate_leaves(without)), dict(iterate_leaves(hydra))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key) and not is_harmless(key, theirs):
            raise ConfigError(
                f"--config-dir {folder}: its YAML sets hydra.{key}; under hydra it may set only {', '.join(ALLOWED)} "
                "and a launcher by name, with numbers and names for it. Type anything else on the command line"
            )


def is_harmless(key: str, hydra: Mapping[str, Any]) -> bool:
    """Return whether a key of Hydra's own node may come from a file."""
    if "architecture.object" in key:  # it would pass for an override that was typed
        return False
    if key.startswith("launcher."):
        return LAUNCHER_SETTING.fullmatch(f"{key}={hydra.get(key)}") is not None
    if key.startswith("sweeper.params") and "hydra" in key:  # it would be a key of Hydra's own in every job
        return False
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in ALLOWED + FILLED_IN)
