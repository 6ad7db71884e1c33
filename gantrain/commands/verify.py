"""`gantrain verify`: train discriminators between known densities and compare what they give with the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gantrain.config import overrides
from gantrain.config.schema import choice, number
from gantrain.console import build_table, format_number, make_console, show_progress
from gantrain.errors import CheckFailedError
from gantrain.files import convert_write_errors, expand_home, write_json
from gantrain.networks.tables import load_architecture
from gantrain.objectives import divergences
from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import Objective
from gantrain.seeding import describe_machine
from gantrain.theory import verification
from gantrain.theory.cases import CASES, true_ratio_values
from gantrain.theory.findings import ALLOWED_ERRORS, Finding
from gantrain.theory.formula_checks import find_formula_errors
from gantrain.theory.verification import PARTS, Result, Training

if TYPE_CHECKING:
    from rich.table import Table

CASE_LINES = "\n".join(f"  {name:10} {case.title}" for name, case in CASES.items())

HELP = f"""Train a discriminator between two known densities, and compare its bounds and log-ratio with the true values.

  gantrain verify [case=all] [disc_div=gan] [seeds=3] [seed=0] [images=1000000] [batch_size=500] [lr=0.005]
                  [held_out=500000] [out=DIR]

Examples
  gantrain verify                               all cases, in two minutes or so on two cores
  gantrain verify case=ring seeds=5             one of them, with the seeds 0 to 4
  gantrain verify disc_div=kl out=verification  another divergence trains D; verify.json and log_ratio.png are written
  gantrain verify images=0                      without training: with the exact log-ratio in place of D

Per divergence: the true value, the bound that D reaches, the bound of the exact log-ratio on the same draws, and the
plug-in estimate, which is no bound; then the ratio's calibration and its error against the true log-ratio.

The true value is computed from f(u) alone. Exits with 9 at once when a formula of a bound, or the slope that trains,
contradicts f(u); at the end when a bound exceeds the true value by more than its error allows, or the bound of the
exact log-ratio lies on either side of it by more than that.

