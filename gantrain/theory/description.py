"""Objectives and divergences in words, as a run and `gantrain divergences` print them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from gantrain.console import format_number
from gantrain.errors import ConfigError
from gantrain.objectives.divergence import Divergence, format_formula
from gantrain.objectives.heads import get_head
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Game
from gantrain.objectives.weighting import DEFAULT_SPREAD
from gantrain.regularizers.regularizers import Regularizer
from gantrain.schedules import Ramp
from gantrain.theory import properties
from gantrain.theory.properties import effective_names, fixed_point

LOSSES = {"fake": "fake(r)", "real": "real(r)", "f": "f(e^r)"}


def describe_objective(objective: Game) -> list[str]:
    """Return lines that say what D maximises, what G minimises and which divergence G follows.

    The last line is a warning if the objective drives samples away from p = q.
    """
    lines = objective.describe_discriminator()
    if (gen_div := objective.gen_div) is None:
        return lines
    part, sign = GENERATOR_OBJECTIVES[objective.gen_objective]
    loss = f"{'−' if sign < 0 else ''}{LOSSES[part]}"
    lines.append(f"G minimises E_q[{loss}] of {gen_div.name}, f(u) = {format_formula(gen_div.formula)}")
    if objective.gives_ratio == "no":
        return [*lines, f"r is not recovered: {objective.missing_ratio}, and D's output is T itself"]
    if objective.weighting.is_on:
        lines += _describe_weights(gen_div, objective.weighting.spread)
    else:
        lines += _describe_generator_step(gen_div, objective.gen_objective)
    spread = objective.weighting.spread or math.inf
    if objective.has_weights and gen_div.weight_exponents[0] < 0 and spread > DEFAULT_SPREAD:
        lines.append(
            f"Warning: under {gen_div.name} the samples that are farthest from the data have the largest weights, and "
            f"training often misses modes; choose gen_weights.spread={DEFAULT_SPREAD}, the default, or "
            "gen_div=reverse_kl, which weighs all samples alike"
        )
    return lines


def describe_regularizers(regularizers: Sequence[Regularizer]) -> str:
    """Return a line on the regularizers with their first values and those that are no defaults; empty without any."""
    named = []
    for one in regularizers:
        first, *others = dataclasses.fields(one)
        shown = [first, *(item for item in others if getattr(one, item.name) != item.default)]
        values = ", ".join(f"{item.name} {format_value(getattr(one, item.name))}" for item in shown)
        named.append(f"{one.name} ({values})")
    return f"Regularizer{'s' if len(named) > 1 else ''} of D: {', '.join(named)}" if named else ""


def format_value(value: object) -> str:
    """Return the value of a regularizer as it is typed, or both ends of a ramp."""
    if isinstance(value, Ramp):
        return f"{value.start:g} → {value.end:g}"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _describe_weights(gen_div: Divergence, spread: float | None) -> list[str]:
    name = gen_div.name
    if gen_div.has_equal_weights:
        return [
            f"Each step of G follows the gradient of {name}, under which all samples have the same weight: gen_weights "
            "changes nothing"
        ]
    if spread is None:
        return [f"The weights of samples under {name} are divided by their mean over the batch: the same direction"]
    lines = [
        f"The weights w(r) of samples under {name} become w(βr), divided by their mean over the batch, with "
        f"β = min(1, {spread:g}/sd(r))",
        f"Each step of G follows the gradient of an f-divergence between reverse_kl (β → 0) and {name} (β = 1); "
        f"reports show β, and gen_weights.normalise=false leaves {name} as it is",
    ]
    if gen_div.weight_exponents == (1.0, 0.0):  # those of JS: the one exception in docs/results/weights.md
        lines.append(f"With convolutions on MNIST, {name} learned as well or faster with gen_weights.normalise=false")
    return lines


def _describe_generator_step(gen_div: Divergence, gen_objective: str) -> list[str]:
    turn = fixed_point(gen_div, gen_objective)
    if math.isinf(turn):
        names = effective_names(gen_div, gen_objective)
        name = gen_div.name if gen_div.name in names else next(iter(names), "a divergence without a name of its own")
        return [f"Each step of G follows the gradient of {name}"]
    u = f"{math.exp(turn):.3g}"
    lines = [
        f"Each step of G pulls samples to u = p/q = {u}, which is no divergence's gradient: "
        f"the effective f is convex only for u < {u}"
    ]
    if turn <= 0:
        at = "is not a stable equilibrium" if turn == 0 else "is unstable"
        advice = "take another gen_div"
        if gen_div.invertible:  # otherwise the gradient under `matched` is zero
            advice = f"gen_objective=matched follows {gen_div.name} itself"
        lines.append(f"Warning: with this objective p = q {at}, and training often collapses; {advice}")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# A divergence


def describe_divergence(divergence: Divergence) -> Iterator[str]:
    """Yield sentences on a divergence's size, what it charges for, its symmetry and other names."""
    invented, missed = map(format_number, properties.costs(divergence))
    largest, at_one = properties.supremum(divergence), divergence.f_at_one
    top = f"at most {format_number(largest)}" if math.isfinite(largest) else "without a bound"
    subtracted = f" {'−' if at_one > 0 else '+'} {format_number(abs(at_one))}" if at_one else ""
    yield f"D_f(p‖q) = E_q[f(u)]{subtracted} is 0 at p = q and {top} where p and q do not overlap."
    yield (
        f"A unit of q's mass where p has none costs {invented}, a unit of p's mass that q misses {missed}: "
        f"{properties.mode_behaviour(divergence)}."
    )
    if properties.is_symmetric(divergence):
        yield "It is symmetric: p and q may be exchanged."
    else:
        yield f"It is not symmetric: with p and q exchanged it is {properties.dual_name(divergence)}."
    if others := properties.equivalent_names(divergence):
        names = " and ".join(format_multiple(*other) for other in others.items())
        yield f"Up to a constant and a multiple of u − 1 it is {names}."


