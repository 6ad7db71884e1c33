"""`gantrain fit`: the Gaussian that fits a mixture best under each divergence, or to which a generator's loss leads."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gantrain.config import overrides
from gantrain.config.schema import choice, number
from gantrain.console import format_number, say
from gantrain.data.mixtures import Mixture, gaussian
from gantrain.errors import ConfigError
from gantrain.files import convert_write_errors, expand_home, write_json
from gantrain.objectives import divergences
from gantrain.objectives.divergence import Divergence
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import gaussian_fit, plots, properties
from gantrain.theory.quadrature import Loss, integrate_divergence

OUTCOME_LINES = "\n".join(f"  {name:10} {meaning}" for name, meaning in gaussian_fit.OUTCOMES.items())

HELP = f"""Fit one Gaussian to a mixture on the line under each divergence (Poole et al. 2016, figure 1), by quadrature.

  gantrain fit [weights=[…]] [means=[…]] [stds=[…]] [gen_div=NAME,…] [target=divergence] [out=fit]

Examples
  gantrain fit                                        .6 N(−1.5, .6²) + .4 N(2, .8²), all divergences
  gantrain fit weights=[.6,.4] means=[-1.5,2] stds=[.6,.8] gen_div=kl,reverse_kl out=DIR
  gantrain fit target=effective gen_objective=ratio   where gradient descent on a loss of the generator ends
  gantrain fit target=effective gen_div=reverse_kl start=[-1,.5]

target=divergence gives the global minimum, target=effective the end of the path of x = μ + σz along the loss of
gen_objective ({", ".join(GENERATOR_OBJECTIVES)}), with the exact ratio held fixed in each step, from start=[μ,σ];
affine=c adds c·(u − 1) to f there. Such a path ends in one of these ways:
{OUTCOME_LINES}

A divergence's value is D_f − f(1): 0 where the Gaussian is the data. The mass near a mode is the Gaussian's within two
standard deviations of a component's mean. Everything is also written to fit.json, in full precision, and fit.png.
Divergences: {", ".join([*divergences.CATALOGUE, *divergences.PATTERNS])}"""

EFFECTIVE_ONLY = ("gen_objective", "start", "affine")
NEAR = 2.0  # standard deviations
NUMBER_WIDTH = 10


@dataclass
class Options:
    """The keys of `gantrain fit`."""

    weights: list[float] = field(default_factory=lambda: [0.6, 0.4])
    means: list[float] = field(default_factory=lambda: [-1.5, 2.0])
    stds: list[float] = field(default_factory=lambda: [0.6, 0.8])
    gen_div: list[str] | None = None
    target: str = choice("divergence", ("divergence", "effective"))
    gen_objective: str = choice("matched", GENERATOR_OBJECTIVES)
    start: list[float] = field(default_factory=lambda: [0.0, 1.0])
    affine: float = number(0.0)
    out: str = "fit"


@dataclass
class Row:
    """The Gaussian that one divergence led to.

    `outcome` is how its path ended, with target=effective; `slope` that of a divergence which is not flat there, and so
    not at its minimum.
    """

    divergence: str
    mu: float
    sigma: float
    value: float
    mode_masses: list[float]
    outcome: str | None = None
    slope: float | None = None


def run(arguments: list[str]) -> None:
    """Fit, print the table, write fit.json and fit.png. Raises GantrainError."""
    arguments = overrides.bracket_list(arguments, "gen_div")
    options = overrides.parse_into(Options, arguments)
    p = gaussian_fit.build_mixture(options.weights, options.means, options.stds)
    chosen = choose_divergences(options)
    if options.target == "effective":
        gaussian_fit.check_start(p, options.start)
    elif idle := [key for key in EFFECTIVE_ONLY if getattr(options, key) != getattr(Options(), key)]:
        raise ConfigError(f"{idle[0]} changes a path and not a divergence's minimum; add target=effective")
    out = expand_home(options.out)
    with convert_write_errors(f"out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        rows = print_fits(chosen, p, options)
        write_json(out / "fit.json", [{k: v for k, v in asdict(row).items() if v is not None} for row in rows])
        draw_fits(rows, p, options, out)
    for row in rows:
        if row.slope is not None:
            say(f"{row.divergence}: no minimum was found; log(1 + D_f) has the slope {row.slope:.2g} at this Gaussian")
    say(f"fit.json and fit.png in {out}")


def choose_divergences(options: Options) -> list[Divergence]:
    """Return the divergences named, else those of the catalogue that the objective can train. Raises ConfigError."""
    objective = options.gen_objective if options.target == "effective" else "ratio"  # which trains all
    if options.gen_div is None:
        chosen = [each for each in CATALOGUE.values() if not properties.training_error(each, objective)]
    else:
        chosen = [divergences.get(name, "gen_div") for name in dict.fromkeys(options.gen_div)]
    if not chosen:
        raise ConfigError("gen_div names no divergence; leave it out for all of them")
    if reason := next(filter(None, (properties.training_error(each, objective) for each in chosen)), ""):
        raise ConfigError(reason)
    return [divergence.shifted(options.affine) for divergence in chosen]


# ---------------------------------------------------------------------------------------------------------------------
# Results


def fit_divergence(divergence: Divergence, p: Mixture, options: Options) -> Row:
    """Return the Gaussian that fits p best under one divergence, or to which its loss leads."""
    outcome = slope = None
    if options.target == "effective":
        loss = Loss(divergence, *GENERATOR_OBJECTIVES[options.gen_objective])
        outcome, mean, std = gaussian_fit.follow_loss(loss, p, (options.start[0], options.start[1]))
        value = integrate_divergence(divergence, p, gaussian(mean, std))
    else:
        fit = gaussian_fit.fit_gaussian(divergence, p)
        mean, std, value = fit
        steepest = gaussian_fit.largest_slope(divergence, p, fit)
        slope = steepest if steepest > gaussian_fit.FLAT else None
    return Row(divergence.name, mean, std, value, mode_masses(gaussian(mean, std), p), outcome, slope)


def mode_masses(q: Mixture, p: Mixture) -> list[float]:
    """Return the mass of q within two standard deviations of each component's mean."""
    return [q.mass(mean - NEAR * std, mean + NEAR * std) for mean, std in zip(p.line_means, p.stds, strict=True)]


