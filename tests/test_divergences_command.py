"""`gantrain divergences` as its users meet it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gantrain.objectives.divergences import CATALOGUE
from gantrain.objectives.objective import GENERATOR_OBJECTIVES

Gantrain = Callable[..., Any]


def cells(text: str, name: str) -> list[list[str]]:
    """The rows about `name`, in every table."""
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return [row for row in rows if row and row[0] == name]


def test_all_of_the_catalogue_in_tables(gantrain: Gantrain) -> None:
    answer = gantrain("divergences")
    assert (answer.code, answer.err) == (0, "")
    assert [len(cells(answer.out, name)) for name in CATALOGUE] == [2] * len(CATALOGUE)
    assert cells(answer.out, "js") == [
        ["js", "u log u − (1 + u) log((1 + u) / 2)", "js", "yes", "1.386", "balanced"],
        ["js", "0", "0.6931", "0.6931", "−∞ … 0.6931", "−0.6931 … ∞", "1", "−∞ … ∞", "yes"],
    ]
    assert cells(answer.out, "kl") == [
        ["kl", "u log u", "reverse_kl", "no", "∞", "mode-covering"],
        ["kl", "0", "1", "∞", "−∞ … ∞", "0 … ∞", "0.3679", "−∞ … 69.31", "yes"],
    ]


def test_some_side_by_side_in_the_order_typed_and_once(gantrain: Gantrain) -> None:
    answer = gantrain("divergences", "alpha_0.3", "affine=-1", "dual_kl", "alpha_0.3")
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()[1:3]] == ["alpha_0.3", "dual_kl"]
    assert cells(answer.out, "dual_kl")[0][1] == "u f(1/u), f(u) = u log u −1 (u − 1)"


def test_a_pipe_cuts_nothing(gantrain: Gantrain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = gantrain("divergences", "dual_softened_reverse_kl", "alpha_-0.123456789").out
    assert "…" not in shown.replace(" … ", "")
    assert "\x1b" not in shown
    assert all(row in shown for row in ("dual_softened_reverse_kl", "(1 + u) log((1 + u) / (2u))", "α = −0.123456789"))


@pytest.mark.parametrize("name", [*CATALOGUE, "alpha_0", "alpha_-40", "dual_total_variation", "dual_non_saturating"])
def test_every_divergence_has_a_page(gantrain: Gantrain, name: str) -> None:
    answer = gantrain("divergences", name)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"{name}   f(u) = ")
    for word in (*GENERATOR_OBJECTIVES, "In float32", "References", "nan"):
        assert (word in answer.out) == (word != "nan")


def test_the_page_of_kl_warns_of_ratio(gantrain: Gantrain) -> None:
    page = gantrain("divergences", "kl").out
    assert "Warning: ratio pulls every sample to u = 0.3679 (r = −1)" in page
    assert "ratio moves samples away from p = q" in page
    assert "mode-covering" in page
    assert "with p and q exchanged it is reverse_kl" in page
    assert cells(page, "ratio")[1][:3] == ["ratio", "no name here", "for u < 0.3679"]
    assert cells(page, "matched")[0] == ["matched", "loss −fake(r)", "−0.0101", "−0.1111", "−1", "−9", "−99"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("js",), "f_eff turns concave at u = 1"),
        (("js", "affine=-1"), ""),
        (("gan",), ""),
        (("kl", "affine=-3"), ""),
        (("reverse_kl", "affine=2"), "Warning: ratio pulls every sample to u = 0.5 (r = −0.6931)"),
        (("total_variation",), "gen_objective=matched has a zero gradient"),
    ],
)
def test_warnings_follow_the_formula(gantrain: Gantrain, arguments: tuple[str, ...], said: str) -> None:
    page = gantrain("divergences", *arguments).out
    assert said in page
    assert ("Warning" in page) == bool(said)


def test_figures_go_where_out_says(gantrain: Gantrain) -> None:
    answer = gantrain("divergences", "kl", "out=figures/kl")
    assert answer.code == 0
    written = sorted(path.stem for path in Path("figures/kl").glob("*.svg"))
    assert written == sorted(path.stem for path in Path("figures/kl").glob("*.png"))
    assert all(name in answer.out.splitlines()[-1] for name in [*written, "figures/kl"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("kll",), 2, "divergence=kll is not one of the choices; did you mean kl?"),
        (("kl", "alpha_x"), 2, "did you mean alpha_<number>?"),
        (("kl", "afine=1"), 2, "there is no key afine; did you mean affine"),
        (("kl", "affine=much"), 2, "affine"),
        (("kl", "affine=inf"), 2, "affine=inf must be finite"),
        (("kl", "out=file/figures"), 7, "out=file/figures cannot be written: "),
    ],
)
def test_what_is_wrong_is_said(gantrain: Gantrain, arguments: tuple[str, ...], code: int, said: str) -> None:
    Path("file").write_text("")
    answer = gantrain("divergences", *arguments)
    assert answer.code == code
    assert said in answer.err
    assert "Traceback" not in answer.err
