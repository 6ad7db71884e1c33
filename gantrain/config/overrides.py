"""The `key=value` arguments that every command takes, in Hydra's grammar: each is parsed once."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gantrain.config.groups import GROUPS, LISTED_GROUPS, options
from gantrain.config.messages import PATH_STARTS, config_error, missing_option, unknown_flag, unknown_key
from gantrain.config.schema import OPEN_KEYS, OPEN_SECTIONS, REMOVED, Config, check_values, create_node, keys
from gantrain.errors import ConfigError, describe_choice
from gantrain.ranges import to_whole

Options = TypeVar("Options")

FIELDS = keys(Config)
# The keys of `train`, and some of those of its open sections.
KNOWN = tuple(dict.fromkeys([*FIELDS, *GROUPS, *OPEN_KEYS]))
HYDRA = {f"hydra.{item.name}" for item in dataclasses.fields(HydraConf)}
# Names whose section has other settings, which depend on the choice.
NAMES = ("dataset.name", "architecture.name", "critic.name")
PLAIN = re.compile(r"(?!.*\$\{)[^\s,'\"]([^'\"\n]*[^\s,'\"])?")  # neither quotes nor interpolations
WORDS = re.compile(r"[\w.+-]+(,[\w.+-]+)*", re.ASCII)  # one, or several
NUMBER = re.compile(r"[+-]?(\.?\d[\w.+-]*|inf|nan)|true|false", re.ASCII | re.IGNORECASE)
WORD = re.compile(r"[^,()=\s]+")  # of a value or a list of values


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


def parse(texts: Iterable[str], schema: type | None = None) -> list[Argument]:
    """Parse `key=value` arguments.

    Where the schema says that a key holds text, a path or name that Hydra's grammar cannot read, such as ~/a[1], or
    reads as a number, such as 2026_12_01, is quoted; where it says that a key holds a whole number, that may be written
    as 1e6. Raises ConfigError.
    """
    parser, texts = OverridesParser.create(), list(texts)
    refuse_flags(texts, schema)
    known = keys(schema) if schema else {}
    text_keys = [key for key, item in known.items() if item.type.startswith("str")]
    ranges = {key: item.metadata.get("accepted") for key, item in known.items()}
    whole_keys = [key for key in known if known[key].type.startswith("int") or getattr(ranges[key], "whole", False)]
    texts = [_quote_numbers(parser, _convert_whole(text, whole_keys), text_keys) for text in texts]
    return [_parse(parser, text, text_keys) for text in texts]


def _convert_whole(text: str, whole_keys: Collection[str]) -> str:
    """Return an argument that sets a whole number, or lists some, with 1000000 in place of 1e6."""
    key, _, value = text.partition("=")
    if key.lstrip("+") not in whole_keys or "$" in value:
        return text
    return f"{key}={WORD.sub(lambda word: _write_whole(word[0]), value)}"


def _write_whole(word: str) -> str:
    """Return `1000000` for `1e6`, and other words as they are."""
    if not {".", "e", "E"} & set(word):  # a float cannot hold every whole number
        return word
    try:
        number = to_whole(float(word))
    except ValueError:
        return word
    return str(number) if isinstance(number, int) else word


def _quote_numbers(parser: OverridesParser, text: str, text_keys: Collection[str]) -> str:
    """Return an argument that sets text, or lists some, with `'1_0'` in place of 1_0, which Hydra would make 10."""
    key, _, value = text.partition("=")
    if key.lstrip("+") not in text_keys or not WORDS.fullmatch(value):
        return text

    def keep(word: str) -> str:
        found = parser.parse_overrides([f"{key}={word}"])[0].value() if NUMBER.fullmatch(word) else word
        return quote(word) if isinstance(found, int | float) and str(found) != word else word

    return f"{key}={','.join(map(keep, value.split(',')))}"


def refuse_flags(arguments: Sequence[str], schema: type | None, flags: Collection[str] | None = None) -> None:
    """Raise ConfigError for the first argument that begins with a dash, or that is one of `flags`."""
    known = KNOWN if schema is Config else keys(schema) if schema else ()
    for text, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if text.startswith("-") if flags is None else text in flags:
            is_value = "=" not in following and not following.startswith("-")
            raise ConfigError(unknown_flag(text, following if is_value else "", known))


def split_source(arguments: Sequence[str], schema: type) -> tuple[str | None, list[str]]:
    """Return the one argument that is no `key=value` of `schema`, None if there is none, and the others.

    They may stand in any order, and an existing path may have the form `key=value`. Raises ConfigError for a flag.
    """
    refuse_flags(arguments, schema)
    places = [place for place, text in enumerate(arguments) if is_path(text)]
    if not places:
        return None, list(arguments)
    return arguments[places[0]], [*arguments[: places[0]], *arguments[places[0] + 1 :]]


def _parse(parser: OverridesParser, text: str, text_keys: list[str]) -> Argument:
    try:
        override = parser.parse_overrides([text])[0]
        if isinstance(swept := override.value(), RangeSweep) and not swept.step:
            raise ConfigError(f"{text} has no end, because its step is 0; give another step")
        return Argument(text, override)
    except HydraException as error:
        key, _, value = text.partition("=")
        if key in text_keys and PLAIN.fullmatch(value):
            quoted = f"{key}={quote(value)}"
            return Argument(quoted, parser.parse_overrides([quoted])[0])
        raise ConfigError(_describe_syntax_error(text)) from error


def _describe_syntax_error(text: str) -> str:
    key, _, value = text.partition("=")
    if key in GROUPS and value.startswith(PATH_STARTS):
        return missing_option(key, value, options(key))
    if not key or not value:
        return f"'{text}' is not of the form key=value, without spaces around =; --help lists the keys"
    if value.endswith(","):
        return f"{text} ends in a comma; the values of a list have no spaces between them: {key}=a,b"
    if value.startswith("glob(") and value.endswith(")"):
        quoted = shlex.quote(f"{key}=glob({quote(value[5:-1], Quote.double)})")
        return f"{text}: a pattern with brackets has to be quoted, as in {quoted}"
    return (
        f"{text}: the value has characters that Hydra's grammar reserves, such as brackets, commas, quotes or =; "
        f"quote it twice, for the shell and for Hydra:\n  {shlex.quote(f'{key}={quote(value, Quote.double)}')}"
    )


def is_path(argument: str) -> bool:
    """Return whether an argument is a path rather than `key=value`: a name with = in it is one if it exists."""
    return "=" not in argument or os.path.lexists(argument)


def parse_into(schema: type[Options], texts: Iterable[str]) -> Options:
    """Parse arguments into an instance of `schema`, with every key, type and range checked. Raises ConfigError."""
    node, fields, arguments = create_node(schema), keys(schema), parse(texts, schema)
    for argument in arguments:
        if argument.key not in fields:
            raise ConfigError(unknown_key(argument.key, fields))
    for key, value in single_values(arguments).items():
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

    A key of an open section gets a `++`. Raises ConfigError with the nearest key or choice.
    """
    arguments = parse(texts, Config)
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


