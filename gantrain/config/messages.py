"""Messages for what is wrong with a configuration: unknown keys, and the errors of Hydra and OmegaConf in our words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from hydra.errors import MissingConfigException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    OmegaConfBaseException,
    ValidationError,
)

from gantrain.config.groups import CHOSEN_BY_YAML, GROUPS, options
from gantrain.config.schema import REMOVED, Config, describe_kind, keys
from gantrain.errors import SIMILARITY, ConfigError, describe_choice, find_nearest


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message that refuses `key`, with the most similar of the `known` keys if there is a similar one.

    Keys are compared as a whole and in the part after the last dot.
    """
    if key.startswith("hydra."):
        return f"there is no key {key}; gantrain train --cfg hydra shows Hydra's own"

    def similarities(name: str) -> tuple[float, float]:
        last, typed = name.rpartition(".")[2], key.rpartition(".")[2]
        return SequenceMatcher(None, key, name).ratio(), SequenceMatcher(None, typed, last).ratio()

    similar = [name for name in known if max(similarities(name)) >= SIMILARITY]
    if not similar:
        return f"there is no key {key}; --help lists the keys"
    return f"there is no key {key}; did you mean {max(similar, key=lambda name: sum(similarities(name)))}?"


def config_error(error: BaseException, schema: type = Config) -> ConfigError:
    """Return an error of Hydra or OmegaConf about a config of this schema as a ConfigError with a short message."""
    return ConfigError(_describe_choice(error) or _describe_value(error, schema))


def _describe_choice(error: BaseException) -> str | None:
    """Return the message for an option that a group lacks, or that `defaults` of a YAML file cannot choose."""
    said = str(error)
    file = re.match(r"In '(?!hydra/)([^']+/[^']+)'", said)  # not config.yaml, into which the command line is read
    where = f"{file[1]}.yaml: " if file else ""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if (group, name) in REMOVED:
            return where + REMOVED[group, name]
        ours = options(group) if group in GROUPS else ()
        if choices := dict.fromkeys([*(error.options or ()), *ours]):
            return where + describe_choice(group, name, choices)
    elif found := re.search(r"(?:Could not override '|Multiple values for )([\w/]+).*(?:No match|To override)", said):
        group = found[1]
    else:
        return None
    group = group.removeprefix("experiment/")  # a file's group is relative to its own unless it has a slash
    nearest = [*find_nearest(group, CHOSEN_BY_YAML), "GROUP"][0]
    groups = f"; the groups are {', '.join(CHOSEN_BY_YAML)}" if nearest == "GROUP" else ""
    return f"{where}`defaults` cannot choose {group} like this; write `override /{nearest}: …`{groups}"


def _describe_value(error: BaseException, schema: type) -> str:
    """Return the message for an unknown key or a value of the wrong type."""
    inner = [one for one in _causes(error) if isinstance(one, OmegaConfBaseException)]
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
        rule = describe_kind(key, schema) + (chosen if key in GROUPS and schema is Config else "")
        return f"{key if value is None else f'{key}={value}'} must be {rule}"
    reason = (str(getattr(cause, "msg", None) or cause).splitlines() or [type(cause).__name__])[0]
    reason = re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", reason)
    return f"{key}: {reason}" if key else reason


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and the chain of exceptions that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
