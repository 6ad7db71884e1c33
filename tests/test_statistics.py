"""What the seeds can show: planted numbers against arithmetic by hand and SciPy, and the false alarms of equal ones."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Answer
from scipy import stats
from support.run_folders import make_run
from support.terminals import set_console_width

from gantrain import api
from gantrain.comparison import report, statistics, tables
from gantrain.comparison.comparison import Comparison, compare
from gantrain.comparison.configurations import Configuration
from gantrain.comparison.rows import finding_rows, run_rows
from gantrain.comparison.runs import Run
from gantrain.comparison.statistics import LEVEL, Difference, Finding, find_differences, find_trends
from gantrain.errors import ConfigError

PRECISION, FID = "quality/precision", "quality/fid_classifier"
FAILED = math.nan


def make_configuration(
    number: int, values: Sequence[float | None], metric: str = PRECISION, **keys: str
) -> Configuration:
    """A configuration with a run for each value, of the seeds 0, 1, ….

    `FAILED` is a run that failed, None one that is not measured, and inf a number that is null in evaluation.json.
    """
    runs = []
    for seed, value in enumerate(values):
        measured = {} if value is None else {metric: None if math.isinf(value) else value}
        is_failed = value is not None and math.isnan(value)
        evaluation = {} if is_failed else {"metrics": measured}
        summary = {"status": "failed" if is_failed else "finished"}
        runs.append(Run(Path(f"{number}-{seed}"), {"seed": str(seed)}, [], summary, evaluation, []))
    return Configuration(number, " ".join(keys.values()) or f"c{number}", keys, runs)


def measure(ours: Sequence[float | None], theirs: Sequence[float | None], metric: str = PRECISION) -> Difference:
    baseline, other = (make_configuration(number, each, metric) for number, each in ((1, theirs), (2, ours)))
    (found,) = find_differences([baseline, other], baseline, [metric])
    return found


def show(folder: Path, values: dict[str, Sequence[float | None]], metric: str = PRECISION) -> Comparison:
    """A comparison of runs in a folder; `FAILED` is a run that failed."""
    for name, each in values.items():
        for seed, value in enumerate(each):
            is_failed = value is not None and math.isnan(value)
            evaluation = None if is_failed else {"metrics": {metric: value}}
            status = {"status": "failed", "reason": "inf"} if is_failed else {}
            make_run(folder / f"{name}-{seed}", {"gen_div": {"name": name}, "seed": seed}, {}, evaluation, **status)
    return compare([folder])


# ---------------------------------------------------------------------------------------------------------------------
# Paired differences


def test_three_differences_by_hand() -> None:
    """Differences 1, 2 and 3: mean 2, deviation 1, t = 2√3 with two degrees of freedom, whose quantile is 4.3027."""
    found = measure([11, 22, 33], [10, 20, 30])
    assert (found.test, found.seeds) == ("paired t", 3)
    assert found.estimate is not None
    assert found.estimate.mean == 2
    assert found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-5)
    assert found.high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-5)
    t = 2 * math.sqrt(3)  # of two degrees of freedom, P(|T| > t) = 1 − t/√(2 + t²)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert found.text == "2.0 [−0.5, 4.5]"


@pytest.mark.parametrize(("metric", "sign"), [(PRECISION, 1), (FID, -1)])
def test_the_paired_t_test_is_scipys_of_common_seeds(metric: str, sign: int) -> None:
    random = np.random.default_rng(0)
    theirs = random.normal(size=8)
    ours = theirs + random.normal(0.9, 0.3, size=8)
    found = measure([*ours, 7.0, None], [*theirs, None, None], metric)
    expected = stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert found.seeds == 8
    assert found.p == found.holm_p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.improves == (sign > 0)
    assert found.verdict == ("better" if sign > 0 else "worse")


def test_a_run_that_is_not_measured_has_no_pair_and_is_no_failure() -> None:
    found = measure([1.0, None, 3.0], [0.5, 0.5, 0.6])
    assert (found.seeds, found.failed, found.test) == (2, (0, 2), "paired t")
    assert measure([None, 2.0], [1.0, None]).verdict == "not decidable"
    assert measure([1.0], [2.0]).verdict == "not decidable"
    assert measure([1.0], [2.0]).text == "−1"


def test_equal_differences_are_ranked() -> None:
    """The t test of differences without a deviation would be certain of any."""
    assert measure([2, 3, 4], [1, 2, 3]).verdict == "not decidable"
    found = measure([0.1 + 0.2, *[x + 0.2 for x in (0.3, 0.5, 0.7, 0.9, 1.1)]], [0.1, 0.3, 0.5, 0.7, 0.9, 1.1])
    assert (found.test, found.p) == ("signed-rank", pytest.approx(2 / 2**6))
    assert measure([1] * 6, [1] * 6).p == 1


# ---------------------------------------------------------------------------------------------------------------------
# Failures


def enumerate_signed_ranks(changes: Sequence[float]) -> float:
    """The two-sided p-value of the signed-rank sum over all signs."""
    nonzero = np.array([change for change in changes if change])
    ranks = stats.rankdata(np.abs(nonzero))
    sums = [abs((ranks * signs).sum()) for signs in itertools.product((-1, 1), repeat=len(nonzero))]
    return float(np.mean(np.array(sums) >= abs((ranks * np.sign(nonzero)).sum()) - 1e-9))


@pytest.mark.parametrize(
    ("ours", "theirs", "changes"),
    [
        ([FAILED, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1], [-9, 1, 2, 3, 4, 5]),
        ([FAILED, FAILED, 3, 4, 5, 6, 7], [1, 1, 1, 1, 1, 1, 1], [-9, -9, 2, 3, 4, 5, 6]),
        ([1, 1, 1, 1, 1, 1, 1], [FAILED, FAILED, 0, 0.5, 0.7, 0.8, 0.9], [9, 9, 1, 0.5, 0.3, 0.2, 0.1]),
        ([FAILED, FAILED, 3, 4, 5, 6, 7, 8], [FAILED, 1, 1, 1, 1, 1, 1, 1], [0, -9, 2, 3, 4, 5, 6, 7]),
        ([math.inf, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1], [-9, 1, 2, 3, 4, 5]),
    ],
)
def test_a_failure_ranks_below_every_number(
    ours: Sequence[float], theirs: Sequence[float], changes: Sequence[float]
) -> None:
    found = measure(ours, theirs)
    assert found.test == "signed-rank"
    assert found.p == pytest.approx(enumerate_signed_ranks(changes))
    assert found.improves == (np.sum(stats.rankdata(np.abs(changes)) * np.sign(changes)) > 0)
    assert found.low is found.high is found.estimate is None


@pytest.mark.parametrize("count", [6, 7, 9, 12])
def test_the_signed_rank_test_is_exact_with_ties(count: int) -> None:
    random = np.random.default_rng(count)
    for changes in random.integers(-3, 5, (9, count)).astype(float):
        found = statistics.rank_differences(measure([1.0], [0.0]), list(changes))
        assert found.p == pytest.approx(enumerate_signed_ranks(changes) if changes.any() else 1)


@pytest.mark.parametrize("count", range(13, 51))
def test_the_signed_rank_test_of_many_seeds_is_scipys_exact_one(count: int) -> None:
    changes = np.random.default_rng(count).normal(0.5, 1, count)
    found = statistics.rank_differences(measure([1.0], [0.0]), list(changes))
    assert found.p == pytest.approx(stats.wilcoxon(changes, method="exact").pvalue, rel=1e-9)


def test_of_a_metric_that_should_be_low_a_failure_is_the_worst_too() -> None:
    found = measure([FAILED, 1, 1, 1, 1, 1, 1], [5, 2, 3, 4, 5, 6, 7], FID)
    assert found.p == pytest.approx(enumerate_signed_ranks([-9, 1, 2, 3, 4, 5, 6]))
    assert found.improves


def test_the_share_of_failures_stands_in_place_of_the_interval() -> None:
    assert measure([FAILED, 1, 2, 3, 4], [0, 0, 0, 0, 0]).text == "1 of 5 failed"
    assert measure([FAILED, 1, 2, FAILED], [0, FAILED, 0, 0]).text == "2 of 4 failed,\nbaseline 1 of 4 failed"


def test_fewer_than_six_seeds_with_a_failure_decide_nothing() -> None:
    found = measure([FAILED, 11, 12, 13, 14], [0, 0, 0, 0, 0])
    assert (found.verdict, found.p, found.holm_p, found.more_seeds) == ("not decidable", None, None, None)
    assert measure([FAILED, 11, 12, 13, 14, 15], [0, 0, 0, 0, 0, 0]).holm_p is not None


def test_a_row_with_a_failure_is_not_marked_and_has_not_the_best_mean(tmp_path: Path) -> None:
    better = [FAILED, *(9.0 + 0.01 * seed for seed in range(13))]
    found = show(tmp_path, {"kl": [0.1 * seed for seed in range(14)], "js": better})
    (difference,) = (each for each in found.differences["quality"] if each.metric == PRECISION)
    assert difference.verdict == "better"
    assert found.baseline.label == "kl", "the first without a failure"
    assert found.find_better(PRECISION) == []
    assert found.best(PRECISION) == []


# ---------------------------------------------------------------------------------------------------------------------
# Holm's p-values, and how many seeds would decide


def test_p_values_are_adjusted_as_by_hand() -> None:
    def adjust(*values: float | None) -> list[float | None]:
        findings = [Finding(metric=PRECISION, seeds=8, test="Page", p=p) for p in values]
        return [found.holm_p for found in statistics.adjust_by_holm(findings)]

    assert adjust(0.01, 0.04, 0.03) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust(0.04, 0.03, 0.01, 0.005) == pytest.approx([0.06, 0.06, 0.03, 0.02])
    assert adjust(0.5, 0.9) == [1, 1]
    assert adjust(0.02, None, None) == [pytest.approx(0.06), None, None], "a test that decides nothing counts"


@pytest.mark.parametrize(("mean", "seeds", "tests"), [(0.5, 3, 1), (1.0, 3, 4), (0.3, 6, 2), (2.0, 3, 5)])
def test_so_many_more_seeds_would_decide(mean: float, seeds: int, tests: int) -> None:
    """With these and no fewer, if mean and deviation stay as they are; others of the table are already decided."""
    changes = stats.zscore(np.arange(seeds), ddof=1) + mean
    others = [Finding(metric=PRECISION, seeds=9, test="Page", p=0.9) for _ in range(tests - 1)]
    first = measure(list(changes), [0.0] * seeds)
    found, *_ = statistics.adjust_by_holm([first, *others])
    assert found.more_seeds is not None

    def p(count: float) -> float:
        return float(2 * stats.t.sf(mean * math.sqrt(count), count - 1))

    assert first.p == pytest.approx(p(seeds))
    assert tests * p(seeds + found.more_seeds) <= LEVEL < tests * p(seeds + found.more_seeds - 1)
    number = f"{found.more_seeds:.0f} more seed"
    assert re.fullmatch(f"about {number}s? would decide", found.verdict)


def test_a_tiny_difference_would_take_too_many_seeds() -> None:
    assert measure([1.0, -1.0, 0.001], [0.0, 0.0, 0.0]).verdict == "over 100 more seeds would decide"
    assert measure([FAILED, 1, -1, 2, -2, 3, -3, FAILED], [0, 0, 0, 0, 0, 0, FAILED, 0]).more_seeds == math.inf


def test_seeds_of_a_signed_rank_test_grow_with_the_square_of_its_deviate() -> None:
    found = measure([FAILED, 2, 3, 4, 5, 6, 7, 8], [1] * 8)
    assert found.p is not None
    assert found.more_seeds == math.ceil(8 * (stats.norm.isf(0.025) / stats.norm.isf(found.p / 2)) ** 2) - 8


# ---------------------------------------------------------------------------------------------------------------------
# Trends


def enumerate_page(rows: np.ndarray) -> float:
    """The two-sided p-value of Page's L over all orders of the ranks within each row, doubled."""
    ranks, places = stats.rankdata(rows, axis=1), np.arange(1, rows.shape[1] + 1)
    orders = [sum(a * b for a, b in zip(order, places, strict=True)) for order in itertools.permutations(places)]
    sums = np.array([sum(each) for each in itertools.product(orders, repeat=len(rows))])
    found = float((ranks * places).sum())
    return min(1.0, 2 * min(np.mean(sums >= found), np.mean(sums <= found)))


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([[1, 2, 3], [2, 3, 5], [1, 4, 6]], "improves"),
        ([[3, 2, 1], [5, 3, 2], [7, 4, 1]], "worsens"),
        ([[1, 2, 3], [3, 2, 1], [1, 3, 2]], "over 100 more seeds would decide"),
        ([[1, 2, 3], [1, 3, 2], [2, 1, 3]], "about 4 more seeds would decide"),
        ([[1, 2, 3, 4]], "not decidable"),
    ],
)
def test_a_trend_is_pages_test_of_all_orders(rows: list[list[float]], verdict: str) -> None:
    columns = np.array(rows, dtype=float).T
    configurations = [
        make_configuration(number, list(values), gen_div=f"alpha_{number / 4}") for number, values in enumerate(columns)
    ]
    (found,) = find_trends(configurations[::-1], [PRECISION])
    assert found.verdict == verdict
    assert found.values == [f"alpha_{number / 4}" for number in range(len(columns))]
    if len(rows) > 1:
        assert found.p == pytest.approx(enumerate_page(np.array(rows)))
    if found.more_seeds and math.isfinite(found.more_seeds):
        needed = (stats.norm.isf(0.025) / stats.norm.isf(found.p / 2)) ** 2
        assert found.more_seeds == math.ceil(len(rows) * needed) - len(rows)


