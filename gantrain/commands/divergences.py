"""`gantrain divergences`: what each divergence is, computed from its formulas; as tables, a page or figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gantrain.config import overrides
from gantrain.config.schema import number
from gantrain.console import say
from gantrain.errors import ConfigError, StorageError
from gantrain.objectives import divergences, heads
from gantrain.objectives.divergences import CATALOGUE, PATTERNS, Divergence, Part
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.screen import console
from gantrain.theory import properties

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

HELP = """Show what divergences are: tables of some or all, or a page about one.

  gantrain divergences [NAME …] [affine=0] [out=DIR]

Examples
  gantrain divergences                          all of the catalogue
  gantrain divergences kl                       a page: what it is, where each generator objective pulls samples
  gantrain divergences kl alpha_0.3 dual_js     some, side by side
  gantrain divergences kl affine=-1             with -1 (u - 1) added to f, which only gen_objective=ratio notices
  gantrain divergences out=figures              figures too, PNG and SVG: f, real and fake, generator losses, the pull
                                                on samples, effective divergences

Names: {names}"""

NOTES = """u = p/q, the data's density over the generator's; r = log u. D_f(p‖q) = E_q[f(u)].
invented, missed: the costs of a unit of q's mass where p has none, f(0) − f(1) + f'(1), and of a unit of p's mass \
that q misses, f'(∞) − f'(1). supremum: their sum, the largest D_f − f(1), where p and q do not overlap.
mode-covering: missed mass costs more. mode-seeking: invented mass does. balanced: both cost the same, or both ∞.
ratio pulls to u: where f is lowest, to which gen_objective=ratio takes samples from both sides.
finite r: where real, fake and their slopes hold in float32; beyond, training follows the tangent."""

DISCRIMINATIONS = (0.01, 0.1, 0.5, 0.9, 0.99)  # D(G(z))
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
PIPE_WIDTH = 1000  # columns, so that no line is cut where no one looks


@dataclass
class Options:
    """What `gantrain divergences` can be told."""

    affine: float = number(0.0)
    out: str | None = None


def help_text() -> str:
    """The command's help."""
    return HELP.format(names=", ".join([*CATALOGUE, *PATTERNS]))


def run(arguments: list[str]) -> None:
    """Print a page about one divergence or tables of several, and draw them where `out` says."""
    names = list(dict.fromkeys(argument for argument in arguments if "=" not in argument))
    options = overrides.parse_into(Options, [argument for argument in arguments if "=" in argument])
    chosen = [divergences.get(name).shifted(options.affine) for name in names or CATALOGUE]
    screen = console(PIPE_WIDTH)
    for part in page(chosen[0]) if len(chosen) == 1 else tables(chosen):
        screen.print(part)
    if options.out is not None:
        marked = [replace(each, name=f"{each.name}, affine={options.affine:g}") for each in chosen]
        draw(marked if options.affine else chosen, Path(options.out))


def draw(chosen: list[Divergence], out: Path) -> None:
    """Write the figures and say where they are. Raises StorageError."""
    from gantrain.theory import plots

    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = plots.save(chosen, out)
    except OSError as error:
        raise StorageError(f"out={out} cannot be written: {error.strerror or error}") from error
    say(f"figures, each as PNG and SVG, in {out}: {', '.join(drawn)}")


# ---------------------------------------------------------------------------------------------------------------------
# Several divergences


def tables(chosen: list[Divergence]) -> Iterator[RenderableType]:
    """What they are, what D and G compute, and what the columns mean."""
    yield table(["name", "f(u)", "dual", "symmetric", "supremum", "leaning"], map(nature, chosen))
    yield ""
    heads = ["name", "f(1)", "invented", "missed", "real(r)", "fake(r)", "ratio pulls to u", "finite r", "D gives r"]
    yield table(heads, map(formulas, chosen))
    yield ""
    yield NOTES


