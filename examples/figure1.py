r"""The end of training of a Gaussian generator, compared with theory (Poole et al. 2016, figure 1).

    gantrain train -m experiment=figure1 gen_div=kl,reverse_kl gen_objective=matched,ratio seed=0,1 run_dir=SWEEP
    .venv/bin/python examples/figure1.py SWEEP

prints a verdict for every finished run in the folder, or for the folder itself if it is a run, then a table over seeds,
and draws FOLDER/figure1-GEN_OBJECTIVE.png, the Gaussians that were trained.

On a mixture of Gaussians on the line, x = μ + σz has two parameters. Quadrature gives the best Gaussian under a
divergence (`fit_gaussian`) and the end of gradient descent with the exact ratio from the generator's start
(`follow_loss`). Training with samples should end in the same way:

- It **rests** where the exact flow rests: under `matched` at a local minimum of D_f, under the other objectives at one
  of the function that their loss descends. The distance is measured in standard deviations of that Gaussian (μ*, σ*),
  near which KL ≈ ((Δμ)² + 2 (Δσ)²) / 2σ*²:

      distance = √((μ − μ*)² + (σ − σ*)²) / σ*

- It **collapses** or **diverges** if the exact flow does, possibly at another mean: D learns a narrow q late, and a
  collapsed generator moves about.

Theory **promises nothing** if D estimates something else than log p/q, if the samples' weights are rescaled, if the
exact flow has no end, or if a sample's gradient has no variance, so that the means of batches do not converge. A loss
that grows like e^{c r} has a variance if ∫ p^{2c} q^{1−2c} dx is finite. Neyman's χ², c = −1, has none if 3/b < 2/a for
the largest variances a of p and b of q.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

import gantrain
from gantrain.data.mixtures import Mixture, gaussian, mixture1d
from gantrain.objectives.objective import GENERATOR_OBJECTIVES
from gantrain.theory import plots, properties
from gantrain.theory.gaussian_fit import OUTCOMES, Ending, Fit, fit_gaussian, follow_loss
from gantrain.theory.quadrature import Loss, growth_exponents, is_integrable

START = (0.0, 1.0)  # where an affine generator begins
# The largest distance of a run at rest. It was at most 0.013 in the 36 runs of docs/results/figure1.md; the standard
# deviation of μ over seeds is 0.006, the noise of an average over 1,000 batches. This is five times that, a KL below
# 0.001.
TOLERANCE = 0.03
# Collapsed: narrower than the data's narrowest component by this factor. Diverged: wider than the data by this factor,
# or at this distance in standard deviations of the data. No exact flow rests there.
LOST = 3.0
PROMISED = ("rests", "collapses", "diverges")
HEADS = ["`gen_div`", "`gen_objective`", "seeds", "μ", "σ", "exact flow", "best Gaussian", "distance", "as promised"]


def main(arguments: list[str]) -> int:
    """Judge every finished run in the folders, print the table and draw the figures."""
    verdicts: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for folder in arguments:
        for path in sorted(Path(folder).rglob("summary.json")):
            if (verdict := judge_run(path.parent)) is not None:
                print(f"{path.parent}: {verdict.describe()}")
                verdicts[verdict.gen_objective, verdict.gen_div].append(verdict)
    if not verdicts:
        print(__doc__, file=sys.stderr)
        return 2
    print()
    for cells in (HEADS, ["---"] * len(HEADS), *map(table_row, verdicts.values())):
        print(f"| {' | '.join(cells)} |")
    draw_figures(verdicts, Path(arguments[0]))
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# The verdict


class Verdict(NamedTuple):
    """(μ, σ) reached by training, how the exact flow from the same start ends, and the global optimum of D_f.

    `distance` is the distance to the flow's rest, None if it has none. `doubt` is the reason why theory promises
    nothing, or empty. `kept` tells whether the run ended as promised, None if nothing is promised.
    """

    gen_div: str
    gen_objective: str
    p: Mixture
    reached: tuple[float, float]
    flow: Ending
    optimum: Fit
    distance: float | None
    doubt: str
    kept: bool | None

    def describe(self) -> str:
        """Return the three Gaussians, the promise of theory, and whether the run ended as promised."""
        at = f" at {format_gaussian(self.flow.mean, self.flow.std)}" if self.distance is not None else ""
        text = (
            f"ended at (μ, σ) = {format_gaussian(*self.reached)}; with the exact ratio, from the same start, it "
            f"{self.flow.outcome}{at}; best Gaussian under the divergence: {format_gaussian(*self.optimum[:2])}; "
        )
        if self.doubt:
            return f"{text}theory promises nothing here: {self.doubt}"
        if self.distance is None:
            return f"{text}theory promises that it {self.flow.outcome}, and it {'does' if self.kept else 'DOES NOT'}"
        return (
            f"{text}theory promises that it rests there: it is {self.distance:.3f} standard deviations away, "
            f"{'within' if self.kept else 'OUTSIDE'} the tolerance of {TOLERANCE:g}"
        )


def judge_run(run: Path) -> Verdict | None:
    """Return the verdict on a finished run of an affine generator on a mixture on the line; None for other runs.

    A run with a critic is another one, too.
    """
    settings = OmegaConf.load(run / ".hydra" / "config.yaml")
    status = json.loads((run / "summary.json").read_text(encoding="utf-8")).get("status")
    assert isinstance(settings, DictConfig)
    if status != "finished" or (settings.dataset.name, settings.architecture.name) != ("mixture1d", "affine"):
        return None
    if settings.disc_div.name == "own":
        return None
    components = {key: settings.dataset[key] for key in ("weights", "means", "stds")}
    p = mixture1d(**{key: list(values) for key, values in components.items() if values is not None})
    trained = gantrain.load(run)
    at_zero, at_one = trained.generator()(torch.tensor([[0.0], [1.0]])).flatten().tolist()
    objective, affine = trained.settings.objective, settings.gen_div.affine
    if affine:
        objective.gen_div = replace(objective.gen_div, name=f"{objective.gen_div.name}, affine={affine:g}")
    regularizers = [one.name for one in trained.settings.regularizers]
    return judge(objective, p, (at_zero, abs(at_one - at_zero)), regularizers)


def judge(
    objective: gantrain.Objective, p: Mixture, reached: tuple[float, float], regularizers: Sequence[str] = ()
) -> Verdict:
    """Return the verdict on a run on data `p` that ended at `reached` = (μ, σ) under named regularizers."""
    loss = Loss(objective.gen_div, *GENERATOR_OBJECTIVES[objective.gen_objective])
    flow = follow_loss(loss, p, START)
    doubt = find_doubt(objective, p, flow, regularizers)
    return Verdict(
        objective.gen_div.name,
        objective.gen_objective,
        p,
        reached,
        flow,
        optimum=fit_gaussian(objective.gen_div, p),
        distance=measure_distance(reached, flow) if flow.outcome == "rests" else None,
        doubt=doubt,
        kept=None if doubt else has_ended_like(flow, p, reached),
    )


def find_doubt(objective: gantrain.Objective, p: Mixture, flow: Ending, regularizers: Sequence[str] = ()) -> str:
    """Return the reason why theory promises nothing, or an empty string."""
    if not objective.head.has_log_ratio:
        return "this discriminator gives no log-ratio"
    if objective.head.invalid is not None:
        return "this head clips the ratio, and the tails beyond have a share in where a flow ends"
    if regularizers:
        return "a regularized discriminator estimates something else than log p/q"
    if objective.weighting.is_on:
        return (
            "with rescaled weights of its samples G follows another loss; gen_weights.normalise=false follows this one"
        )
    if flow.outcome not in PROMISED:
        return f"the exact flow {flow.outcome}: {OUTCOMES[flow.outcome]}"
    loss = Loss(objective.gen_div, *GENERATOR_OBJECTIVES[objective.gen_objective])
    passed = {"at the start": START} | ({"at the rest": (flow.mean, flow.std)} if flow.outcome == "rests" else {})
    for place, (mean, std) in passed.items():
        if not has_variance(loss, p, gaussian(mean, std)):
            return f"{place} a sample's gradient has an infinite variance, so that a batch's mean says little"
    return ""


def has_variance(loss: Loss, p: Mixture, q: Mixture) -> bool:
    """Return whether a sample's gradient has a variance under q: ∫ p^{2c} q^{1−2c} dx is finite for h ~ e^{c r}."""
    low, high = growth_exponents(loss.divergence, loss.part)
    if loss.part == "f" and properties.value_range(loss.divergence.real)[1] == 0:  # only F grows like u there
        high = growth_exponents(loss.divergence, "fake")[1]
    return is_integrable(2 * low, p, q) and is_integrable(2 * high, p, q)