def test_a_trend_of_failures_worsens() -> None:
    columns = [[5, 5, 5, 5], [4, 3, 4, 4], [FAILED, FAILED, 1, FAILED]]
    configurations = [
        make_configuration(number, values, FID, lr=f"1e-{4 - number}") for number, values in enumerate(columns)
    ]
    (found,) = find_trends(configurations, [FID])
    expected = np.array([[5, 4, 99], [5, 3, 99], [5, 4, 1], [5, 4, 99]], dtype=float)
    assert found.p == pytest.approx(enumerate_page(expected))
    assert found.improves == (np.mean(stats.rankdata(expected, axis=1)[:, 2]) < 2)


def test_trends_are_along_ordered_keys_of_configurations_that_share_the_others() -> None:
    grid = [
        (name, objective, rate)
        for name in ("kl", "alpha_-0.5", "alpha_0.25", "alpha_1", "beta_1", "beta_2")
        for objective in ("matched", "ratio")
        for rate in ("0.001", "2e-2")
    ]
    configurations = [
        make_configuration(number, [1.0, 2.0], gen_div=name, gen_objective=objective, lr=rate)
        for number, (name, objective, rate) in enumerate(grid)
    ]
    found = find_trends(configurations, [PRECISION])
    assert [each.values for each in found] == 4 * [["alpha_-0.5", "alpha_0.25", "alpha_1"]]
    shared = [{(c.values["gen_objective"], c.values["lr"]) for c in each.configurations} for each in found]
    assert {group for (group,) in shared} == set(itertools.product(("matched", "ratio"), ("0.001", "2e-2")))


