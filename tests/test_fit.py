"""`gantrain fit`, through the command line: its table, its files, its refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gantrain.commands import fit
from gantrain.data.mixtures import Mixture, gaussian, mixture1d
from gantrain.objectives.divergence import Divergence
from gantrain.objectives.divergences import CATALOGUE
from gantrain.theory import gaussian_fit, plots

Gantrain = Callable[..., Any]
EXAMPLE = mixture1d()


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads((folder / "fit.json").read_text(encoding="utf-8"), parse_constant=refuse)
    return {row["divergence"]: row for row in found}


def columns(line: str) -> list[str]:
    return re.split(r" {2,}", line.strip())


def test_the_papers_figure(gantrain: Gantrain, tmp_path: Path) -> None:
    typed = "weights=[.6,.4] means=[-1.5,2] stds=[.6,.8] gen_div=kl,reverse_kl,alpha_0.3,dual_kl out=DIR"
    answer = gantrain("fit", *typed.split())
    assert (answer.code, answer.err) == (0, "")
    head, data, kl, reverse_kl, _, dual_kl, last = answer.out.splitlines()
    assert columns(head) == ["divergence", "μ", "σ", "D_f − f(1)", "mass near −1.5", "mass near 2"]
    assert columns(data)[:3] == ["data", "−0.1000", "1.8472"]
    assert columns(kl)[:3] == ["kl", "−0.1000", "1.8472"]
    assert columns(reverse_kl)[:3] == ["reverse_kl", "−1.4690", "0.6387"]
    assert columns(dual_kl)[1:] == columns(reverse_kl)[1:]
    assert last == "fit.json and fit.png in DIR"
    found = rows(tmp_path / "DIR")
    assert list(found) == ["kl", "reverse_kl", "alpha_0.3", "dual_kl"]
    assert found["kl"] == {
        "divergence": "kl",
        "mu": pytest.approx(-0.1, abs=1e-9),
        "sigma": pytest.approx(3.412**0.5, abs=1e-9),  # .6·.6² + .4·.8² + .6·.4·3.5²
        "value": pytest.approx(0.3529506, abs=1e-6),
        "mode_masses": [pytest.approx(0.3773, abs=1e-4), pytest.approx(0.3707, abs=1e-4)],
    }
    with Image.open(tmp_path / "DIR" / "fit.png") as picture:
        assert picture.format == "PNG"


def test_all_divergences_by_default_that_the_objective_can_train() -> None:
    assert [each.name for each in fit.choose_divergences(fit.Options())] == list(CATALOGUE)
    trained = {each.name for each in fit.choose_divergences(fit.Options(target="effective"))}
    assert trained == set(CATALOGUE) - {"total_variation"}


def test_whole_lines_in_a_pipe(gantrain: Gantrain, tmp_path: Path) -> None:
    answer = gantrain("fit", "weights=[.25,.25,.25,.25]", "means=[-9,-3,3,9]", "stds=[1,1,1,1]", "gen_div=kl,js")
    assert answer.code == 0
    assert set(rows(tmp_path / "fit")) == {"kl", "js"}
    assert all(len(columns(line)) == 8 for line in answer.out.splitlines()[2:-1])
    assert "…" not in answer.out


def test_every_line_is_printed_as_soon_as_it_is_known(
    gantrain: Gantrain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed, compute = [], fit.fit_divergence

    def record(*arguments: Any) -> fit.Row:
        printed.append([columns(line)[0] for line in capsys.readouterr().out.splitlines()])
        return compute(*arguments)

    monkeypatch.setattr(fit, "fit_divergence", record)
    assert gantrain("fit", "gen_div=kl,js").code == 0
    assert printed == [["divergence", "data"], ["kl"]]


def test_where_a_loss_leads(gantrain: Gantrain, tmp_path: Path) -> None:
    answer = gantrain("fit", "target=effective", "gen_objective=ratio", "gen_div=reverse_kl,kl", "out=effective")
    assert (answer.code, answer.err) == (0, "")
    assert columns(answer.out.splitlines()[2])[:4] == ["reverse_kl", "rests", "0.3009", "1.6604"]
    assert columns(answer.out.splitlines()[3])[1] == "collapses"
    found = rows(tmp_path / "effective")
    assert [row["outcome"] for row in found.values()] == ["rests", "collapses"]
    assert found["kl"]["sigma"] < 0.001


def test_the_start_and_the_affine_term_change_a_path(gantrain: Gantrain, tmp_path: Path) -> None:
    path = ["target=effective", "gen_objective=ratio"]
    assert gantrain("fit", *path, "gen_div=gan", "affine=-0.3", "out=affine").code == 0
    assert gantrain("fit", *path, "gen_div=gan,reverse_kl", "start=[-1.2,.7]", "out=start").code == 0
    plain = 0.0612518
    assert rows(tmp_path / "affine")["gan"]["mu"] < plain - 0.01
    assert rows(tmp_path / "start")["reverse_kl"]["mu"] == pytest.approx(-1.4690, abs=1e-4)


def test_infinite_is_said_and_is_null(gantrain: Gantrain, tmp_path: Path) -> None:
    answer = gantrain("fit", "target=effective", "gen_div=neyman", "start=[0,3]")
    assert answer.code == 0
    assert columns(answer.out.splitlines()[2])[:5] == ["neyman", "infinite", "0.0000", "3.0000", "infinite"]
    assert rows(tmp_path / "fit")["neyman"]["value"] is None
    assert "nan" not in answer.out


def test_a_fit_that_is_no_minimum_is_said_to_be_none(
    gantrain: Gantrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_gaussian = gaussian_fit.fit_gaussian
    assert "no minimum" not in gantrain("fit", "gen_div=kl,total_variation").out
    assert "slope" not in rows(tmp_path / "fit")["total_variation"]

    def stop_early(divergence: Divergence, p: Mixture) -> gaussian_fit.Fit:
        fit = fit_gaussian(divergence, p)
        return fit._replace(mean=fit.mean + 1e-3) if divergence.name == "total_variation" else fit

    monkeypatch.setattr(gaussian_fit, "fit_gaussian", stop_early)
    answer = gantrain("fit", "gen_div=kl,total_variation")
    assert answer.code == 0
    assert "\ntotal_variation: no minimum was found; " in answer.out
    assert "kl: no minimum" not in answer.out
    assert 1e-5 < rows(tmp_path / "fit")["total_variation"]["slope"] < 1e-2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("weights=[.5,.4]", "sum to 0.9 and must sum to one, as in weights=[0.555556,0.444444]"),
        ("weights=[1.5,-.5]", "weights=[1.5,-0.5] must be above 0"),
        ("stds=[1,0]", "stds=[1,0] must be above 0"),
        ("stds=[1,inf]", "stds=[1,inf] must be above 0"),
        ("stds=[1,1e-9]", "at least 1e-06 of the whole mixture's"),
        ("means=[nan,1]", "means=[nan,1] must be between"),
        ("stds=[1]", "found 2, 2 and 1"),
        ("means=abc", "means"),
        ("weights=.6,.4", "give one value"),
        ("gen_div=revers_kl", "did you mean reverse_kl?"),
        ("gen_div=", "names no divergence"),
        ("target=efective", "did you mean effective?"),
        ("target=effective start=[0]", "must be two numbers"),
        ("target=effective start=[0,0]", "must be two numbers"),
        ("target=effective start=[1e6,1]", "diverges"),
        ("target=effective start=[0,1e-9]", "collapses"),
        ("target=effective affine=nan", "finite"),
        ("start=[0,2]", "add target=effective"),
        ("target=effective gen_div=total_variation", "gen_objective=ratio"),
        ("gen_objective=ratio", "add target=effective"),
        ("wieghts=[1]", "did you mean weights"),
        ("gen_dvi=kl,neyman", "did you mean gen_div"),
        ("kl", "key=value"),
    ],
)
def test_what_is_refused(gantrain: Gantrain, tmp_path: Path, typed: str, said: str) -> None:
    answer = gantrain("fit", *typed.split())
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err
    assert len(answer.err.splitlines()) <= 2  # a list of choices has a line of its own
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_exit_code_7(gantrain: Gantrain, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = gantrain("fit", "gen_div=kl", "out=file")
    assert (answer.code, answer.out) == (7, "")
    assert "out=file" in answer.err


def test_masses_near_modes() -> None:
    assert fit.mode_masses(gaussian(2.0, 0.8), EXAMPLE) == pytest.approx([0.0023, 0.9545], abs=2e-3)


# ---------------------------------------------------------------------------------------------------------------------
# The figure


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_figure_shows_the_data_and_every_different_gaussian(tmp_path: Path) -> None:
    one, two = plots.Curve("kl", -0.1, 1.85), plots.Curve("reverse_kl", -1.5, 0.64)
    same, spike = (plots.Curve("dual_reverse_kl", -0.1, 1.85 + 1e-9), plots.Curve("js", 0.5, 1e-4, collapsed=True))
    pictures = []
    for index, curves in enumerate([[], [one], [one, two], [one, two, spike]]):
        path = tmp_path / f"{index}.png"
        plots.save_fits(EXAMPLE, curves, path, "title")
        pictures.append(pixels(path))
        assert (np.abs(pictures[-1] - 0xDD).max(-1) == 0).sum() > 1000  # the data's grey
    coloured = [int((np.ptp(picture, axis=-1) > 60).sum()) for picture in pictures]
    assert coloured[0] == 0 < coloured[1] < coloured[2]
    assert [curve.label for curve in plots.merge_curves(EXAMPLE, [one, two, same])] == [
        "kl, dual_reverse_kl",
        "reverse_kl",
    ]


def test_the_same_fits_give_the_same_bytes(tmp_path: Path) -> None:
    curves = [plots.Curve(", ".join(CATALOGUE), 0.0, 1.0)]  # a long list of names still leaves room for the axes
    for name in ("a", "b"):
        plots.save_fits(EXAMPLE, curves, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
