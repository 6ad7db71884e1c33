"""`gantrain fit`: the Gaussian that each divergence makes of a mixture, or where a generator's loss leads; exact."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gantrain.config import overrides
from gantrain.config.groups import options as options_of
from gantrain.config.schema import choice, number
from gantrain.console import printable, say
from gantrain.errors import ConfigError, StorageError
from gantrain.files import write_whole
from gantrain.objectives import divergences
from gantrain.objectives.divergences import CATALOGUE, Divergence
from gantrain.objectives.objective import GENERATOR_OBJECTIVES, Objective
from gantrain.screen import console
from gantrain.theory import fit_plots, quadrature
from gantrain.theory.quadrature import Loss, Mixture, gaussian

if TYPE_CHECKING:
    from rich.table import Table

HELP = """Fit one Gaussian to a mixture on the line under each divergence (Poole et al. 2016, figure 1), by quadrature.

  gantrain fit [weights=[…]] [means=[…]] [stds=[…]] [gen_div=NAME,…] [target=divergence] [out=fit]

Examples
  gantrain fit                                        .6 N(−1.5, .6²) + .4 N(2, .8²), all divergences
  gantrain fit weights=[.6,.4] means=[-1.5,2] stds=[.6,.8] gen_div=kl,reverse_kl out=DIR
  gantrain fit target=effective gen_objective=ratio   where a generator that follows a loss comes to rest, or not
  gantrain fit target=effective gen_div=reverse_kl start=[-1,.5]

target=divergence gives the best Gaussian of all, target=effective the end of the path of x = μ + σz along the loss of
gen_objective ({objectives}), frozen at the exact ratio of each moment, from start=[μ,σ]; affine=c
adds c·(u − 1) to f there. Such a path ends in one of these ways:
{outcomes}

A divergence's value is D_f − f(1): 0 where the Gaussian is the data. The mass near a mode is the Gaussian's within two
standard deviations of a component's mean. Everything is also written to fit.json, in full precision, and fit.png.
Divergences: {names}"""

EFFECTIVE_ONLY = ("gen_objective", "start", "affine")
SMALLEST_STD = 1e-6  # of the whole mixture's; below, float64 no longer places the component
LARGEST = 1e100
NEAR = 2.0  # standard deviations


@dataclass
class Options:
    """What `gantrain fit` can be told."""

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
    """The Gaussian that one divergence led to; `outcome` is how its path ended, for target=effective."""

    divergence: str
    mu: float
    sigma: float
    value: float
    mode_masses: list[float]
    outcome: str | None = None


def help_text() -> str:
    """The command's help."""
    outcomes = "\n".join(f"  {name:10} {meaning}" for name, meaning in quadrature.OUTCOMES.items())
    names = ", ".join(options_of("gen_div"))
    return HELP.format(objectives=", ".join(GENERATOR_OBJECTIVES), outcomes=outcomes, names=names)