# ---------------------------------------------------------------------------------------------------------------------
# False alarms


def count_alarms(tables: Iterable[Sequence[Finding]]) -> tuple[int, int]:
    """The number of tables that name a difference, and of all."""
    alarms = [any(not found.missing_evidence for found in table) for table in tables]
    return sum(alarms), len(alarms)


def assert_at_the_level(alarms: int, total: int) -> None:
    """No more than chance explains once in a thousand."""
    assert alarms <= stats.binom.isf(1e-3, total, LEVEL)


@pytest.mark.parametrize(("seeds", "failures"), [(3, 0.0), (6, 0.15), (8, 0.3)])
def test_equal_configurations_are_named_at_most_at_the_level(seeds: int, failures: float) -> None:
    """Runs of a seed share much of their numbers, four configurations the baseline, and failures ties."""
    random = np.random.default_rng(seeds)

    def draw() -> list[Difference]:
        values = random.standard_t(4, size=(4, seeds)) + 3 * random.normal(size=seeds)
        values[random.random(values.shape) < failures] = FAILED
        configurations = [make_configuration(number, list(each)) for number, each in enumerate(values)]
        return find_differences(configurations, configurations[0], [PRECISION])

    alarms, total = count_alarms(draw() for _ in range(400))
    assert_at_the_level(alarms, total)


