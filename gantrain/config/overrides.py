"""The `key=value` arguments that every command takes, in Hydra's grammar: each is parsed once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass
from typing import Any, TypeVar

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gantrain.config.groups import GROUPS, LISTED_GROUPS, options
from gantrain.config.messages import config_error, unknown_key
from gantrain.config.schema import OPEN_KEYS, OPEN_SECTIONS, REMOVED, Config, check_values, create_node, keys
from gantrain.errors import ConfigError, describe_choice

Options = TypeVar("Options")

# The keys of `train`, and some of those of its open sections.
KNOWN = tuple(dict.fromkeys([*keys(Config), *GROUPS, *OPEN_KEYS]))
HYDRA = {f"hydra.{item.name}" for item in dataclasses.fields(HydraConf)}
# Names that do not determine the other settings of their section.
NAMES = ("dataset.name", "architecture.name")
PLAIN = re.compile(r"(?!.*\$\{)[^\s,'\"]([^'\"\n]*[^\s,'\"])?")  # neither quotes nor interpolations


@dataclass(frozen=True)
class Argument:
    """One `key=value` argument: its text, as Hydra takes it, and what Hydra's parser made of it."""

    text: str
    override: Override

    @property
    def key(self) -> str:
        """The key or the group that it sets."""
        return self.override.key_or_group

    @property
    def is_sweep(self) -> bool:
        """Whether it lists several values."""
        return self.override.is_sweep_override()


# ---------------------------------------------------------------------------------------------------------------------
# Parsing


def parse(
    texts: Iterable[str], known: Iterable[str] = (), fields: Mapping[str, Field[Any]] | None = None
) -> list[Argument]:
    """Parse arguments; a path or name that Hydra's grammar cannot read, such as ~/a[1], is quoted if `fields` says that
    the key holds text. Raises ConfigError for one that is no key=value; `known` are the keys that there are."""
    parser, known = OverridesParser.create(), tuple(known)
    return [_parse(parser, text, known, fields or {}) for text in texts]


def _parse(parser: OverridesParser, text: str, known: Sequence[str], fields: Mapping[str, Field[Any]]) -> Argument:
    try:
        return Argument(text, parser.parse_overrides([text])[0])
    except HydraException as error:
        key, _, value = text.partition("=")
        if key in fields and str(fields[key].type).startswith("str") and PLAIN.fullmatch(value):
            quoted = f"{key}={quote(value)}"
            return Argument(quoted, parser.parse_overrides([quoted])[0])
        raise ConfigError(syntax_error(text, known)) from error


def parse_into(schema: type[Options], texts: Iterable[str]) -> Options:
    """Parse arguments into an instance of `schema`, with every key, type and range checked. Raises ConfigError."""
    node, fields = create_node(schema), keys(schema)
    for key, value in single_values(parse(texts, fields, fields)).items():
        if key not in fields:
            raise ConfigError(unknown_key(key, fields))
        try:
            OmegaConf.update(node, key, value)
        except OmegaConfBaseException as error:
            raise config_error(error, schema) from error
    values = OmegaConf.to_object(node)
    assert isinstance(values, schema)
    check_values(values)
    return values


def parse_train(texts: Iterable[str]) -> list[Argument]:
    """Parse the arguments of `train`: known keys only, also where Hydra would accept `+key=`.

    A key of an open section gets a `++`, and a whole number may be written as 1e6. Raises ConfigError with the nearest
    key or choice.
    """
    arguments = parse(texts, KNOWN, keys(Config))
    if {argument.key for argument in arguments} >= {"train.images", "train.epochs"}:
        raise ConfigError("train.images and train.epochs are two names of one length; give one of them")
    return [Argument(_check(argument), argument.override) for argument in arguments]


def single_values(arguments: Iterable[Argument]) -> dict[str, Any]:
    """Return keys and values of arguments that set one value each. Raises ConfigError for lists and deletions."""
    values = {}
    for argument in arguments:
        if argument.is_sweep or argument.override.is_delete():
            raise ConfigError(f"{argument.text}: give one value, as in {argument.key}=…")
        values[argument.key] = argument.override.value()
    return values


def split_sweep(arguments: Iterable[Argument]) -> tuple[list[Argument], list[Argument]]:
    """Return the arguments that set one value, and those that list several."""
    arguments = list(arguments)
    return [one for one in arguments if not one.is_sweep], [one for one in arguments if one.is_sweep]


