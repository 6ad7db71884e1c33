"""A game in words and formulas, for the first lines of a run: what D maximises, what G minimises, where they part."""

from __future__ import annotations

import math

from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.theory import properties
from gantrain.theory.properties import readable

LOSSES = {"fake": "fake(r)", "real": "real(r)", "f": "f(e^r)"}


def explained(game: Objective) -> list[str]:
    """A few lines of text; the last one is a warning where the objective drives samples away from p = q."""
    part, sign = GENERATOR_OBJECTIVES[game.gen_objective]
    loss = f"{'−' if sign < 0 else ''}{LOSSES[part]}"
    lines = [
        f"D maximises E_p[real(r)] − E_q[fake(r)] of {game.disc_div.name}, f(u) = {readable(game.disc_div.formula)}",
        f"G minimises E_q[{loss}] of {game.gen_div.name}, f(u) = {readable(game.gen_div.formula)}",
    ]
    if not game.head.has_log_ratio:
        return [*lines, f"r is not recovered: with the {game.head.name} head, D's output is T itself"]
    return lines + (tempered(game) if game.weighting.is_on else followed(game))


def tempered(game: Objective) -> list[str]:
    """What rescaled weights make of the divergence that was asked for."""
    spread, name = game.weighting.spread, game.gen_div.name
    if spread is None:
        return [f"The weights of samples under {name} are divided by their mean over the batch: the same direction"]
    return [
        f"The weights w(r) of samples under {name} become w(βr), divided by their mean over the batch, with "
        f"β = min(1, {spread:g}/sd(r))",
        f"Each step of G follows the gradient of an f-divergence between reverse_kl (β → 0) and {name} (β = 1); "
        f"reports show β, and gen_weights.normalise=false leaves {name} as it is",
    ]


def followed(game: Objective) -> list[str]:
    """Whose gradient G's step is while the ratio stays put (THEORY: the effective divergence)."""
    turn = properties.pulls_to(game.gen_div, game.gen_objective)
    if math.isinf(turn):
        names = properties.follows(game.gen_div, game.gen_objective)
        own = game.gen_div.name if game.gen_div.name in names else next(iter(names), "")
        return [f"Each step of G follows the gradient of {own or 'a divergence without a name of its own'}"]
    u = f"{math.exp(turn):.3g}"
    warning = [
        f"Each step of G pulls samples to u = p/q = {u}, which is no divergence's gradient: "
        f"the effective f is convex only for u < {u}"
    ]
    if turn <= 0:
        at = "is no stable rest" if turn == 0 else "is repelled"
        # Where f' is a step, its gradient is zero under `matched`.
        way = (
            f"gen_objective=matched follows {game.gen_div.name} itself"
            if game.gen_div.invertible
            else "take another gen_div"
        )
        warning.append(f"Warning: with this objective p = q {at}, and training often collapses; {way}")
    return warning
