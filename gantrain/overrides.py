"""The `key=value` arguments that every command takes, in Hydra's grammar, checked before Hydra sees them."""

from __future__ import annotations

from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gantrain.config import GROUPS, OPEN_SECTIONS, Config, check_ranges, explained, keys, options, unknown_key
from gantrain.errors import ConfigError, one_of

Options = TypeVar("Options")


def parsed(overrides: list[str]) -> list[Override]:
    """Hydra's reading of the arguments. Raises ConfigError for what it cannot read."""
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"an argument does not read as key=value: {reason}") from error


def values(overrides: list[str]) -> dict[str, Any]:
    """Keys and values of arguments that set one value each. Raises ConfigError for lists of values and deletions."""
    found = {}
    for text, override in zip(overrides, parsed(overrides), strict=True):
        if override.is_sweep_override() or override.is_delete():
            raise ConfigError(f"{text}: give one value, as in {override.key_or_group}=…")
        found[override.key_or_group] = override.value()
    return found


def checked(overrides: list[str]) -> list[str]:
    """The arguments of `train` as Hydra will take them: known keys only, also where Hydra would accept `+key=`.

    A section that is open to new keys gets its `++`, and a whole number may be typed as 1e6. Raises ConfigError with
    the nearest right key or choice.
    """
    found = parsed(overrides)
    if {override.key_or_group for override in found} >= {"train.images", "train.epochs"}:
        raise ConfigError("train.images and train.epochs are two names of one length; give one of them")
    return [_checked(text, override) for text, override in zip(overrides, found, strict=True)]


def _checked(text: str, override: Override) -> str:
    key, fields = override.key_or_group, keys(Config)
    section = key.partition(".")[0]
    if section == "hydra" or section.startswith("hydra/"):
        return text
    if key in GROUPS:
        return _checked_group(text, override)
    if section in OPEN_SECTIONS and "." in key:
        return text if override.is_delete() else "++" + text.lstrip("+")
    if key not in fields:
        raise ConfigError(unknown_key(key, [*fields, *GROUPS]))
    if override.is_delete():
        raise ConfigError(f"{text}: {key} cannot be taken away; set it, as in {key}=…")
    value = override.value()
    if isinstance(value, float) and value.is_integer() and str(fields[key].type).startswith("int"):
        return f"{key}={int(value)}"
    return text.lstrip("+")


def _checked_group(text: str, override: Override) -> str:
    group, value = override.key_or_group, override.value()
    unset = override.is_delete() or value is None
    if unset and group == "experiment":
        return "experiment=null"
    if not override.is_sweep_override() and not isinstance(value, str):
        raise ConfigError(one_of(group, "" if unset else value, options(group)))
    return text.lstrip("+")


def read(schema: type[Options], arguments: list[str]) -> Options:
    """The arguments as an instance of `schema`, every key, type and range checked. Raises ConfigError."""
    typed = OmegaConf.structured(schema)
    for key, value in values(arguments).items():
        if key not in typed:
            raise ConfigError(unknown_key(key, keys(schema)))
        try:
            OmegaConf.update(typed, key, value)
        except OmegaConfBaseException as error:
            raise explained(error) from error
    read = OmegaConf.to_object(typed)
    assert isinstance(read, schema)
    check_ranges(schema, vars(read))
    return read


def quoted(value: object) -> str:
    """A value as Hydra's grammar takes it whatever it contains."""
    return QuotedString(str(value), Quote.single).with_quotes()
