"""Messages for what is wrong with a configuration: unknown keys, and the errors of Hydra and OmegaConf in our words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path

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
from gantrain.errors import ConfigError, describe_choice, find_nearest

KEY_SIMILARITY, SHORT = 0.7, 3  # of two keys that may be one, and letters of which one may be wrong
OPTIONAL_LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")  # those of the extra `launchers`
PATH_STARTS = ("/", "./", "../", "~")  # no choice begins like this


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message that refuses `key`, with the most similar of the `known` keys if there is a similar one."""
    if key.startswith("hydra."):
        return f"there is no key {key}; gantrain train --cfg hydra shows Hydra's own"
    nearest = find_nearest_key(key, known)
    return f"there is no key {key}; {f'did you mean {nearest}?' if nearest else '--help lists the keys'}"


def unknown_flag(flag: str, value: str, known: Iterable[str]) -> str:
    """Return the message that refuses `flag`, with what to write in its place if it is similar to a `known` key.

    `value` is the argument after it, if that may be its value.
    """
    name, _, own_value = flag.lstrip("-").partition("=")
    nearest = find_nearest_key(name.replace("-", "_"), known)
    way_out = f"as in {nearest}={own_value or value or '…'}" if nearest else "as key=value; --help lists them"
    return f"there is no flag {flag.partition('=')[0]}; keys are written without dashes, {way_out}"


def find_nearest_key(key: str, known: Iterable[str]) -> str | None:
    """Return the most similar of the `known` keys, or None if none is similar.

    Keys are compared as a whole and in the part after the last dot, which may be a beginning; keys of one section have
    to be similar in that part.
    """
    known, (section, _, typed) = list(known), key.rpartition(".")
    has_section = any(name.startswith(f"{section}.") for name in known)

    def similarities(name: str) -> tuple[float, float]:
        last = name.rpartition(".")[2]
        is_beginning = len(typed) > 2 and last.startswith(typed)
        is_exchange = sorted(typed.lower()) == sorted(last)  # of letters, or of their case
        is_slip = len(typed) == len(last) == SHORT and sum(map(str.__ne__, typed, last)) == 1
        is_same = is_beginning or is_exchange or is_slip
        part = 1.0 if is_same else SequenceMatcher(None, typed, last).ratio()
        return part, SequenceMatcher(None, key, name).ratio()

    def is_similar(name: str) -> bool:
        part, whole = similarities(name)
        if section and section in (name, name.rpartition(".")[0]):
            return part >= KEY_SIMILARITY or not has_section
        return max(part, whole) >= KEY_SIMILARITY

    return max(filter(is_similar, known), key=lambda name: sum(similarities(name)), default=None)


def missing_option(group: str, name: object, choices: Iterable[str]) -> str:
    """Return the message that refuses `group=name`; a path given as the dataset belongs to dataset=folder."""
    if group == "dataset" and (str(name).startswith(PATH_STARTS) or Path(str(name)).exists()):
        return f"dataset={name} is a path, not one of the choices; write dataset=folder dataset.path={name}"
    if group == "hydra/launcher" and name in OPTIONAL_LAUNCHERS:
        return f"hydra/launcher={name} is not installed; install it with: pip install 'gantrain[launchers]'"
    return describe_choice(group, name, choices)


def config_error(error: BaseException, schema: type = Config) -> ConfigError:
    """Return an error of Hydra or OmegaConf about a config of this schema as a ConfigError with a short message."""
    return ConfigError(_describe_choice(error) or _describe_value(error, schema))


def _describe_choice(error: BaseException) -> str | None:
    """Return the message for an option that a group lacks, or that `defaults` of a YAML file cannot choose."""
    said = str(error)
    file = re.match(r"In '(?!hydra/)([^']+/[^']+)'", said)  # not config.yaml, into which the command line is read
    where = f"{file[1]}.yaml: " if file else ""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.partition("/")
        if group not in GROUPS or (group == "experiment" and "/" in name):
            group, _, name = error.missing_cfg_file.rpartition("/")
        if (group, name) in REMOVED:
            return where + REMOVED[group, name]
        ours = options(group) if group in GROUPS else ()
        if choices := dict.fromkeys([*(error.options or ()), *ours]):
            return where + missing_option(group, name, choices)
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
        if rule == "a whole number" and isinstance(value, float) and value.is_integer():  # 1e6 of a YAML file
            rule += f" without a point or an exponent: {value:.0f}"
        return f"{key if value is None else f'{key}={value}'} must be {rule}"
    reason = (str(getattr(cause, "msg", None) or cause).splitlines() or [type(cause).__name__])[0]
    reason = re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", reason)
    return f"{key}: {reason}" if key else reason


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and the chain of exceptions that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
