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
from gantrain.config.schema import OPEN_SECTIONS, REMOVED, Config, describe_kind, keys
from gantrain.errors import SIMILARITY, ConfigError, describe_choice, find_nearest


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message that refuses `key`, with up to three similar keys.

    Keys are compared as a whole, by the part after the last dot, and by the words of that part.
    """
    known = list(known)
    section, _, rest = key.partition(".")
    if section == "hydra":
        return f"there is no key {key}; gantrain train --cfg hydra shows Hydra's own"
    sections = {name.partition(".")[0] for name in known}
    if rest and section not in sections:
        near_sections = set(find_nearest(section, sections)[:1]).intersection(OPEN_SECTIONS)
        known = [*(f"{right}.{rest}" for right in near_sections), *known]

    def similarity(name: str) -> float:
        last, typed = name.rpartition(".")[2], key.rpartition(".")[2]
        by_word = max(SequenceMatcher(None, typed, word).ratio() for word in last.split("_"))
        by_name = SequenceMatcher(None, typed, last).ratio()
        return max(SequenceMatcher(None, key, name).ratio(), 0.9 * by_name, 0.8 * by_word)

    ranked = sorted(dict.fromkeys(known), key=similarity, reverse=True)
    near = [name for name in ranked if similarity(name) >= SIMILARITY][:3]
    if not near:
        return f"there is no key {key}; --help lists the keys"
    others = f" Near it too: {', '.join(near[1:])}" if near[1:] else ""
    return f"there is no key {key}; did you mean {near[0]}?{others}"


def config_error(error: BaseException, schema: type = Config) -> ConfigError:
    """Return an error of Hydra or OmegaConf about a config of this schema as a ConfigError with a short message."""
    return ConfigError(_describe_choice(error) or _describe_value(error, schema))


def _describe_choice(error: BaseException) -> str | None:
    """The message for an option that a group does not have, or that the `defaults` of a YAML file cannot choose."""
    said = str(error)
    place = re.match(r"In '(?!hydra/)([^']+/[^']+)'", said)  # not config.yaml, into which the command line is read
    where = f"{place[1]}.yaml: " if place else ""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if (removed := REMOVED.get((group, name))) is not None:
            return where + removed
        ours = options(group) if group in GROUPS else ()
        if choices := dict.fromkeys([*(error.options or ()), *ours]):
            return where + describe_choice(group, name, choices)
    elif found := re.search(r"(?:Could not override '|Multiple values for )([\w/]+).*(?:No match|To override)", said):
        group = found[1]
    else:
        return None
    name = group.removeprefix("experiment/")  # a file's group is relative to its own unless it has a slash
    near = find_nearest(name, CHOSEN_BY_YAML)
    groups = "" if near else f"; the groups are {', '.join(CHOSEN_BY_YAML)}"
    return f"{where}`defaults` cannot choose {group} like this; write `override /{[*near, 'GROUP'][0]}: …`{groups}"


def _describe_value(error: BaseException, schema: type) -> str:
    """The message for an unknown key or a value of the wrong type."""
    inner = [one for one in causes(error) if isinstance(one, OmegaConfBaseException)]
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


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and the chain of exceptions that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
