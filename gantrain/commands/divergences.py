"""`gantrain divergences`: properties of divergences, computed from their formulas; as tables, a page or figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gantrain.config import overrides
from gantrain.config.schema import number
from gantrain.console import build_table, format_number, make_console, say
from gantrain.files import convert_write_errors, expand_home
from gantrain.objectives import divergences
from gantrain.objectives.divergence import Divergence, FormulaName
from gantrain.objectives.divergences import CATALOGUE, PATTERNS
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import description, plots, properties
from gantrain.theory.description import format_multiple, format_range, format_ratio
from gantrain.theory.properties import fixed_point

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

HELP = f"""Show formulas and properties of divergences: tables of several or all, or a page about one.

  gantrain divergences [NAME …] [affine=0] [out=DIR]

Examples
  gantrain divergences                          all of the catalogue
  gantrain divergences kl                       a page, with the effect of each generator objective
  gantrain divergences kl alpha_0.3 dual_js     several, side by side
  gantrain divergences kl affine=-1             with -1 (u - 1) added to f, which changes only gen_objective=ratio
  gantrain divergences out=figures              also figures, PNG and SVG: f, real and fake, generator losses, weights
                                                of samples, effective divergences

Names: {", ".join([*CATALOGUE, *PATTERNS])}"""

NOTES = """u = p/q, the data's density over the generator's; r = log u. D_f(p‖q) = E_q[f(u)].
invented, missed: the costs of a unit of q's mass where p has none, f(0) − f(1) + f'(1), and of a unit of p's mass \
that q misses, f'(∞) − f'(1). supremum: their sum, the largest D_f − f(1), where p and q do not overlap.
mode-covering: missed mass costs more. mode-seeking: invented mass does. balanced: both cost the same, or both ∞.
ratio pulls to u: where f is lowest, to which gen_objective=ratio takes samples from both sides.
finite r: where real, fake and their slopes hold in float32; beyond, training follows the tangent."""

DISCRIMINATIONS = (0.01, 0.1, 0.5, 0.9, 0.99)  # D(G(z))
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
PIPE_WIDTH = 1000  # columns, so that no line is folded in a pipe


@dataclass
class Options:
    """The keys of `gantrain divergences`."""

    affine: float = number(0.0)
    out: str | None = None


def run(arguments: list[str]) -> None:
    """Print a page about one divergence or tables of several, and draw them if `out` is given."""
    overrides.refuse_flags(arguments, Options)
    names = list(dict.fromkeys(argument for argument in arguments if "=" not in argument))
    options = overrides.parse_into(Options, [argument for argument in arguments if "=" in argument])
    chosen = [divergences.get(name).shifted(options.affine) for name in names or CATALOGUE]
    screen = make_console(PIPE_WIDTH)
    for part in build_page(chosen[0]) if len(chosen) == 1 else build_tables(chosen):
        screen.print(part)
    if options.out is not None:
        suffix = f", affine={options.affine:g}" if options.affine else ""
        drawn, out = [replace(each, name=f"{each.name}{suffix}") for each in chosen], expand_home(options.out)
        with convert_write_errors(f"out={out}"):
            out.mkdir(parents=True, exist_ok=True)
            names = plots.save_divergence_figures(drawn, out)
        say(f"figures, each as PNG and SVG, in {out}: {', '.join(names)}")


# ---------------------------------------------------------------------------------------------------------------------
# Several divergences


def build_tables(chosen: list[Divergence]) -> Iterator[RenderableType]:
    """Yield a table of what the divergences are, one of their formulas, and what the columns mean."""
    rows = [
        [
            each.name,
            description.format_formula(each.formula),
            properties.dual_name(each),
            _format_fact(properties.is_symmetric(each)),
            format_number(properties.supremum(each)),
            properties.mode_behaviour(each),
        ]
        for each in chosen
    ]
    yield build_table(["name", "f(u)", "dual", "symmetric", "supremum", "leaning"], rows)
    yield ""
    rows = [
        [
            each.name,
            format_number(each.f_at_one),
            *map(format_number, properties.costs(each)),
            format_range(each, "real"),
            format_range(each, "fake"),
            format_ratio(fixed_point(each, "ratio")),
            _format_finite_range(each, "real", "fake"),
            _format_fact(each.invertible),
        ]
        for each in chosen
    ]
    heads = ["name", "f(1)", "invented", "missed", "real(r)", "fake(r)", "ratio pulls to u", "finite r", "D gives r"]
    yield build_table(heads, rows)
    yield ""
    yield NOTES


# ---------------------------------------------------------------------------------------------------------------------
# One divergence


def build_page(divergence: Divergence) -> Iterator[RenderableType]:
    """Yield what one divergence is, what D and G do with it, and where float32 ends."""
    from rich.text import Text

    def heading(text: str) -> Text:
        return Text(f"\n{text}", style="bold")

    yield Text.assemble((divergence.name, "bold"), f"   f(u) = {description.format_formula(divergence.formula)}")
    yield "u = p/q, the data's density over the generator's; r = log u"
    yield heading("What it measures")
    yield from description.describe_divergence(divergence)
    yield heading(f"D trained on it: disc_div={divergence.name}")
    yield description.describe_discriminator(divergence)
    yield heading(f"G trained on it: gen_div={divergence.name}, per sample")
    yield (
        "Under D = gan, D(x) = σ(r) and u = D/(1 − D). loss: what G minimises. pull = −d loss/dr: how strongly a "
        "sample is moved to larger u, where data are denser than samples; negative: away from there."
    )
    yield tabulate_losses(divergence)
    yield heading("What G follows while r stays put: the gradient of D_f_eff")
    yield "f_eff(u) = −u ∫ loss/u² du, here with f_eff(1) = f_eff'(1) = 0; a divergence where it is convex."
    yield tabulate_effective_divergences(divergence)
    yield from description.describe_warnings(divergence)
    yield heading("In float32")
    parts: tuple[FormulaName, ...] = ("real", "fake", "f")
    yield "finite, with their slopes, for r in: " + "; ".join(
        f"{part} {_format_finite_range(divergence, part)}" for part in parts
    )
    yield "Beyond, training follows the tangent, and ratio/limited_share reports how many samples do."
    yield heading("References")
    yield divergence.reference


def tabulate_losses(divergence: Divergence) -> Table:
    """Return a table of every generator objective's loss and pull against D(G(z)), under D = gan."""
    import torch

    r = torch.tensor(DISCRIMINATIONS, dtype=torch.float64).logit()
    rows = []
    for objective, (part, sign) in GENERATOR_OBJECTIVES.items():
        formula = ("−" if sign < 0 else "") + ("f(u)" if part == "f" else f"{part}(r)")
        loss = properties.generator_loss(divergence, objective, r)
        pull = properties.sample_weight(divergence, objective, r)
        rows.append([objective, f"loss {formula}", *map(format_number, loss.tolist())])
        rows.append(["", "pull", *map(format_number, pull.tolist())])
    return build_table(["gen_objective", "D(G(z)) =", *map(str, DISCRIMINATIONS)], rows)


