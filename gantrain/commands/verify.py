"""`gantrain verify`: train discriminators between known densities, and hold what they say against the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gantrain.config import overrides
from gantrain.config.groups import CONF
from gantrain.config.schema import choice, number
from gantrain.errors import CheckFailedError, StorageError
from gantrain.files import write_whole
from gantrain.objectives import divergences
from gantrain.objectives.objective import Objective
from gantrain.screen import console
from gantrain.theory import verification
from gantrain.theory.verification import ALLOWED_ERRORS, CASES, PARTS, Finding, Reading, Result, Training

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HELP = """Train only a discriminator between two known densities, and hold what it says against the truth.

  gantrain verify [case=all] [disc_div=gan] [seeds=3] [seed=0] [images=1000000] [batch_size=500] [lr=0.005]
                  [held_out=500000] [out=DIR]

Examples
  gantrain verify                               all cases, in two minutes or so on two cores
  gantrain verify case=ring seeds=5             one of them, with the seeds 0 to 4
  gantrain verify disc_div=kl out=verification  another divergence trains D; verify.json and log_ratio.png are written

Per divergence: the true value, the bound that D reaches and the plug-in estimate; then the ratio's calibration and its
error against the true log-ratio. Exits with 9 when a bound exceeds the true value by more than its error allows.

Cases, in which images are draws of p:
{cases}"""

NOTES = f"""true: D_f(p‖q) − f(1), 0 where p = q; ∞ where p or q has tails too heavy for the other.
bound: E_p[real(r)] − E_q[fake(r)] − f(1), at most true but for chance. plug-in: E_q[f(e^r)] − f(1), on either side.
±: standard error, over {PARTS} parts of the held-out draws or over seeds, the larger; exact ±: the bound's, were r \
exact. Where exact ± is far larger, rare draws carry the average: ± is too small, and the plug-in's too.
exceeds: above true by more than {ALLOWED_ERRORS:g} of the larger of ± and exact ±. Where exact ± is ∞ nothing can \
exceed: not judged."""

ARCHITECTURE = "mlp"
PIPE_WIDTH = 140

RATIO_NAMES = {
    "ratio/calibration_q": "E_q[e^r]",
    "ratio/calibration_p": "E_p[e^−r]",
    "ratio/effective_sample_size": "effective sample size of the weights e^r, of the draws of q",
    "ratio/rms_error_p": "error of r on draws of p, root mean square, nats",
    "ratio/rms_error_q": "error of r on draws of q, root mean square, nats",
}


@dataclass
class Options:
    """What `gantrain verify` can be told."""

    case: str = choice("all", ("all", *CASES))
    disc_div: str = "gan"
    seeds: int = number(3, at_least=1, at_most=1000)
    seed: int = number(0, at_least=0, at_most=2**62)
    images: int = number(Training.images, at_least=1)
    batch_size: int = number(Training.batch_size, at_least=1, at_most=1_000_000)
    lr: float = number(Training.lr, above=0)
    held_out: int = number(500_000, at_least=20 * PARTS, at_most=10_000_000)
    out: str | None = None


def help_text() -> str:
    """The command's help."""
    return HELP.format(cases="\n".join(f"  {name:10} {case.title}" for name, case in CASES.items()))


def run(arguments: list[str]) -> None:
    """Verify the cases asked for, print and write the results; raise CheckFailedError for a bound that is too high."""
    options = overrides.parse_into(Options, arguments)
    disc_div = divergences.get(options.disc_div, "disc_div")
    objective = Objective(disc_div, disc_div)
    verification.refuse_without_ratio(objective)
    out = None if options.out is None else Path(options.out)
    with writing(out):
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)

    screen = console(PIPE_WIDTH)
    screen.print(how(options))
    results = verified(options, objective, screen)
    for text in (NOTES, *written(results, options, out)):
        screen.print(text)
    refuse_excess({name: result.findings for name, result in results.items()})


def verified(options: Options, objective: Objective, screen: Console) -> dict[str, Result]:
    """The result of every case asked for, each printed when it is there."""
    table = yaml.safe_load((CONF / "architecture" / f"{ARCHITECTURE}.yaml").read_text(encoding="utf-8"))
    training = Training(options.images, options.batch_size, options.lr)
    names = [options.case] if options.case in CASES else list(CASES)
    results = {}
    for name in names:
        with progress(screen, name, len(seeds(options)) * options.images) as shown:
            case = CASES[name]
            results[name] = verification.verify(
                case, objective, table, training, seeds(options), options.held_out, shown
            )
        screen.print(f"\n{name}: {case.title}\n", style="bold")
        screen.print(divergence_table(results[name].findings))
        screen.print("")
        screen.print(ratio_table(results[name]))
        screen.print("")
    return results


def seeds(options: Options) -> list[int]:
    """The seeds asked for."""
    return list(range(options.seed, options.seed + options.seeds))


def refuse_excess(findings: Mapping[str, Sequence[Finding]]) -> None:
    """Raise CheckFailedError when a bound, by case, exceeds the truth by more than its error allows."""
    excesses = [
        f"{case} {each.name}: {each.bound.mean:.4g} against {each.truth.value:.4g}, of which chance explains "
        f"{each.allowed:.2g}"
        for case, found in findings.items()
        for each in found
        if each.exceeds
    ]
    if excesses:
        raise CheckFailedError(
            f"{len(excesses)} of {sum(map(len, findings.values()))} bounds exceed the true value by more than their "
            f"error allows; a formula, an estimate or the truth is wrong, unless another seed= tells otherwise "
            f"({'; '.join(excesses)})"
        )