Cases, in which images are draws of p:
{CASE_LINES}"""

NOTES = f"""true: D_f(p‖q) − f(1), 0 for p = q; ∞ if p or q has tails too heavy for the other.
bound: E_p[real(r)] − E_q[fake(r)] − f(1), at most true but for chance.
at exact r: the bound with the exact log-ratio on the same draws, equal to true but for chance.
estimate, no bound: the two-sided plug-in of the recalibrated r, on either side of true.
±: standard error, over {PARTS} parts of the held-out draws or over seeds, the larger; exact ±: that at exact r, by \
quadrature. Where exact ± is far larger than ±, rare draws carry the average, and ± is too small.
heavy tail: the variance at exact r is infinite, so no ± holds. k is the Pareto k of the tail of the exact weights w, \
e^r on draws of q or e^−r on draws of p, the larger: E[w^s] is infinite for s > 1/k.
EXCEEDS: the bound is above true by more than {ALLOWED_ERRORS:g} of the largest standard error. DEVIATES: at exact \
r it is that far from true. With a heavy tail nothing can: not judged."""

ARCHITECTURE = "mlp"
PIPE_WIDTH = 140
LARGEST_IN_FULL = 1000
RATIO_NAMES = {
    "ratio/calibration_q": "E_q[e^r]",
    "ratio/calibration_p": "E_p[e^−r]",
    "ratio/effective_sample_size": "effective sample size of the weights e^r, of the draws of q",
    "ratio/rms_error_p": "error of r on draws of p, root mean square, nats",
    "ratio/rms_error_q": "error of r on draws of q, root mean square, nats",
}


@dataclass
class Options:
    """The keys of `gantrain verify`."""

    case: str = choice("all", ("all", *CASES))
    disc_div: str = "gan"
    seeds: int = number(3, at_least=1, at_most=1000)
    seed: int = number(0, at_least=0, at_most=2**62)
    images: int = number(Training.images, at_least=0)
    batch_size: int = number(Training.batch_size, at_least=1, at_most=1_000_000)
    lr: float = number(Training.lr, above=0)
    held_out: int = number(500_000, at_least=20 * PARTS, at_most=10_000_000)
    out: str | None = None


def run(arguments: list[str]) -> None:
    """Verify formulas and the cases asked for, print and write the results; raise CheckFailedError for a failed one."""
    options = overrides.parse_into(Options, arguments)
    disc_div = divergences.get(options.disc_div, "disc_div")
    objective = Objective(disc_div, disc_div)
    verification.check_log_ratio(objective)
    known = {disc_div.name: disc_div} | CATALOGUE
    if errors := [error for divergence in known.values() for error in find_formula_errors(divergence)]:
        raise CheckFailedError(
            f"{len(errors)} formulas contradict f(u) of their divergence; one of the two is wrong ({'; '.join(errors)})"
        )
    out = None if options.out is None else expand_home(options.out)
    if out is not None:
        with convert_write_errors(f"out={out}"):
            out.mkdir(parents=True, exist_ok=True)
    screen = make_console(PIPE_WIDTH)
    screen.print(describe_training(options))
    results = {}
    for name in [options.case] if options.case in CASES else CASES:
        results[name] = verify_case(name, options, objective)
        screen.print(f"\n{name}: {CASES[name].title}\n", style="bold")
        screen.print(tabulate_divergences(results[name].findings), "", tabulate_ratio(results[name]), "", sep="\n")
    screen.print(NOTES)
    if out is not None:
        write_results(results, options, out)
        screen.print(f"\nverify.json and log_ratio.png are in {out}")
    check_bounds({name: result.findings for name, result in results.items()})


def verify_case(name: str, options: Options, objective: Objective) -> Result:
    """Return the result of one case, under a progress bar."""
    table = load_architecture(ARCHITECTURE)
    training = Training(options.images, options.batch_size, options.lr)
    seeds = range(options.seed, options.seed + options.seeds)
    with show_progress(f"{name}: training D", error=True) as update:
        return verification.verify_case(
            CASES[name], objective, table, training=training, seeds=seeds, draws=options.held_out, progress=update
        )


def check_bounds(findings: Mapping[str, Sequence[Finding]]) -> None:
    """Raise CheckFailedError when a bound, by case, exceeds the truth or deviates from it at the exact ratio."""
    failures = [
        f"{case} {each.name}: {reading.mean:.4g} {manner} {each.true:.4g}, of which chance explains "
        f"{each.allowed_error(reading):.2g}"
        for case, found in findings.items()
        for each in found
        for is_wrong, reading, manner in (
            (each.exceeds, each.bound, "against"),
            (each.deviates, each.at_exact_ratio, "at the exact ratio against"),
        )
        if is_wrong
    ]
    if failures:
        raise CheckFailedError(
            f"{len(failures)} of {2 * sum(map(len, findings.values()))} bounds contradict the true value by more than "
            f"their error allows; a formula, an estimate or the truth is wrong, unless another seed= tells otherwise "
            f"({'; '.join(failures)})"
        )


def describe_training(options: Options) -> str:
    """Return a sentence that says how every number was obtained."""
    last = options.seed + options.seeds - 1
    seeds = f"seeds {options.seed}–{last}" if options.seeds > 1 else f"seed {last}"
    if not options.images:
        return f"D: the exact log-ratio, {seeds}; {options.held_out:,} draws of p and of q per seed."
    return (
        f"D: disc_div={options.disc_div}, architecture={ARCHITECTURE}, {options.images:,} images in batches of "
        f"{options.batch_size:,}, Adam lr={options.lr:g} falling to 0, {seeds}; "
        f"{options.held_out:,} held-out draws of p and of q per seed."
    )


def tabulate_divergences(findings: Sequence[Finding]) -> Table:
    """Return a table with a row a divergence: truth, bound, plug-in estimate and verdict."""
    right = ["true", "bound", "±", "reached", "at exact r", "exact ±", "estimate,\nno bound"]
    rows = []
    for each in findings:
        share = each.bound.mean / each.true
        heavy = f"heavy tail\nk {_format_error(each.pareto_k)}"
        is_heavy = math.isinf(each.exact_ratio_standard_error)
        numbers = [
            _format_value(each.bound.mean),
            heavy if is_heavy else _format_error(each.bound.standard_error),
            f"{share:.1%}" if share > 0 else "",
            _format_value(each.at_exact_ratio.mean),
            heavy if is_heavy else _format_error(each.exact_ratio_standard_error),
            _format_value(each.plug_in.mean),
            heavy if each.plug_in_is_heavy else _format_error(each.plug_in.standard_error),
        ]
        rows.append([each.name, _format_value(each.true), each.true_by, *numbers, each.verdict])
    return build_table(["divergence", right[0], "true, by", *right[1:], "±", "verdict"], rows, right=right)


def tabulate_ratio(result: Result) -> Table:
    """Return a table with a row a metric of the ratio, beside its value for the exact one."""
    exact = true_ratio_values(result.case)
    rows = []
    for name, reading in result.ratio.items():
        numbers = [_format_value(exact[name]), _format_value(reading.mean), _format_error(reading.standard_error)]
        rows.append([RATIO_NAMES[name], *numbers])
    return build_table(["ratio", "exact", "learned", "±"], rows, right=["exact", "learned", "±"])


def _format_value(value: float) -> str:
    return format_number(value, ".4f" if abs(value) < LARGEST_IN_FULL else ".3g")


def _format_error(value: float) -> str:
    return format_number(value, ".2g")


def write_results(results: Mapping[str, Result], options: Options, out: Path) -> None:
    """Write everything that was printed, and how it was computed, to verify.json, and log_ratio.png."""
    import torch

    from gantrain.theory import verification_plots

    document = {
        "options": asdict(options) | {"architecture": ARCHITECTURE},
        "made_with": describe_machine(torch.device("cpu")),
        "allowed_standard_errors": ALLOWED_ERRORS,
        "cases": {name: result.to_dict() for name, result in results.items()},
    }
    with convert_write_errors(f"out={out}"):
        write_json(out / "verify.json", document)
        verification_plots.save_log_ratios(list(results.values()), options.seed, out / "log_ratio.png")