def draw_fits(rows: list[Row], p: Mixture, options: Options, out: Path) -> None:
    """Write fit.png, without the Gaussians that are still on their way."""
    curves = [
        plots.Curve(row.divergence, row.mu, row.sigma, collapsed=row.outcome == "collapses")
        for row in rows
        if row.outcome in (None, "rests", "unstable", "collapses") and math.isfinite(row.mu)
    ]
    title = "the best Gaussian under each divergence"
    if options.target == "effective":
        start = gaussian_fit.format_list(options.start)
        title = f"where gen_objective={options.gen_objective} leads from start={start}"
    plots.save_fits(p, curves, out / "fit.png", title)


def print_fits(chosen: list[Divergence], p: Mixture, options: Options) -> list[Row]:
    """Print a line for the data and one for each divergence as soon as it is fitted; return the rows of these."""
    heads = column_heads(p)
    name_width = max(map(len, ["divergence", *(each.name for each in chosen)]))
    outcome_width = max(map(len, gaussian_fit.OUTCOMES))

    def print_line(name: str, outcome: str, numbers: list[str]) -> None:
        texts = [name.ljust(name_width)]
        if options.target == "effective":
            texts.append(outcome.ljust(outcome_width))
        padded = [cell.rjust(max(len(head), NUMBER_WIDTH)) for cell, head in zip(numbers, heads, strict=True)]
        say("  ".join([*texts, *padded]).rstrip())

    print_line("divergence", "outcome", heads)
    print_line("data", "", format_numbers(describe_data(p), p))
    rows = []
    for divergence in chosen:
        row = fit_divergence(divergence, p, options)
        print_line(row.divergence, row.outcome or "", format_numbers(row, p))
        rows.append(row)
    return rows


def column_heads(p: Mixture) -> list[str]:
    """Return the heads of the columns that `format_numbers` fills."""
    return ["μ", "σ", "D_f − f(1)", *(f"mass near {format_number(mean, 'g')}" for mean in p.line_means)]


def describe_data(p: Mixture) -> Row:
    """Return the row of the data itself."""
    return Row("data", p.mean, p.std, math.nan, mode_masses(p, p))


def format_numbers(row: Row, p: Mixture) -> list[str]:
    """Return a row's numbers, to four digits of the data's scale.

    A Gaussian that has collapsed has neither value nor masses, and one that fits nowhere has no numbers.
    """
    places, empty = f".{plots.decimal_places(p)}f", [""] * len(row.mode_masses)
    if math.isnan(row.mu):
        return ["", "", "infinite", *empty]
    if row.outcome == "collapses":
        return [format_number(row.mu, places), "→ 0", "", *empty]
    value = "" if math.isnan(row.value) else "infinite" if math.isinf(row.value) else f"{row.value:.5g}"
    masses = (f"{mass:.4f}" for mass in row.mode_masses)
    return [format_number(row.mu, places), format_number(row.sigma, places), value, *masses]