# ---------------------------------------------------------------------------------------------------------------------
# On the screen


@contextmanager
def progress(screen: Console, name: str, images: int) -> Iterator[Callable[[int], None]]:
    """A bar that moves by the images it is told of, and vanishes; nothing in a pipe."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(f"{name}: training D", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=images)
        yield lambda shown: bar.advance(task, shown)


def how(options: Options) -> str:
    """How every number was obtained."""
    first, last = seeds(options)[0], seeds(options)[-1]
    which = f"seeds {first}–{last}" if last > first else f"seed {first}"
    return (
        f"D: disc_div={options.disc_div}, architecture={ARCHITECTURE}, {options.images:,} images in batches of "
        f"{options.batch_size:,}, Adam lr={options.lr:g} falling to 0, {which}; "
        f"{options.held_out:,} held-out draws of p and of q per seed."
    )


def divergence_table(findings: Sequence[Finding]) -> Table:
    """A row a divergence: truth, bound, plug-in estimate and verdict."""
    left, right = ("divergence", "true, by"), ("true", "bound", "±", "exact ±", "reached", "plug-in", "plug-in ±")
    heads = (left[0], right[0], left[1], *right[1:], "verdict")
    rows = [
        (
            each.name,
            shown(each.truth.value),
            each.truth.method,
            shown(each.bound.mean),
            error(each.bound.error),
            error(each.truth.standard_error(each.draws)),
            reached(each),
            shown(each.estimate.mean),
            error(each.estimate.error),
            verdict(each),
        )
        for each in findings
    ]
    return table(heads, rows, right)


def ratio_table(result: Result) -> Table:
    """A row a reading of the ratio, beside its value for the exact one."""
    true = verification.true_ratio_values(result.case)
    rows = [
        (RATIO_NAMES[name], shown(true[name]), shown(reading.mean), error(reading.error))
        for name, reading in result.ratio.items()
    ]
    return table(("ratio", "exact", "learnt", "±"), rows, right=("exact", "learnt", "±"))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> Table:
    """Columns without a frame, those named in `right` aligned there; a name is never cut."""
    from rich.table import Table

    columns = Table(box=None, pad_edge=False)
    for head in heads:
        columns.add_column(head, justify="right" if head in right else "left", no_wrap=head == heads[0])
    for row in rows:
        columns.add_row(*row)
    return columns


def verdict(finding: Finding) -> str:
    """What the comparison says, in a word or two."""
    if finding.exceeds:
        return "EXCEEDS"
    if math.isinf(finding.truth.value):
        return "holds: true is ∞"
    return "not judged" if math.isinf(finding.allowed) else "holds"


def reached(finding: Finding) -> str:
    """The bound as a share of the truth, where both are positive numbers."""
    share = finding.bound.mean / finding.truth.value
    return f"{share:.1%}" if share > 0 else ""


def shown(value: float) -> str:
    """A number to four decimals, a large one to three digits, or ∞."""
    text = f"{value:.4f}" if abs(value) < 1000 else f"{value:.3g}"
    return text.replace("inf", "∞").replace("-", "−")


def error(value: float) -> str:
    """A standard error to two digits."""
    return f"{value:.2g}".replace("inf", "∞")


# ---------------------------------------------------------------------------------------------------------------------
# On the disk


@contextmanager
def writing(out: Path | None) -> Iterator[None]:
    """Turn an OSError into one sentence about `out`."""
    try:
        yield
    except OSError as failure:
        raise StorageError(f"out={out} cannot be written: {failure.strerror or failure}") from failure


def written(results: Mapping[str, Result], options: Options, out: Path | None) -> Iterator[str]:
    """Write the numbers and the figure where `out` says, and say so."""
    if out is None:
        return
    from gantrain.theory import verification_plots

    with writing(out):
        write_whole(out / "verify.json", json.dumps(document(results, options), indent=2, allow_nan=False) + "\n")
        verification_plots.save(list(results.values()), options.seed, out / "log_ratio.png")
    yield f"\nverify.json and log_ratio.png are in {out}"


def document(results: Mapping[str, Result], options: Options) -> dict[str, Any]:
    """Everything that was printed, and with what it was made; null for what is infinite."""
    import torch

    from gantrain.seeding import made_with

    return {
        "options": asdict(options) | {"architecture": ARCHITECTURE},
        "made_with": made_with(torch.device("cpu")),
        "allowed_standard_errors": ALLOWED_ERRORS,
        "cases": {name: recorded(result) for name, result in results.items()},
    }


def recorded(result: Result) -> dict[str, Any]:
    """One case."""
    true = verification.true_ratio_values(result.case)
    return {
        "densities": result.case.title,
        "divergences": {each.name: recorded_finding(each) for each in result.findings},
        "ratio": {name: {"exact": true[name]} | recorded_reading(read) for name, read in result.ratio.items()},
    }


def recorded_finding(finding: Finding) -> dict[str, Any]:
    """One divergence of one case."""
    return {
        "true": finite(finding.truth.value),
        "true_by": finding.truth.method,
        "bound": recorded_reading(finding.bound),
        "exact_ratio_standard_error": finite(finding.truth.standard_error(finding.draws)),
        "plug_in": recorded_reading(finding.estimate),
        "verdict": verdict(finding),
    }


def recorded_reading(reading: Reading) -> dict[str, float | None]:
    """A mean and its standard error."""
    return {"mean": finite(reading.mean), "standard_error": finite(reading.error)}


def finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