def tabulate_effective_divergences(divergence: Divergence) -> Table:
    """Return a table of every generator objective's effective divergence: name, where it is convex, values."""
    import torch

    r = torch.tensor(RATIOS, dtype=torch.float64).log()
    rows = []
    for objective in GENERATOR_OBJECTIVES:
        if not properties.training_error(divergence, objective):
            names = properties.effective_names(divergence, objective) or {"no name here": 1.0}
            lowest = fixed_point(divergence, objective)
            convex = {math.inf: "at every u", -math.inf: "nowhere"}.get(lowest, f"for u < {format_ratio(lowest)}")
            values = properties.effective_f(divergence, objective, r).tolist()
            rows.append([objective, format_multiple(*next(iter(names.items()))), convex, *map(format_number, values)])
    return build_table(["gen_objective", "f_eff", "convex", *(f"u = {u:g}" for u in RATIOS)], rows)


def _format_finite_range(divergence: Divergence, *parts: FormulaName) -> str:
    """Return the r at which all of `parts` hold in float32."""
    ranges = [divergence.finite_range(part) for part in parts]
    low, high = max(each.low for each in ranges), min(each.high for each in ranges)
    return f"{format_number(low)} … {format_number(high)}"


def _format_fact(fact: bool) -> str:
    return "yes" if fact else "no"