@pytest.mark.parametrize(("seeds", "levels", "failures"), [(3, 3, 0.0), (6, 4, 0.2), (4, 12, 0.1)])
def test_equal_levels_have_a_trend_at_most_at_the_level(seeds: int, levels: int, failures: float) -> None:
    random = np.random.default_rng(seeds)

    def draw() -> Sequence[Finding]:
        values = random.normal(size=(levels, seeds)) + 3 * random.normal(size=seeds)
        values[random.random(values.shape) < failures] = FAILED
        configurations = [make_configuration(number, list(each), lr=str(number)) for number, each in enumerate(values)]
        return find_trends(configurations, [PRECISION])

    alarms, total = count_alarms(draw() for _ in range(400))
    assert_at_the_level(alarms, total)


def test_a_difference_is_found() -> None:
    random = np.random.default_rng(0)
    shared = 3 * random.normal(size=5)
    configurations = [
        make_configuration(number, list(shared + random.normal(0, 0.1, size=5) + number)) for number in range(4)
    ]
    assert {each.verdict for each in find_differences(configurations, configurations[0], [PRECISION])} == {"better"}


# ---------------------------------------------------------------------------------------------------------------------
# The baseline


def test_the_baseline_is_a_label_a_number_or_words(tmp_path: Path) -> None:
    for number, (name, objective) in enumerate(itertools.product(("kl", "js"), ("matched", "ratio"))):
        make_run(tmp_path / f"{number}", {"gen_div": {"name": name}, "gen_objective": objective}, evaluation={})
    chosen = {text: compare([tmp_path], text).baseline.label for text in ("kl ratio", "3", "js ratio", "ratio js")}
    assert chosen == {"kl ratio": "kl ratio", "3": "js matched", "js ratio": "js ratio", "ratio js": "js ratio"}
    assert compare([tmp_path]).baseline.label == "kl matched"
    with pytest.raises(ConfigError, match=r"baseline=kll is not one of the choices.*\n  choices: .*1: kl matched"):
        compare([tmp_path], "kll")
    with pytest.raises(ConfigError, match="baseline=kl is not one of the choices"):
        compare([tmp_path], "kl")