def check_no_sweep(arguments: Iterable[Argument]) -> None:
    """Raise ConfigError for several values where there is one job."""
    for argument in arguments:
        if argument.is_sweep:
            raise ConfigError(
                f"{argument.text.lstrip('+')} lists several values, which makes a sweep: add -m to run one job for "
                "each; write one list as [a,b], and quote one text that has a comma"
            )


def quote(value: object) -> str:
    """Return a value as Hydra's grammar takes it whatever characters it has."""
    return QuotedString(str(value), Quote.single).with_quotes()


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def syntax_error(text: str, known: Sequence[str]) -> str:
    """Return the message for an argument that is no key=value."""
    if hint := flag_hint(text, known):
        return hint
    if text.startswith("-"):
        return f"there is no flag {text}; --help lists the flags"
    key, equals, value = text.partition("=")
    if not equals and text in known:
        return f"{text} needs a value: write {text}=…, without spaces around ="
    if not equals or not value:
        keys = f"; the keys are {', '.join(known)}" if len(known) < 10 else ""
        return f"{text or 'an empty argument'} is no key=value, as every argument here has to be{keys}"
    if value.startswith("glob(") and value.endswith(")"):
        return f"{text}: a pattern with brackets has to be quoted, as in \"{key}=glob('{value[5:-1]}')\""
    return (
        f"{text}: the value has characters that mean something here, such as brackets, commas, quotes or =; "
        f'quote it twice, for the shell and for the value:\n  "{key}={quote(value)}"'
    )


def flag_hint(text: str, known: Iterable[str]) -> str:
    """Return the message for a key written as a flag, such as `--seed=0`, or nothing if `text` is no such argument."""
    key, _, value = text.lstrip("-").partition("=")
    return f"{text}: keys have no dashes; write {key}={value or '…'}" if text[:1] == "-" and key in known else ""


def _check(argument: Argument) -> str:
    """Return the text of an argument of `train` as Hydra is to take it. Raises ConfigError."""
    key, text, override, fields = argument.key, argument.text, argument.override, keys(Config)
    section = key.partition(".")[0]
    if (key, str(override.value())) in REMOVED:
        raise ConfigError(REMOVED[key, str(override.value())])
    if section == "hydra" or section.startswith("hydra/"):
        if section == "hydra" and ".".join(key.split(".")[:2]) not in HYDRA:  # with a +, Hydra would take any
            raise ConfigError(unknown_key(key, ()))
        return text
    if key in GROUPS:
        return _check_group(argument)
    if key in NAMES and override.value() is not None:
        group = key.removesuffix(".name")
        raise ConfigError(f"{text} would keep the other settings of another {group}; choose it whole: {group}=…")
    if section in OPEN_SECTIONS and "." in key:
        return text if override.is_delete() else "++" + text.lstrip("+")
    if key not in fields:
        raise ConfigError(unknown_key(key or text, KNOWN))
    if override.is_delete():
        raise ConfigError(f"{text}: {key} cannot be taken away; set it, as in {key}=…")
    value = override.value()
    if str(fields[key].type).startswith("bool") and isinstance(value, int) and value not in (0, 1):
        raise ConfigError(f"{text} must be true or false")
    if isinstance(value, float) and value.is_integer() and str(fields[key].type).startswith("int"):
        return f"{key}={int(value)}"
    return text.lstrip("+")


def _check_group(argument: Argument) -> str:
    """Return the text of a choice of a group. Raises ConfigError."""
    group, override, value = argument.key, argument.override, argument.override.value()
    if group == "experiment" and (override.is_delete() or value is None):
        return "experiment=[]"
    if override.is_delete():
        raise ConfigError(f"{argument.text}: {group} cannot be taken away; choose another one, as in {group}=…")
    listed = override.is_discrete_sweep() and not isinstance(value, Glob)
    for choice in override.sweep_iterator() if listed else [] if argument.is_sweep else [value]:
        for name in choice if group in LISTED_GROUPS and isinstance(choice, list) else [choice]:
            if not isinstance(name, str | QuotedString):
                raise ConfigError(describe_choice(group, "null" if name is None else name, options(group)))
    return argument.text.lstrip("+")