def measure_distance(reached: tuple[float, float], rest: Ending) -> float:
    """Return √((μ − μ*)² + (σ − σ*)²) / σ*."""
    return math.hypot(reached[0] - rest.mean, reached[1] - rest.std) / rest.std


def has_ended_like(flow: Ending, p: Mixture, reached: tuple[float, float]) -> bool:
    """Return whether a Gaussian is an end like that of `flow`, or beyond the flow's last Gaussian."""
    mean, std = reached
    if flow.outcome == "rests":
        return measure_distance(reached, flow) <= TOLERANCE
    if flow.outcome == "collapses":
        return std <= max(flow.std, min(p.stds) / LOST)
    reach = max(abs(flow.mean - p.mean), flow.std)
    return max(abs(mean - p.mean), std) >= min(reach, LOST * p.std)


# ---------------------------------------------------------------------------------------------------------------------
# The table and the figures


def table_row(verdicts: list[Verdict]) -> list[str]:
    """Return the cells of one game over its seeds; (μ, σ) as mean ± standard deviation, the largest distance."""
    first = verdicts[0]
    flow, kept = first.flow, sum(verdict.kept is True for verdict in verdicts)
    distances = [verdict.distance for verdict in verdicts if verdict.distance is not None]
    return [
        f"`{first.gen_div}`",
        f"`{first.gen_objective}`",
        str(len(verdicts)),
        *(format_spread(values) for values in zip(*(verdict.reached for verdict in verdicts), strict=True)),
        format_gaussian(flow.mean, flow.std) if distances else flow.outcome,
        format_gaussian(*first.optimum[:2]),
        f"{max(distances):.4f}" if distances else "",
        "nothing promised" if first.doubt else f"{kept} of {len(verdicts)}",
    ]


def format_spread(values: tuple[float, ...]) -> str:
    """Return mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}".replace("-", "−")


def format_gaussian(mean: float, std: float) -> str:
    """Return (μ, σ) as text."""
    return f"({mean:z.4f}, {std:.4f})".replace("-", "−")


def draw_figures(verdicts: dict[tuple[str, str], list[Verdict]], folder: Path) -> None:
    """Draw the trained Gaussians of each generator objective, means over seeds, over the data of the first run."""
    curves: dict[str, list[plots.Curve]] = defaultdict(list)
    for (gen_objective, gen_div), runs in verdicts.items():
        mean, std = (statistics.mean(values) for values in zip(*(run.reached for run in runs), strict=True))
        collapsed = std <= min(runs[0].p.stds) / LOST
        curves[gen_objective].append(plots.Curve(gen_div, mean, std, collapsed))
    p = next(iter(verdicts.values()))[0].p
    for gen_objective, found in curves.items():
        title = f"trained with gen_objective={gen_objective}"
        plots.save_fits(p, found, folder / f"figure1-{gen_objective}.png", title)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
