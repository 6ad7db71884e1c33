"""YAML from outside the package: it may choose values, and make nothing run.

Hydra instantiates launchers, sweepers, callbacks and logging handlers that a config names, so a config that somebody
sent could execute code as it is composed. Files of the user's `--config-dir` are therefore read first, with a safe
loader, and may set under `hydra` only where runs go, the mode, the sweeper's parameters, and a launcher by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gantrain.errors import ConfigError

ALLOWED = ("run.dir", "sweep.dir", "sweep.subdir", "mode", "sweeper.params")
LARGEST_BYTES = 2**20
PACKAGE = re.compile(r"^\s*#\s*@package\s+(\S+)", re.MULTILINE)


def refuse_active_yaml(folder: Path) -> None:
    """Raise ConfigError for the first file below `folder` that could make Hydra run something."""
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder")
    for path in sorted(folder.rglob("*.yaml")):
        for reason in objections(path, folder):
            raise ConfigError(
                f"{path}: {reason}; YAML of your own may set under hydra only {', '.join(ALLOWED)} and a launcher by "
                "name. Type anything else on the command line"
            )


def objections(path: Path, folder: Path) -> Iterator[str]:
    """Why a file is not to be composed, if it is not."""
    if path.stat().st_size > LARGEST_BYTES:
        yield f"it is larger than {LARGEST_BYTES:,} bytes"
        return
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        yield f"it cannot be read as YAML ({str(error).splitlines()[0]})"
        return
    package = PACKAGE.search(text)
    if path.relative_to(folder).parts[0] == "hydra" or (package and package[1].startswith("hydra")):
        yield "it stands in Hydra's own config"
    if isinstance(content, Mapping):
        yield from _objections_to(content)
    elif content is not None:
        yield "it holds no keys and values"


def _objections_to(content: Mapping[Any, Any]) -> Iterator[str]:
    for key, _ in leaves(content):
        if "_target_" in key.split("."):
            yield f"{key} names something to instantiate"
        elif key.startswith("hydra.") and not any(f"{key}.".startswith(f"hydra.{allowed}.") for allowed in ALLOWED):
            yield f"{key} is Hydra's own"
    for entry in content.get("defaults") or []:
        group = next(iter(entry)) if isinstance(entry, Mapping) and entry else str(entry)
        group = str(group).removeprefix("optional ").removeprefix("override ").lstrip("/")
        if group.startswith("hydra") and group.partition("@")[0] != "hydra/launcher":
            yield f"its defaults choose {group}"


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings and lists as dotted keys."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield key, value
        return
    for name, item in items:
        yield from leaves(item, f"{key}.{name}" if key else str(name))
