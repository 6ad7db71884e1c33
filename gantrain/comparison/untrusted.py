"""Files and values of run folders that may come from other people, so that nothing in them is trusted.

A file is read only if it is regular, lies inside the run folder and is not too large. YAML and JSON give plain values
only. Control characters are removed from every text, and long texts are cut.
"""

from __future__ import annotations

import functools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gantrain.console import printable
from gantrain.errors import DataError
from gantrain.files import iterate_leaves

LARGEST_BYTES = {".yaml": 2**18, ".json": 2**24, ".jsonl": 2**28, ".png": 2**24}
MOST_BRACKETS = 1000  # in a YAML file; the time that PyYAML takes grows with the square of their depth
LONGEST_TEXT = 1000
LARGEST_NUMBER = 1e100  # the squares of larger numbers could overflow in a standard deviation


def read_file(folder: Path, name: str) -> bytes | None:
    """Read a file of a run; None if it is missing.

    Raises DataError for a link out of the folder, a special file, or one larger than `LARGEST_BYTES` of its suffix.
    """
    most = LARGEST_BYTES[Path(name).suffix]
    try:
        place = (folder / name).resolve(strict=True)
        if not place.is_relative_to(folder.resolve()):
            raise DataError(f"{name} is a link out of the run folder")
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise DataError(f"{name} is not a regular file")
            if facts.st_size > most:
                raise DataError(f"{name} has {facts.st_size:,} bytes; at most {most:,} are read")
            return file.read(most)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:  # resolve raises RuntimeError for a link to itself
        raise DataError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_yaml(folder: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of a YAML file without resolving them; nothing if the file is missing.

    Raises DataError for invalid YAML, and for YAML that would take very long to read.
    """
    try:
        text = (read_file(folder, name) or b"").decode()
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise DataError(f"{name} has more than {MOST_BRACKETS:,} brackets")
        # PyYAML raises errors of many kinds for a value that is not what its tag says.
        if any(isinstance(e, yaml.AliasEvent) or getattr(e, "tag", None) for e in yaml.parse(text, yaml.SafeLoader)):
            raise DataError(f"{name} has aliases or tags, which gantrain never writes")
        yield from iterate_leaves(yaml.safe_load(text) or {})
    except (OverflowError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{name} is not YAML: {clean_text(str(error))}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return a run's settings by dotted key; a reference to one of them, `${dataset.r1_weight}`, is that one's value.

    Raises DataError as `read_yaml`.
    """
    found = dict(read_yaml(folder, ".hydra/config.yaml"))
    return {
        key: found.get(value[2:-1], value) if isinstance(value, str) and value.startswith("${") else value
        for key, value in found.items()
    }


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file is missing. Raises DataError."""
    data = read_file(folder, name)
    if data is None:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {clean_text(str(error))}") from error
    if not isinstance(found, dict):
        raise DataError(f"{name} is not a JSON object")
    return found


def get_nested(value: Any, *keys: str) -> Any:
    """Return the value at nested keys; None if it is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def finite_number(value: Any) -> float | None:
    """Return a number of at most `LARGEST_NUMBER` in size as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_NUMBER:
        return None
    return float(value)


def finite_numbers(values: Any) -> dict[str, float]:
    """Return the finite numbers of a mapping by their names; nothing for another value."""
    items = values.items() if isinstance(values, dict) else ()
    return {
        clean_name(name[: LONGEST_TEXT + 1]): number  # cut, so that what is cached is small
        for name, value in items
        if (number := finite_number(value)) is not None
    }


def clean_text(value: Any) -> str:
    """Return a text on one line, without control characters and cut to `LONGEST_TEXT`; empty if it is not a text."""
    text = " ".join(printable(value).split()) if isinstance(value, str) else ""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


clean_name = functools.lru_cache(4096)(clean_text)  # for names of metrics, which are the same in all reports


def format_setting(value: Any) -> str:
    """Return the value of a setting as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return "a number too large to show"
    return clean_text(str(value))