def describe_discriminator(divergence: Divergence) -> str:
    """Return a sentence on what a discriminator trained on the divergence maximises and what it reveals."""
    try:
        head = get_head("log_ratio", divergence)
    except ConfigError as error:
        return str(error)
    ranges = [f"{name}(r) in {format_range(divergence, name)}" for name in ("real", "fake")]
    bound = f"D maximises E_p[real(r)] − E_q[fake(r)] ≤ D_f, with {' and '.join(ranges)}."
    if head.has_log_ratio:
        return f"{bound} Its output is r, so that any gen_div may train G."
    return f"{bound} It gives no ratio, so that only gen_div={divergence.name} can train G."


def describe_warnings(divergence: Divergence) -> Iterator[str]:
    """Yield warnings of generator objectives that cannot train on the divergence or drive samples away from p = q."""
    for objective in GENERATOR_OBJECTIVES:
        lowest = fixed_point(divergence, objective)
        if reason := properties.training_error(divergence, objective):
            yield f"{objective} cannot train: {reason}"
        elif lowest < math.inf:
            yield (
                f"{'Warning: ' if lowest <= 0 else ''}{objective} pulls every sample to u = {format_ratio(lowest)} "
                f"(r = {format_number(lowest)}), where its loss is lowest; those with larger u move away from the data."
            )
            if lowest < 0:
                yield f"f_eff is concave at u = 1, so that {objective} moves samples away from p = q."
            elif lowest == 0:
                yield f"f_eff turns concave at u = 1, so that p = q is no minimum of what {objective} follows."


def format_range(divergence: Divergence, name: str) -> str:
    """Return the range of values of `real` or `fake`."""
    return " … ".join(map(format_number, properties.value_range(getattr(divergence, name))))


def format_ratio(r: float) -> str:
    """Return u = e^r as text."""
    return format_number(math.exp(r) if r < 700 else math.inf)


def format_multiple(name: str, factor: float) -> str:
    """Return `name`, or `factor name` if the factor is not 1."""
    return name if factor == 1 else f"{format_number(factor)} {name}"