def nature(divergence: Divergence) -> list[str]:
    """A row: what the divergence is."""
    return [
        divergence.name,
        properties.readable(divergence.formula),
        properties.dual_name(divergence),
        yes(properties.is_symmetric(divergence)),
        shown(properties.supremum(divergence)),
        properties.leaning(divergence),
    ]


def formulas(divergence: Divergence) -> list[str]:
    """A row: the values of its formulas, and where float32 holds them."""
    return [
        divergence.name,
        shown(divergence.f_at_one),
        *map(shown, properties.costs(divergence)),
        interval(*properties.extent(divergence.real)),
        interval(*properties.extent(divergence.fake)),
        ratio(properties.pulls_to(divergence, "ratio")),
        finite(divergence, ("real", "fake")),
        yes(divergence.invertible),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# One divergence


def page(divergence: Divergence) -> Iterator[RenderableType]:
    """What one divergence is, what D and G do with it, and where float32 ends."""
    from rich.text import Text

    def heading(text: str) -> Text:
        return Text(f"\n{text}", style="bold")

    yield Text.assemble((divergence.name, "bold"), f"   f(u) = {properties.readable(divergence.formula)}")
    yield "u = p/q, the data's density over the generator's; r = log u"
    yield heading("What it measures")
    yield from meaning(divergence)
    yield heading(f"D trained on it: disc_div={divergence.name}")
    yield discriminator_side(divergence)
    yield heading(f"G trained on it: gen_div={divergence.name}, per sample")
    yield (
        "Under D = gan, D(x) = σ(r) and u = D/(1 − D). loss: what G minimises. pull = −d loss/dr: how strongly a "
        "sample is moved to larger u, where data are denser than samples; negative: away from there."
    )
    yield losses(divergence)
    yield heading("What G follows while r stays put: the gradient of D_f_eff")
    yield "f_eff(u) = −u ∫ loss/u² du, here with f_eff(1) = f_eff'(1) = 0; a divergence where it is convex."
    yield effective_divergences(divergence)
    yield from warnings(divergence)
    yield heading("In float32")
    parts: tuple[Part, ...] = ("real", "fake", "f")
    yield "finite, with their slopes, for r in: " + "; ".join(f"{part} {finite(divergence, (part,))}" for part in parts)
    yield "Beyond, training follows the tangent, and ratio/limited_share reports how many samples do."
    yield heading("References")
    yield divergence.reference


def meaning(divergence: Divergence) -> Iterator[str]:
    """Size, leaning, symmetry and other names, in words."""
    invented, missed = properties.costs(divergence)
    largest, leaning = properties.supremum(divergence), properties.leaning(divergence)
    top = f"at most {shown(largest)}" if math.isfinite(largest) else "without a bound"
    yield f"D_f(p‖q) = E_q[f(u)]{less(divergence.f_at_one)} is 0 at p = q and {top} where p and q do not overlap."
    yield (
        f"A unit of q's mass where p has none costs {shown(invented)}, a unit of p's mass that q misses "
        f"{shown(missed)}: {leaning}."
    )
    if properties.is_symmetric(divergence):
        yield "It is symmetric: p and q may be exchanged."
    else:
        yield f"It is not symmetric: with p and q exchanged it is {properties.dual_name(divergence)}."
    if others := properties.same_as(divergence):
        names = " and ".join(multiple(*other) for other in others.items())
        yield f"Up to a constant and a multiple of u − 1 it is {names}."


def discriminator_side(divergence: Divergence) -> str:
    """What D maximises and what it reveals."""
    try:
        head = heads.get_head("log_ratio", divergence)
    except ConfigError as error:
        return str(error)
    spans = [f"{name}(r) in {interval(*properties.extent(getattr(divergence, name)))}" for name in ("real", "fake")]
    bound = f"D maximises E_p[real(r)] − E_q[fake(r)] ≤ D_f, with {' and '.join(spans)}."
    if head.has_log_ratio:
        return f"{bound} Its output is r, so that any gen_div may train G."
    return f"{bound} It gives no ratio, so that only gen_div={divergence.name} can train G."


def losses(divergence: Divergence) -> Table:
    """Loss and pull of every generator objective against D(G(z)), under D = gan."""
    import torch

    r = torch.tensor(DISCRIMINATIONS, dtype=torch.float64).logit()
    rows = []
    for objective, (part, sign) in GENERATOR_OBJECTIVES.items():
        formula = ("−" if sign < 0 else "") + ("f(u)" if part == "f" else f"{part}(r)")
        loss, pull = properties.loss(divergence, objective, r), properties.pull(divergence, objective, r)
        rows.append([objective, f"loss {formula}", *map(shown, loss.tolist())])
        rows.append(["", "pull", *map(shown, pull.tolist())])
    return table(["gen_objective", "D(G(z)) =", *map(str, DISCRIMINATIONS)], rows)


def effective_divergences(divergence: Divergence) -> Table:
    """The effective divergence of every generator objective: its name, where it is convex, its values."""
    import torch

    r = torch.tensor(RATIOS, dtype=torch.float64).log()
    rows = [
        [
            objective,
            multiple(*next(iter(properties.follows(divergence, objective).items()), ("no name here", 1))),
            convex(properties.pulls_to(divergence, objective)),
            *map(shown, properties.effective(divergence, objective, r).tolist()),
        ]
        for objective in GENERATOR_OBJECTIVES
        if not properties.refusal(divergence, objective)
    ]
    return table(["gen_objective", "f_eff", "convex", *(f"u = {u:g}" for u in RATIOS)], rows)


def warnings(divergence: Divergence) -> Iterator[str]:
    """What to know of each objective before an hour of training is spent on it."""
    for objective in GENERATOR_OBJECTIVES:
        lowest = properties.pulls_to(divergence, objective)
        if reason := properties.refusal(divergence, objective):
            yield f"{objective} cannot train: {reason}"
        elif lowest < math.inf:
            yield (
                f"{'Warning: ' if lowest <= 0 else ''}{objective} pulls every sample to u = {ratio(lowest)} "
                f"(r = {shown(lowest)}), where its loss is lowest; those with larger u move away from the data."
            )
            if lowest < 0:
                yield f"f_eff is concave at u = 1, so that near p = q it is p = q that {objective} is repelled from."
            elif lowest == 0:
                yield f"f_eff turns concave at u = 1, so that p = q is no minimum of what {objective} follows."


# ---------------------------------------------------------------------------------------------------------------------
# Words and numbers


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Columns without a frame; names stay on one line, and nothing is cut."""
    from rich.table import Table

    columns = Table(*heads, box=None, pad_edge=False)
    for column in columns.columns:
        column.overflow = "fold"
    columns.columns[0].no_wrap = True
    for row in rows:
        columns.add_row(*row)
    return columns


def shown(value: float) -> str:
    """A number to four digits, with ∞ and a real minus sign."""
    text = "∞" if math.isinf(value) else f"{abs(value) or 0:.4g}"
    return f"−{text}" if value < 0 else text


def ratio(r: float) -> str:
    """u = e^r, as a number."""
    return shown(math.exp(r) if r < 700 else math.inf)


def interval(low: float, high: float) -> str:
    """From the lower to the upper end."""
    return f"{shown(low)} … {shown(high)}"


def finite(divergence: Divergence, parts: Iterable[Part]) -> str:
    """The r at which all of `parts` hold in float32."""
    ranges = [divergence.finite_range(part) for part in parts]
    return interval(max(found.low for found in ranges), min(found.high for found in ranges))


def convex(lowest: float) -> str:
    """Where an effective divergence is convex."""
    return {math.inf: "at every u", -math.inf: "nowhere"}.get(lowest, f"for u < {ratio(lowest)}")


def multiple(name: str, factor: float) -> str:
    """A divergence, or so many times it."""
    return name if factor == 1 else f"{shown(factor)} {name}"


def less(value: float) -> str:
    """What is taken away, where it is anything."""
    return "" if value == 0 else f" {'−' if value > 0 else '+'} {shown(abs(value))}"


def yes(fact: bool) -> str:
    """A fact, in a word."""
    return "yes" if fact else "no"