def bracket_list(arguments: Iterable[str], key: str) -> list[str]:
    """Return the arguments with `key=[a,b]` in place of `key=a,b`, so that several names are one value."""
    return [re.sub(rf"^{key}=\[?(.*?)\]?$", rf"{key}=[\1]", text) for text in arguments]


def quote(value: object, mark: Quote = Quote.single) -> str:
    """Return a value as Hydra's grammar takes it whatever characters it has."""
    return QuotedString(str(value), mark).with_quotes()


# ---------------------------------------------------------------------------------------------------------------------
# Keys of `train`


def _check(argument: Argument) -> str:
    """Return the text of an argument of `train` as Hydra is to take it. Raises ConfigError."""
    key, text, override = argument.key, argument.text.lstrip("+"), argument.override
    section, value = re.split("[./]", key)[0], override.value()
    if (key, str(value)) in REMOVED:
        raise ConfigError(REMOVED[key, str(value)])
    if section == "hydra":
        if "/" not in key and ".".join(key.split(".")[:2]) not in HYDRA:  # with a +, Hydra would take any
            raise ConfigError(unknown_key(key, ()))
        return argument.text
    if key in NAMES and value is not None:
        group = key.removesuffix(".name")
        raise ConfigError(f"{text} would keep the other settings of another {group}; choose it whole: {group}=…")
    if section in OPEN_SECTIONS and "." in key:
        return text if override.is_delete() else f"++{text}"
    if key not in KNOWN:
        raise ConfigError(unknown_key(key or text, KNOWN))
    if key == "experiment" and value in (None, []):
        return "experiment=[]"  # which is Hydra's way to choose none
    if override.is_delete():
        raise ConfigError(f"{text}: {key} cannot be taken away; set it, as in {key}=…")
    if key in GROUPS:
        _check_choices(key, override)
        return text
    if FIELDS[key].type.startswith("bool") and isinstance(value, int) and value not in (0, 1):
        raise ConfigError(f"{text} must be true or false")
    return text


def _check_choices(group: str, override: Override) -> None:
    """Raise ConfigError for a choice of a group that is no name."""
    value = override.value()
    if isinstance(value, list) and len(value) > 1 and group not in LISTED_GROUPS:
        names = ",".join(map(str, value))
        raise ConfigError(f"{group} takes one name a run; a sweep lists names without brackets: -m {group}={names}")
    is_listed = override.is_discrete_sweep() and not isinstance(value, Glob)
    for choice in override.sweep_iterator() if is_listed else [value]:
        for name in choice if group in LISTED_GROUPS and isinstance(choice, list) else [choice]:
            if name is None or isinstance(name, int | float | list | dict):
                raise ConfigError(describe_choice(group, "null" if name is None else name, options(group)))
            if str(name).startswith(PATH_STARTS):
                raise ConfigError(missing_option(group, name, options(group)))