def test_a_label_that_is_a_number_comes_before_the_number(tmp_path: Path) -> None:
    for size in (4, 2, 1):
        make_run(tmp_path / f"{size}", {"latent": {"size": size}}, evaluation={})
    labels = [each.label for each in compare([tmp_path]).configurations]
    assert labels == ["1", "2", "4"]
    assert compare([tmp_path], "4").baseline.label == "4"
    assert compare([tmp_path], "3").baseline.label == "4"


def test_the_first_configuration_without_a_failure_is_the_baseline(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"gen_div": {"name": "kl"}}, status="failed")
    make_run(tmp_path / "b", {"gen_div": {"name": "js"}}, evaluation={})
    assert compare([tmp_path]).baseline.label == "js"


# ---------------------------------------------------------------------------------------------------------------------
# What is shown

DECIDED = {
    "kl": [0.50, 0.52, 0.47, 0.51],
    "js": [0.71, 0.72, 0.68, 0.70],
    "pearson": [0.52, 0.51, 0.50, 0.50],
}


def test_the_best_mean_that_is_not_better_says_what_would_decide(tmp_path: Path) -> None:
    found = show(tmp_path / "a", {"kl": DECIDED["kl"], "pearson": DECIDED["pearson"]})
    (table,) = (each for each in tables.metric_tables(found) if each.group == "quality")
    column = table.metrics.index(PRECISION)
    cells = [row.numbers[column] for row in table.rows]
    assert not any(row.marks[column] for row in table.rows)
    kl, pearson = cells
    assert re.fullmatch(r"0\.50\d* ± 0\.02\d*", kl)
    assert re.fullmatch(r"0\.50\d* ± 0\.00\d*\n(about \d+|over 100) more seeds? would decide", pearson)


def test_what_is_better_is_marked_and_the_baseline_if_all_others_are_worse(tmp_path: Path) -> None:
    found = show(tmp_path, DECIDED)
    assert [each.label for each in found.find_better(PRECISION)] == ["js"]
    found = compare([tmp_path], "js")
    assert {each.verdict for each in found.differences["quality"] if each.metric == PRECISION} == {"worse"}
    assert [each.label for each in found.find_better(PRECISION)] == ["js"]
    assert found.describe_missing_evidence(found.baseline, PRECISION) == ""


