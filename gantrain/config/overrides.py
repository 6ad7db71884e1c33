"""The `key=value` arguments that every command takes, in Hydra's grammar, checked before Hydra sees them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from typing import Any, TypeVar

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gantrain.config.checks import GROUPS, explained, options, unknown_key
from gantrain.config.schema import OPEN_KEYS, OPEN_SECTIONS, Config, check_ranges, keys
from gantrain.errors import ConfigError, one_of

Options = TypeVar("Options")

# The keys of `train`, and some of the sections that are open to others.
KNOWN = tuple(dict.fromkeys([*keys(Config), *GROUPS, *OPEN_KEYS]))
HYDRA = {f"hydra.{item.name}" for item in dataclasses.fields(HydraConf)}
# Of parts of which the name alone is not the whole.
NAMES = ("dataset.name", "architecture.name")
TYPOGRAPHIC_DASHES = ("\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2015", "\u2212")
TYPOGRAPHIC_QUOTES = ("\u2018", "\u2019", "\u201c", "\u201d", "\u201e", "\u00ab", "\u00bb")
THOUSANDS = re.compile(r"[1-9]\d{0,2}(,000)+")
PLAIN = re.compile(r"(?!.*\$\{)[^\s,'\"]([^'\"\n]*[^\s,'\"])?")  # neither quotes nor interpolations
BRACKETS = {"[": "]", "{": "}", "(": ")"}


def parsed(overrides: list[str], known: Iterable[str] = ()) -> list[Override]:
    """Hydra's reading of the arguments. Raises ConfigError for one that does not read as key=value, with what was
    probably meant; `known` are the keys that there are."""
    parser = OverridesParser.create()
    found = []
    for before, text, after in zip(["", *overrides], overrides, [*overrides[1:], ""], strict=False):
        try:
            found += parser.parse_overrides([text])
        except HydraException as error:
            raise ConfigError(misread(text, before, after, tuple(known))) from error
    return found


def spelled(overrides: Iterable[str], fields: Mapping[str, Field[Any]]) -> list[str]:
    """The arguments; a path or a name with characters that mean something to Hydra, such as ~/a[1], is quoted."""
    return [_spelled(text, fields) for text in overrides]


def _spelled(text: str, fields: Mapping[str, Field[Any]]) -> str:
    key, _, value = text.partition("=")
    if key not in fields or not str(fields[key].type).startswith("str") or not PLAIN.fullmatch(value):
        return text
    try:
        OverridesParser.create().parse_overrides([text])
    except HydraException:
        return f"{key}={quoted(value)}"
    return text


def misread(text: str, before: str, after: str, known: Sequence[str]) -> str:
    """Why an argument does not read as key=value, and what was probably meant; its neighbours may tell."""
    key, equals, value = text.partition("=")
    if text.startswith(TYPOGRAPHIC_DASHES):
        flag = text.lstrip("".join(TYPOGRAPHIC_DASHES))
        return f"{text} begins with a dash that is no hyphen; type {'-' if len(flag) == 1 else '--'}{flag}"
    if text.startswith("-"):
        return dashed(text, known) or f"there is no flag {text}; --help lists the flags"
    if any(quote in text for quote in TYPOGRAPHIC_QUOTES):
        return f"{text} has typographic quotes; type ' or \" in their place"
    if not equals:
        return _without_equals(text, before, after, known)
    if key != key.strip():
        return f"{text}: write {key.strip()}={value.strip()}, without spaces"
    if value.startswith("="):
        return f"{text}: one = is enough, as in {key}={value.lstrip('=')}"
    if value.endswith(",") or value.startswith(","):
        more = after if after and "=" not in after else "…"
        return f"{text}: values are listed without spaces and a last comma, as in {key}={value.strip(',')},{more}"
    if value.count('"') % 2 or value.count("'") % 2:
        return f"{text}: a quote is opened and not closed"
    if value[:1] == "(" and value[-1:] == ")":
        return f"{text}: a list is written in square brackets, as in {key}=[{value[1:-1]}]"
    for opening, closing in BRACKETS.items():
        if value.count(opening) != value.count(closing):
            return f"{text}: every {opening} needs a {closing}"
    if value.startswith("glob("):
        return f"{text}: a pattern with characters that mean something here is quoted inside, as in {key}=glob('[jk]*')"
    return (
        f"{text}: the value has characters that mean something here, such as brackets, commas or =; "
        f'quote it twice, for the shell and for the value:\n  "{key}={quoted(value)}"'
    )


def _without_equals(text: str, before: str, after: str, known: Sequence[str]) -> str:
    if before.endswith("="):
        return f"{before} {text}: write {before}{text}, without spaces around ="
    key, colon, value = text.partition(":")
    if colon and key in known:
        return f"{text}: write {key}={value.strip()}, with = in place of the colon"
    if text in known:
        return f"{text} needs a value: write {text}={after.strip('=') or '…'}, without spaces around ="
    groups = [group for group in GROUPS if group in known and text in options(group)]
    if groups:
        return f"{text} is no key=value; did you mean {' or '.join(f'{group}={text}' for group in groups)}?"
    keys = f"; the keys are {', '.join(known)}" if len(known) < 10 else ""
    return f"{text or 'an empty argument'} is no key=value, as every argument here has to be{keys}"


def dashed(text: str, known: Iterable[str]) -> str:
    """The sentence that refuses a key written like a flag, `--seed=0`; nothing where it is none."""
    key, _, value = text.lstrip("-").partition("=")
    return f"{text}: keys have no dashes; write {key}={value or '…'}" if text[:1] == "-" and key in known else ""


def values(overrides: list[str], known: Iterable[str] = ()) -> dict[str, Any]:
    """Keys and values of arguments that set one value each. Raises ConfigError for lists of values and deletions."""
    found = {}
    for text, override in zip(overrides, parsed(overrides, known), strict=True):
        if override.is_sweep_override() or override.is_delete():
            raise ConfigError(f"{text}: give one value, as in {override.key_or_group}=…")
        found[override.key_or_group] = override.value()
    return found


def divided(overrides: list[str]) -> tuple[list[str], list[str]]:
    """The overrides that set one value, and those that list several. Raises ConfigError."""
    listed = [text for text, override in zip(overrides, parsed(overrides), strict=True) if override.is_sweep_override()]
    return [text for text in overrides if text not in listed], listed


def refuse_listed(listed: list[str]) -> None:
    """Raises ConfigError for several values where there is one job."""
    for text in listed:
        raise ConfigError(
            f"{text.lstrip('+')} lists several values, which makes a sweep: add -m to run one job for each; "
            "write one list as [a,b], and quote one text that has a comma"
        )


def checked(overrides: list[str]) -> list[str]:
    """The arguments of `train` as Hydra will take them: known keys only, also where Hydra would accept `+key=`.

    A section that is open to new keys gets its `++`, and a whole number may be typed as 1e6. Raises ConfigError with
    the nearest right key or choice.
    """
    overrides = spelled(overrides, keys(Config))
    found = parsed(overrides, KNOWN)
    if {override.key_or_group for override in found} >= {"train.images", "train.epochs"}:
        raise ConfigError("train.images and train.epochs are two names of one length; give one of them")
    return [_checked(text, override) for text, override in zip(overrides, found, strict=True)]


def _checked(text: str, override: Override) -> str:
    key, fields = override.key_or_group, keys(Config)
    section = key.partition(".")[0]
    if section == "hydra" or section.startswith("hydra/"):
        if section == "hydra" and ".".join(key.split(".")[:2]) not in HYDRA:  # with a +, Hydra would take any
            raise ConfigError(unknown_key(key, ()))
        return text
    if key in GROUPS:
        return _checked_group(text, override)
    if key in NAMES and override.value() is not None:
        group = key.removesuffix(".name")
        raise ConfigError(f"{text} would keep the other settings of another {group}; choose it whole: {group}=…")
    if section in OPEN_SECTIONS and "." in key:
        return text if override.is_delete() else "++" + text.lstrip("+")
    if key not in fields:
        raise ConfigError(unknown_key(key or text, KNOWN))
    if override.is_delete():
        raise ConfigError(f"{text}: {key} cannot be taken away; set it, as in {key}=…")
    if THOUSANDS.fullmatch(text.partition("=")[2]):
        number = text.partition("=")[2].replace(",", "")
        raise ConfigError(f"{text}: a comma separates values; write {key}={number}, or {int(number):_}")
    value = override.value()
    if str(fields[key].type).startswith("bool") and isinstance(value, int) and value not in (0, 1):
        raise ConfigError(f"{text} must be true or false")
    if isinstance(value, float) and value.is_integer() and str(fields[key].type).startswith("int"):
        return f"{key}={int(value)}"
    return text.lstrip("+")


def _checked_group(text: str, override: Override) -> str:
    group, value = override.key_or_group, override.value()
    if group == "experiment" and (override.is_delete() or value is None):
        return "experiment=[]"
    if override.is_delete():
        raise ConfigError(f"{text}: {group} cannot be taken away; choose another one, as in {group}=…")
    listed = override.is_discrete_sweep() and not isinstance(value, Glob)
    for choice in override.sweep_iterator() if listed else [] if override.is_sweep_override() else [value]:
        if not isinstance(choice, str | QuotedString):
            raise ConfigError(one_of(group, "null" if choice is None else choice, options(group)))
    return text.lstrip("+")


def read(schema: type[Options], arguments: list[str]) -> Options:
    """The arguments as an instance of `schema`, every key, type and range checked. Raises ConfigError."""
    typed = OmegaConf.structured(schema)
    for key, value in values(spelled(arguments, keys(schema)), keys(schema)).items():
        if key not in keys(schema):
            raise ConfigError(unknown_key(key, keys(schema)))
        try:
            OmegaConf.update(typed, key, value)
        except OmegaConfBaseException as error:
            raise explained(error, schema) from error
    read, nested = OmegaConf.to_object(typed), OmegaConf.to_container(typed)
    assert isinstance(read, schema)
    assert isinstance(nested, dict)
    check_ranges(schema, {str(key): value for key, value in nested.items()})
    return read


def quoted(value: object) -> str:
    """A value as Hydra's grammar takes it whatever it contains."""
    return QuotedString(str(value), Quote.single).with_quotes()
