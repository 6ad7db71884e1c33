"""YAML from outside the package: it may choose values, and make nothing run.

Hydra instantiates launchers, sweepers, callbacks and logging handlers that a config names, so a config that somebody
sent could execute code. Files of the user's `--config-dir` are first read with a safe loader, and what Hydra composes
from them, which runs nothing, is then compared with what it composes without them: under `hydra` they may change where
runs go, the mode, the sweeper's parameters, and the launcher, which has to be one of Hydra's plugins.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gantrain.errors import ConfigError
from gantrain.nested import leaves

ALLOWED = ("run.dir", "sweep.dir", "sweep.subdir", "mode", "sweeper.params")
# What Hydra itself fills in from the command line.
FILLED_IN = ("runtime", "overrides", "searchpath", "job.name", "job.override_dirname", "job.config_name", "job.id")
PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")
LARGEST_BYTES = 2**20
MOST_ALIASES = 100


def refuse_unreadable(folder: Path) -> None:
    """Raise ConfigError for YAML below `folder` that is no plain YAML, or is made to exhaust its reader."""
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder")
    for where, folders, files in os.walk(folder):
        for link in (Path(where, name) for name in folders if Path(where, name).is_symlink()):
            raise ConfigError(f"{link} is a link to another folder; put the files themselves there")
        for path in (Path(where, name) for name in sorted(files) if name.endswith(".yaml")):
            for reason in objections(path):
                raise ConfigError(f"{path}: {reason}")


def objections(path: Path) -> Iterator[str]:
    """Why a file is not to be composed, if it is not."""
    if path.stat().st_size > LARGEST_BYTES:
        yield f"it is larger than {LARGEST_BYTES:,} bytes"
        return
    try:
        text = path.read_text(encoding="utf-8")
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
        if aliases > MOST_ALIASES:
            yield f"it repeats parts of itself {aliases} times; {MOST_ALIASES} aliases are the most"
            return
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        yield f"it cannot be read as YAML ({str(error).splitlines()[0]})"
        return
    if not isinstance(content, Mapping | None):
        yield "it holds no keys and values"


def refuse_active(hydra: Mapping[str, Any], without: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError where the composed node `hydra` differs from the one composed `without` the user's YAML in a
    key that could make Hydra run something."""
    ours, theirs = dict(leaves(without)), dict(leaves(hydra))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key) and not harmless(key, theirs):
            raise ConfigError(
                f"--config-dir {folder}: its YAML sets hydra.{key}; under hydra it may set only {', '.join(ALLOWED)} "
                "and a launcher by name. Type anything else on the command line"
            )


def harmless(key: str, hydra: Mapping[str, Any]) -> bool:
    """Whether a key of Hydra's own node may come from a file."""
    if "architecture.object" in key:  # it would pass for an override that was typed
        return False
    if key.startswith("launcher."):
        nested = key.endswith("_target_") and key != "launcher._target_"
        return not nested and str(hydra.get("launcher._target_")).startswith(PLUGINS)
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in ALLOWED + FILLED_IN)
