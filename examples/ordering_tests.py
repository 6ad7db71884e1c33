"""The tables and the registered tests of examples/ordering.py."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from ordering import DIVERGENCES, GAMES, VARIANTS, Game
from ordering_learnt import LEARNT, MOMENTS
from scipy import stats

ORDER = ("softened_reverse_kl", "reverse_kl", "js", "kl", "pearson")
Numbers = dict[str, dict[Game, NDArray[np.float64]]]  # name → objective → a value for each seed


def read(path: Path, games: list[Game]) -> Numbers:
    """Return what a part has written."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: {game: np.array(row, dtype=float) for game, row in zip(games, rows, strict=True)}
        for name, rows in found.items()
    }


def print_results(out: Path) -> None:
    """Print a table for each part in OUT, and the registered tests, and write OUT/ordering.csv."""
    parts = {
        path.stem: read(path, LEARNT if path.stem.startswith("learnt") else GAMES)
        for path in sorted(
            out.glob("*-*.json"), key=lambda path: (path.stem.split("-")[0], int(path.stem.split("-")[1]))
        )
    }
    for name, numbers in parts.items():
        print(f"\n{name}\n")
        for line in snapshot_rows(numbers) if name.startswith("snapshot") else rows(numbers):
            print(f"| {' | '.join(line)} |")
    exact = {name: numbers["coverage"] for name, numbers in parts.items() if name.startswith("exact")}
    print_family("A: Page's test of increasing coverage", trends(exact, VARIANTS, ORDER))
    print_family("B: lower under ratio than under matched normalised", compare_ratio(exact))
    print_family("C: tempered minus normalised", compare_tempering(exact))
    learnt = {name: numbers["coverage"] for name, numbers in parts.items() if name.startswith("learnt")}
    short = tuple(name for name in ORDER if name in {game.divergence for game in LEARNT})
    print_family("D: Page's test, D learnt", trends(learnt, ("plain", "tempered"), short))
    last = f"coverage@{MOMENTS[-1]}"
    snapshots = {name: numbers[last] for name, numbers in parts.items() if name.startswith("snapshot")}
    print_family("E: Page's test, one D", trends(snapshots, VARIANTS, ORDER))
    write_csv(out / "ordering.csv", parts)


def rows(numbers: Numbers) -> Iterator[list[str]]:
    """Yield the lines of a table: means over seeds, and medians of what may be very large."""
    quadrature = "kl_quadrature" in numbers
    yield ["divergence", "variant", "coverage", "modes", "KL(p‖q)", "KL(q‖p)"]
    yield ["---"] * 6
    for game in numbers["coverage"]:
        coverage = numbers["coverage"][game]
        cells = [f"`{game.divergence}`", game.variant, format_mean(coverage), f"{numbers['modes'][game].mean():.2f}"]
        for name in ("kl", "reverse_kl"):
            values, errors = numbers[name][game], numbers[f"{name}_error"][game]
            if quadrature:
                wide = numbers["narrowest"][game] >= 0.1
                values = np.where(wide, numbers[f"{name}_quadrature"][game], values)
                errors = np.where(wide, 0, errors)
            middle = np.argsort(values)[len(values) // 2]
            error = f" ± {errors[middle]:.2g}" if errors[middle] else ""
            cells.append(f"{values[middle]:.4g}{error}")
        yield cells


def snapshot_rows(numbers: Numbers) -> Iterator[list[str]]:
    """Yield the lines of the table of part (c)."""
    moments = [str(step) for step in MOMENTS]
    yield ["divergence", "variant", *(f"coverage at {m}" for m in moments), *(f"D at {m}" for m in moments)]
    yield ["---"] * (2 + 2 * len(moments))
    for game in GAMES:
        coverage = [format_mean(numbers[f"coverage@{moment}"][game]) for moment in moments]
        output = [f"{numbers[f'output@{moment}'][game].mean():.3g}" for moment in moments]
        yield [f"`{game.divergence}`", game.variant, *coverage, *output]


def format_mean(values: NDArray[np.float64]) -> str:
    """Return mean ± standard deviation over seeds."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


# ---------------------------------------------------------------------------------------------------------------------
# Tests: each yields a label and a p-value


def trends(
    parts: dict[str, dict[Game, NDArray[np.float64]]], variants: tuple[str, ...], order: tuple[str, ...]
) -> Iterator[tuple[str, float]]:
    """Yield Page's test of increasing numbers in `order`, for every part and variant."""
    for name, numbers in parts.items():
        for variant in variants:
            table = np.stack([numbers[Game(each, variant)] for each in order], 1)
            ranks = stats.rankdata(table, axis=1).mean(0)
            result = stats.page_trend_test(table, method="asymptotic")
            means = " ".join(f"{rank:.2f}" for rank in ranks)
            yield f"{name} {variant}, mean ranks {means}", float(result.pvalue)


def compare_ratio(parts: dict[str, dict[Game, NDArray[np.float64]]]) -> Iterator[tuple[str, float]]:
    """Yield signed-rank tests of `ratio` below `matched` normalised."""
    for name, numbers in parts.items():
        for each in ("js", "kl", "pearson", "jeffreys"):
            difference = numbers[Game(each, "ratio")] - numbers[Game(each, "normalised")]
            result = stats.wilcoxon(difference, alternative="less")
            yield f"{name} {each}, mean difference {difference.mean():+.3f}", float(result.pvalue)


def compare_tempering(parts: dict[str, dict[Game, NDArray[np.float64]]]) -> Iterator[tuple[str, float]]:
    """Yield paired t-tests of tempered against normalised weights."""
    for name, numbers in parts.items():
        for each in ("kl", "pearson"):
            difference = numbers[Game(each, "tempered")] - numbers[Game(each, "normalised")]
            yield (
                f"{name} {each}, mean difference {difference.mean():+.3f}",
                float(stats.ttest_1samp(difference, 0).pvalue),
            )


def adjust_holm(p_values: list[float]) -> list[float]:
    """Return Holm's adjusted p-values (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def print_family(title: str, tests: Iterator[tuple[str, float]]) -> None:
    """Print the tests of a family with their p-values, raw and after Holm."""
    found = list(tests)
    if found:
        print(f"\n{title}\n")
        for (label, p), holm in zip(found, adjust_holm([p for _, p in found]), strict=True):
            print(f"  {label}: p {p:.3g}, Holm {holm:.3g}{' *' if holm < 0.05 else ''}")


def write_csv(path: Path, parts: dict[str, Numbers]) -> None:
    """Write coverage of every run: a line for each part, objective and seed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["part", "divergence", "variant", "seed", "number", "value"])
        for part, numbers in parts.items():
            for name in (name for name in numbers if name.startswith("coverage")):
                for game in sorted(numbers[name], key=lambda game: (DIVERGENCES.index(game.divergence), game.variant)):
                    for seed, value in enumerate(numbers[name][game]):
                        writer.writerow([part, *game, seed, name, f"{value:.6g}"])