def test_runs_that_cannot_be_ranked_are_not_tested(tmp_path: Path) -> None:
    found = show(tmp_path, DECIDED)
    assert list(found.differences) == ["quality", "diversity"]
    make_run(tmp_path / "other", {"seed": 9}, evaluation={"count": 7})
    assert compare([tmp_path]).differences == compare([tmp_path]).trends == {}


def make_alphas(folder: Path) -> None:
    """Configurations with a trend, a failure, and a second metric."""
    random = np.random.default_rng(1)
    shared = random.normal(0, 0.02, size=6)
    for number, (name, objective) in enumerate(itertools.product((0.25, 0.5, 0.75), ("matched", "ratio"))):
        for seed in range(6):
            value = 0.5 + 0.1 * name + shared[seed] + random.normal(0, 0.005)
            metrics = {PRECISION: value, FID: 10 - 5 * value, "quality/inception_score_classifier": 5.0 + value}
            settings = {"gen_div": {"name": f"alpha_{name}"}, "gen_objective": objective, "seed": seed}
            is_failed = number == 5 and seed == 0
            status = {"status": "failed", "reason": "inf"} if is_failed else {}
            make_run(
                folder / f"{number}{seed}-run", settings, {}, None if is_failed else {"metrics": metrics}, **status
            )


def test_terminal_page_file_and_python_agree(gantrain: Callable[..., Answer], tmp_path: Path) -> None:
    make_alphas(tmp_path / "s")
    answer = gantrain("compare", "s", "baseline=3")
    assert answer.code == 0, answer.err
    written = json.loads((tmp_path / "s/compare.json").read_text())
    found = api.compare(tmp_path / "s", baseline=3)
    page = " ".join(re.sub("<[^>]+>", " ", (tmp_path / "s/report.html").read_text()).split())
    printed = " ".join(answer.out.split())
    assert written["baseline"] == found.baseline.label == "alpha_0.5 matched"
    assert written["tests"] == json.loads(json.dumps(finding_rows(found)))
    assert len(written["tests"]) == 4 * (5 + 2)
    rows = found.tests if isinstance(found.tests, list) else found.tests.to_dict("records")
    assert [row["verdict"] for row in rows] == [row["verdict"] for row in written["tests"]]
    shown = [row for group in found.columns for _, _, rows in tables.finding_tables(found, group) for row in rows]
    assert sorted(row[-1] for row in shown) == sorted(row["verdict"] for row in written["tests"])
    assert {"better", "worse", "improves"} <= {row[-1] for row in shown}
    for row in shown:
        assert " ".join(" ".join(row).split()) in page.replace("&lt;", "<").replace("&#39;", "'")
        numbered = [re.sub(r"^(\d+): .*", r"\1", cell) for cell in row]
        assert " ".join(" ".join(numbered).split()) in printed
    csv = run_rows(found)
    assert {row["configuration"] for row in csv if row["baseline"]} == {"alpha_0.5 matched"}


def test_a_baseline_that_is_none_is_refused(gantrain: Callable[..., Answer], tmp_path: Path) -> None:
    make_run(tmp_path / "s/run")
    answer = gantrain("compare", "s", "baseline=kll")
    assert answer.code == 2
    assert "baseline=kll is not one of the choices" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("width", [100, 140])
def test_differences_can_be_read_in_a_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers and p-values stay on one line, and no row has more than two."""
    set_console_width(monkeypatch, width)
    make_alphas(tmp_path)
    found = compare([tmp_path])
    tables.print_tables(found)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    for row in (row for group in found.columns for _, _, rows in tables.finding_tables(found, group) for row in rows):
        assert any(line.startswith(row[0]) and row[-2] in line for line in lines)
    starts = [number for number, line in enumerate(lines) if re.match(r"\S+ [↑↓] ", line)]
    ends = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    assert all(min(end for end in ends if end > start) - start <= 2 for start in starts)


def test_a_single_seed_has_no_table_of_tests(tmp_path: Path) -> None:
    found = show(tmp_path, {"kl": [0.5], "js": [0.7]})
    assert [each.verdict for each in found.differences["quality"]] == ["not decidable"] * 2
    assert list(tables.finding_tables(found, "quality")) == []
    assert "paired by seed" not in report.render_page(found, {})