def run(arguments: list[str]) -> None:
    """Fit, print the table, write fit.json and fit.png."""
    arguments = [listed(argument) for argument in arguments]
    options, typed = overrides.parse_into(Options, arguments), overrides.single_values(overrides.parse(arguments))
    p, chosen = mixture(options), chosen_divergences(options)
    if options.target == "effective":
        check_start(p, options.start)
    elif idle := [key for key in EFFECTIVE_ONLY if key in typed]:
        raise ConfigError(f"{idle[0]} changes a path and not a divergence's minimum; add target=effective")
    out = Path(options.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = list(fitted(p, chosen, options))
        write(rows, p, options, out)
    except OSError as error:
        raise StorageError(f"out={out} cannot be written: {error.strerror or error}") from error
    console().print(table(rows, p))
    say(f"fit.json and fit.png in {out}")


# ---------------------------------------------------------------------------------------------------------------------
# What was asked for


def listed(argument: str) -> str:
    """`gen_div=kl,js` as `gen_div=[kl,js]`, in which several names are one value; other arguments as they are."""
    key, _, names = argument.partition("=")
    return f"gen_div=[{names.removeprefix('[').removesuffix(']')}]" if key == "gen_div" else argument


def mixture(options: Options) -> Mixture:
    """The mixture described by weights, means and stds. Raises ConfigError."""
    weights, means, stds = options.weights, options.means, options.stds
    if not len(weights) == len(means) == len(stds) > 0:
        raise ConfigError(
            "weights, means and stds need one entry a component each; "
            f"found {len(weights)}, {len(means)} and {len(stds)}"
        )
    for key, values in {"weights": weights, "means": means, "stds": stds}.items():
        least = -LARGEST if key == "means" else 1 / LARGEST
        if not all(least <= value <= LARGEST for value in values):
            rule = f"between −{LARGEST:g} and {LARGEST:g}" if key == "means" else f"above 0 and at most {LARGEST:g}"
            raise ConfigError(f"{key}={shown(values)} must be {rule}")
    total = math.fsum(weights)
    if abs(total - 1) > 1e-6:
        shares = shown(weight / total for weight in weights)
        raise ConfigError(f"weights={shown(weights)} sum to {total:g} and must sum to one, as in weights={shares}")
    p = Mixture(tuple(weight / total for weight in weights), tuple(means), tuple(stds))
    if min(stds) < SMALLEST_STD * p.std:
        raise ConfigError(f"stds={shown(stds)} must be at least {SMALLEST_STD:g} of the whole mixture's, {p.std:g}")
    return p


def shown(values: Any) -> str:
    """Numbers as they are typed."""
    return f"[{','.join(f'{value:.6g}' for value in values)}]"


def check_start(p: Mixture, start: list[float]) -> None:
    """Raise ConfigError for a start that is no Gaussian, or where a path would already have ended."""
    if len(start) != 2 or not all(map(math.isfinite, start)) or start[1] <= 0:
        raise ConfigError(f"start={shown(start)} must be two numbers, a finite mean and a standard deviation above 0")
    if end := quadrature.out_of_bounds(p, *start):
        raise ConfigError(
            f"start={shown(start)} is where a path would have ended: it {end}, {quadrature.OUTCOMES[end]}"
        )


def chosen_divergences(options: Options) -> list[Divergence]:
    """The divergences named; else those of the catalogue, but for what the objective cannot train."""
    if options.gen_div is None:
        return [d for d in CATALOGUE.values() if options.target == "divergence" or trains(d, options.gen_objective)]
    chosen = [divergences.get(name, "gen_div") for name in dict.fromkeys(options.gen_div)]
    if not chosen:
        raise ConfigError("gen_div names no divergence; leave it out for all of them")
    if options.target == "effective":
        for divergence in chosen:
            Objective(CATALOGUE["gan"], divergence, options.gen_objective)
    return [divergence.shifted(options.affine) for divergence in chosen]


def trains(divergence: Divergence, gen_objective: str) -> bool:
    """Whether a generator can follow the loss at all."""
    try:
        Objective(CATALOGUE["gan"], divergence, gen_objective)
    except ConfigError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# What came of it


def fitted(p: Mixture, chosen: list[Divergence], options: Options) -> Iterator[Row]:
    """One row a divergence, under a progress bar on a terminal."""
    from rich.progress import track

    terminal = console()
    for divergence in track(chosen, "fitting", console=terminal, transient=True, disable=not terminal.is_terminal):
        outcome = None
        if options.target == "effective":
            loss = Loss(divergence, *GENERATOR_OBJECTIVES[options.gen_objective])
            outcome, mean, std = quadrature.follow(loss, p, (options.start[0], options.start[1]))
            value = quadrature.value(divergence, p, gaussian(mean, std))
        else:
            mean, std, value = quadrature.fit(divergence, p)
        yield Row(divergence.name, mean, std, value, mode_masses(gaussian(mean, std), p), outcome)


def mode_masses(q: Mixture, p: Mixture) -> list[float]:
    """The mass of q within two standard deviations of each component's mean."""
    return [q.mass(mean - NEAR * std, mean + NEAR * std) for mean, std in zip(p.means, p.stds, strict=True)]


def write(rows: list[Row], p: Mixture, options: Options, out: Path) -> None:
    """fit.json, null where a number is infinite or missing, and fit.png."""
    found = [{key: finite(value) for key, value in vars(row).items() if value is not None} for row in rows]
    write_whole(out / "fit.json", json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    curves = [
        fit_plots.Curve(row.divergence, row.mu, row.sigma, collapsed=row.outcome == "collapses")
        for row in rows
        if row.outcome in (None, "rests", "unstable", "collapses") and math.isfinite(row.mu)
    ]
    title = "the best Gaussian under each divergence"
    if options.target == "effective":
        title = f"where gen_objective={options.gen_objective} leads from start={shown(options.start)}"
    fit_plots.save_fits(p, curves, out / "fit.png", title)


def finite(value: Any) -> Any:
    """None for a number that is not finite, which JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[Row], p: Mixture) -> Table:
    """The rows under a line for the data itself, to four digits of the data's scale."""
    from rich import box
    from rich.table import Table

    paths = any(row.outcome for row in rows)
    found = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    found.add_column("divergence", no_wrap=True)
    for heading in (*(["outcome"] if paths else []), "μ", "σ", "D_f − f(1)"):
        found.add_column(heading, justify="left" if heading == "outcome" else "right", no_wrap=True)
    for mean in p.means:
        found.add_column(f"mass near {mean:g}", justify="right")
    data = Row("data", p.mean, p.std, math.nan, mode_masses(p, p), "" if paths else None)
    for row in (data, *rows):
        words = [row.divergence, *([row.outcome or ""] if paths else [])]
        found.add_row(*map(printable, words), *numbers(row, fit_plots.decimals(p)))
    return found


def numbers(row: Row, digits: int) -> list[str]:
    """A row's cells; a Gaussian that has vanished has no value and no mass, one that never was nothing at all."""
    if math.isnan(row.mu):
        return ["", "", "infinite", *("" for _ in row.mode_masses)]
    if row.outcome == "collapses":
        return [f"{row.mu:z.{digits}f}", "→ 0"]
    value = "" if math.isnan(row.value) else "infinite" if math.isinf(row.value) else f"{row.value:.5g}"
    return [f"{row.mu:z.{digits}f}", f"{row.sigma:z.{digits}f}", value, *(f"{mass:.4f}" for mass in row.mode_masses)]
