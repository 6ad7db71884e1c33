"""Parts of a config that cannot be combined, and those whose combination changes what a number means.

Parts declare what they need and what they do; nothing here knows a regularizer or an objective by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gantrain.config.schema import Config
from gantrain.console import format_number
from gantrain.errors import ConfigError
from gantrain.networks.tables import BATCH_OPS, OPS, Row, Tables
from gantrain.objectives.objective import Game
from gantrain.regularizers.regularizer import Regularizer, overrides
from gantrain.schedules import is_zero

# gen_objective → the divergence under which it is −log D, the non-saturating loss of Goodfellow et al. 2014.
PRACTICAL_LOSSES = {"matched": "softened_reverse_kl", "ratio": "non_saturating", "alternative": "gan"}


def check_combinations(game: Game, regularizers: Sequence[Regularizer], tables: Tables, config: Config) -> None:
    """Raise ConfigError for parts that cannot be combined, with the reason and what to choose instead."""
    for one in regularizers:
        check_game(game, one, config.update)
        check_discriminator(one, tables)
    check_smoothing(regularizers)
    if find_row(tables.discriminator, norm="spectral") and find_row(tables.discriminator, norm="batch"):
        raise ConfigError(
            "the discriminator has norm: spectral and norm: batch: batch norm multiplies by scales that spectral norm "
            "does not bound; choose one of them for all rows"
        )
    if row := find_row(tables.generator, ops=BATCH_OPS):
        raise ConfigError(f"op: {row.op} is for the discriminator: a sample has to depend on its own latents alone")
    for row in tables.discriminator:
        if row.op in BATCH_OPS:
            check_batch_row(row, game, config)


def check_game(game: Game, one: Regularizer, update: str) -> None:
    """Raise ConfigError if a game does not have what a regularizer needs."""
    if one.needs_ratio and game.gives_ratio != "yes":
        raise ConfigError(
            f"regularizer={one.name} needs the log-ratio, which D does not give in this game; leave it out, or choose "
            "an objective with a ratio"
        )
    # A loss of G that needs data compares outputs with each other.
    if one.needs_level and (game.gives_ratio == "up to a constant" or game.needs_real):
        raise ConfigError(
            f"regularizer={one.name} needs the level of D's output, which is free in this game: its loss compares "
            "outputs with each other; leave it out, or choose another objective"
        )
    if overrides(one, "penalize_features") and update == "simultaneous":
        raise ConfigError(
            f"regularizer={one.name} gives G a loss of D's features, and update=simultaneous takes G's gradient from "
            "D's output alone; choose update=alternating"
        )


def check_discriminator(one: Regularizer, tables: Tables) -> None:
    """Raise ConfigError if the networks do not have what a regularizer needs."""
    if overrides(one, "penalize_features") and tables.object is not None:
        raise ConfigError(
            f"regularizer={one.name} needs D's last hidden layer, which is known only of networks from tables, and not "
            "of architecture.object"
        )
    if one.needs_samplewise and (row := find_row(tables.discriminator, ops=BATCH_OPS)):
        raise ConfigError(
            f"regularizer={one.name} takes the gradient at single samples, and D's output for a sample depends on the "
            f"whole batch with op: {row.op}; leave out one of them"
        )
    if one.changes_scale and find_row(tables.discriminator, norm="spectral"):
        raise ConfigError(
            f"regularizer={one.name} limits weights whose size norm: spectral has cancelled already; leave out one of "
            "them"
        )


def check_typed_weights(game: Game, regularizers: Sequence[Regularizer], typed: Iterable[str]) -> None:
    """Raise ConfigError if `typed`, the overrides of a command, ask for weights of samples that change nothing.

    Not for the runs of a sweep, where the same weights go with several divergences and regularizers.
    """
    keys = " ".join(text for text in typed if text.lstrip("+").startswith("gen_weights."))
    if not keys or not game.weighting.is_on:
        return
    if one := next((one for one in regularizers if replaces_loss(one)), None):
        raise ConfigError(
            f"regularizer={one.name} takes the place of G's loss, and {keys} rescales weights in it; leave out one "
            f"of them, or add regularizer.{one.name}.adversarial=1"
        )
    if game.gen_formulas.has_equal_weights:
        raise ConfigError(
            f"all samples have the same weight under gen_div={game.gen_formulas.name}, so that {keys} changes "
            "nothing; leave it out, or choose another gen_div"
        )


def replaces_loss(one: Regularizer) -> bool:
    """Return whether a regularizer takes the place of the game's loss of G."""
    return overrides(one, "penalize_features") and is_zero(one.adversarial)


def check_smoothing(regularizers: Sequence[Regularizer]) -> None:
    """Raise ConfigError for a regularizer of the log-ratio beside one that smooths it."""
    smoothing = next((one for one in regularizers if one.smoothing), None)
    other = next((one for one in regularizers if one.needs_ratio), None)
    if smoothing and other:
        raise ConfigError(
            f"regularizer={other.name} is for D's estimate of log p/q, and with {smoothing.name} D estimates another "
            "ratio; leave out one of them"
        )


def check_batch_row(row: Row, game: Game, config: Config) -> None:
    """Raise ConfigError if the batch or G's loss does not fit a row of D that compares the samples of a batch."""
    if "group" in OPS[row.op] and config.train.batch_size % row.group:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is not a multiple of group={row.group} of op: {row.op}; "
            "change one of them"
        )
    own = [config.disc_div.name]
    if config.disc_div.name == "gan":
        own.append(PRACTICAL_LOSSES[config.gen_objective])
    if game.gives_ratio != "no" and config.gen_div.name not in own:
        raise ConfigError(
            f"gen_div={config.gen_div.name} needs the ratio of single samples, and with op: {row.op} D compares the "
            f"samples of a batch; choose gen_div={' or gen_div='.join(dict.fromkeys(own))}, or leave the row out"
        )


def find_row(rows: Sequence[Row], *, norm: str | None = None, ops: Sequence[str] = ()) -> Row | None:
    """Return the first row with a normalisation, or one of the operations `ops`."""
    return next((row for row in rows if row.norm == norm or row.op in ops), None)


# ---------------------------------------------------------------------------------------------------------------------
# Warnings


def warn_of_unusual_loss(config: Config) -> str | None:
    """Return a sentence if G's loss is not the usual non-saturating one, although its name suggests so; else None."""
    usual, name = PRACTICAL_LOSSES[config.gen_objective], config.gen_div.name
    if name == usual or name not in (PRACTICAL_LOSSES["matched"], PRACTICAL_LOSSES["ratio"]):
        return None
    return f"This is not the usual non-saturating loss −log D, which here is gen_div={usual}"


def warn_of_combinations(
    game: Game, regularizers: Sequence[Regularizer], tables: Tables, arguments: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a sentence for each combination that changes what numbers mean, or that is known to train badly.

    `arguments` are those of D's optimizer, defaults included.
    """
    rows = tables.discriminator
    is_limited = any(one.limits_loss for one in regularizers) or find_row(rows, norm="spectral") is not None
    if game.is_unbounded and not is_limited:
        yield (
            f"Warning: D's loss has no minimum with critic={game.critic_name} unless D's slope is limited, and no "
            "regularizer that limits it is chosen; add regularizer=gradient_penalty, unless the architecture does"
        )
    if row := find_row(rows, ops=BATCH_OPS):
        yield (
            f"With op: {row.op} D compares the samples of a batch: its output is no log-ratio of single samples, and "
            "bounds and estimates are not those of divergences between p and q"
        )
    for one in regularizers:
        yield from warn_of_regularizer(game, one, rows, arguments)
    if game.gives_ratio == "yes" and find_row(rows, norm="spectral"):
        yield (
            "norm: spectral bounds D's slope, so that it underestimates large log-ratios: bounds stay valid, and "
            "ratio/calibration_q below 1 is expected"
        )


def warn_of_regularizer(
    game: Game, one: Regularizer, rows: Sequence[Row], arguments: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the sentences of `warn_of_combinations` on one regularizer and a discriminator of `rows`."""
    if one.needs_samplewise and find_row(rows, norm="batch"):
        yield (
            f"regularizer={one.name} takes the gradient at single samples, which batch norm in D mixes; choose an "
            "architecture whose discriminator has none"
        )
    if one.needs_level and not one.needs_ratio and game.gives_ratio == "yes":
        yield f"regularizer={one.name} pulls D's outputs together: the log-ratio is biased towards 0"
    if one.bounds_slope and game.gives_ratio != "no":
        yield (
            f"regularizer={one.name} prescribes D's slope, which is not that of the log-ratio: bounds stay valid "
            "and get looser; ratio/calibration_q below 1 is expected"
        )
    if one.asked_slope > 1 and find_row(rows, norm="spectral"):
        yield (
            f"regularizer={one.name} asks for a slope of {format_number(one.asked_slope)}, and norm: spectral holds "
            "D's slope at about 1; leave out one of them"
        )
    if game.is_unbounded and one.limits_loss and one.needs_samplewise and not one.bounds_slope:
        yield (
            f"regularizer={one.name} pulls D's slope towards 0 in place of limiting it: estimate/wasserstein is no "
            "distance, and its size depends on the weight"
        )
    if one.smoothing:
        yield (
            f"regularizer={one.name} lets D estimate log((1 − s)p / (q + s p)), s = {format_number(one.smoothing)}, "
            "which G's loss is of; reports take the smoothing out of it"
        )
    if replaces_loss(one):
        yield (
            f"regularizer={one.name} takes the place of G's loss: gen_div, gen_objective and gen_weights have no "
            f"part in training; regularizer.{one.name}.adversarial=1 adds theirs"
        )
    if one.changes_scale and has_momentum(arguments):
        yield (
            f"regularizer={one.name} and momentum train badly together (Arjovsky et al. 2017); choose optimizer=rmsprop"
        )


def has_momentum(arguments: Mapping[str, Any]) -> bool:
    """Return whether an optimizer with these arguments averages gradients."""
    return bool(arguments.get("momentum")) or bool((arguments.get("betas") or [0])[0])
