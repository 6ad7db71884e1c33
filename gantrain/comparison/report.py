"""`report.html`: a comparison as one page that can be sent to somebody.

The page is whole in itself: pictures are `data:` URIs, figures inline SVG, and its content security policy forbids
scripts and every request, so that nothing in a run folder, however it is named, could make it do more than be read.
Markup is made by `tag` alone, which escapes every text that is not markup already.
"""

from __future__ import annotations

import base64
import html
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gantrain.comparison import panels
from gantrain.comparison import runs as collection
from gantrain.comparison.comparison import (
    Comparison,
    Configuration,
    Estimate,
    arrow,
    error_of,
    short,
)
from gantrain.comparison.panels import Plot, looks
from gantrain.comparison.plots import coordinates
from gantrain.comparison.provenance import command_lines, provenance
from gantrain.comparison.runs import Run
from gantrain.console import printable
from gantrain.errors import DataError
from gantrain.evaluation.evaluation import REFERENCE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MOST_COMMANDS = 12
ERROR = "error"
NO_CONTENT = {"img", "input", "meta", "wbr"}  # elements without an end tag

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #656d76; --rule: #d9dee3; --paper: #fff; --raised: #f6f8fa;
  --accent: #0969da; --best: #dafbe1; --bad: #fff1e5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --muted: #9198a1; --rule: #3d444d; --paper: #0d1117;
  --raised: #161b22; --accent: #58a6ff; --best: #12391f; --bad: #3d2410; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 82rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .4rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
p { margin: .3rem 0 .8rem; max-width: 75ch; }
.quiet, figcaption { color: var(--muted); font-size: .88rem; }
pre { margin: .3rem 0; padding: .6rem .8rem; background: var(--raised); border-radius: 6px; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
th[scope] { font-weight: 400; }
tr > :first-child { position: sticky; left: 0; max-width: min(24rem, 40vw); padding-left: 0; background: var(--paper);
  border-right: 1px solid var(--rule); }
.number { text-align: right; }
td.number { white-space: nowrap; }
td.best { background: var(--best); font-weight: 600; }
td.text { overflow-wrap: anywhere; min-width: 9rem; white-space: pre-wrap; }
.failed { background: var(--bad); }
.failures { margin: .6rem 0; padding: 0; list-style: none; font-size: .9rem; }
.failures li { padding: .5rem 0; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
.failures div { display: flex; flex-wrap: wrap; gap: 0 .6rem; }
.failures span { padding: 0 .4rem; border-radius: 4px; }
.failures code { color: var(--muted); }
.failures p { margin: .2rem 0 0; white-space: pre-wrap; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 13rem), 1fr)); gap: 1rem; }
.points { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
.grids figure { display: flex; flex-direction: column; justify-content: flex-end; }
figure h3 { font-size: .95rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, sans-serif !important; }
img { display: block; width: 100%; height: auto; border-radius: 4px; cursor: zoom-in; }
.zoom input { position: absolute; opacity: 0; pointer-events: none; }
.zoom input:focus-visible + img { outline: 3px solid var(--accent); }
.zoom input:checked + img { position: fixed; inset: 0; z-index: 9; width: 100vw; height: 100vh; padding: 2vmin;
  object-fit: contain; image-rendering: pixelated; background: var(--paper); border-radius: 0; cursor: zoom-out; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0 1rem; padding: 0; list-style: none;
  font-size: .88rem; }
.legend li { min-width: 0; overflow-wrap: anywhere; }
.legend svg { display: inline-block; width: 2.2rem; height: .7rem; margin-right: .4rem; vertical-align: middle; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--accent); }
@media print { .zoom input { display: none; } figure, tr { break-inside: avoid; } }
"""

READING = {
    "quality": (
        "Sample quality. ↓ and ↑ say which direction is better; the best mean of a column is marked. Samples that are "
        "all alike may have the best precision and density: read these beside recall and coverage."
    ),
    "diversity": "Diversity. ↓ and ↑ say which direction is better; the best mean of a column is marked.",
    "training": (
        "The last report of training. None of these is a score: losses of different objectives have different units, "
        "and a bound is as good as the discriminator that found it."
    ),
    ERROR: " An error in brackets is that of one measurement; it is no deviation over seeds.",
    REFERENCE: f" The row of {REFERENCE} is what training examples, as many where there are, get in place of samples.",
}
FIGURES = {
    "plane": (
        "Quality and diversity",
        "One point a configuration: the mean over seeds, with bars of one standard deviation. Better samples are "
        "higher up, more diverse ones further right. A star, where there is one, is what training examples, as many "
        "where there are, get in place of samples. Points that stand close together are named where they are enlarged.",
    ),
    "curves": (
        "Losses and bounds",
        "The mean over seeds, and one standard deviation around it. Each configuration minimises a loss of its own, so "
        "compare the shapes of losses rather than their heights. A bound is a lower bound on that divergence between "
        "data and samples, as far as the run's own discriminator sees it. A band, and a spike of less than a hundredth "
        "of a diagram's points, may leave it.",
    ),
    "heatmap": (
        "D's divergence by G's",
        "The mean over all finished runs with these two divergences.",
    ),
    "classes": (
        "Classes",
        "The share of each class among the samples, as a classifier sees them, or of each mode of a density: bars, "
        "with one standard deviation over seeds. The line is the data. Of more than 200 classes both are in falling "
        "order.",
    ),
    "endpoints": (
        "Where the generator came to rest",
        "The Gaussian (μ, σ) at which training ended, where gradient descent with the exact ratio ends from the same "
        "start, and the best Gaussian under the generator's divergence. The distance from where the exact flow rests "
        "is in standard deviations of that Gaussian.",
    ),
}


class Html(str):
    """Text that is markup already."""


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """An element; children and attributes are escaped unless they are `Html`. `class_` stands for `class`."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"' for key, value in attributes.items())
    start = f"<{name}{given}>"
    return Html(start) if name in NO_CONTENT else Html(f"{start}{''.join(map(escaped, children))}</{name}>")


def escaped(text: str) -> Html:
    """Markup as it is, and any other text without control characters and with `&`, `<`, `>` and quotes escaped."""
    return text if isinstance(text, Html) else Html(html.escape(printable(text)))


def page(comparison: Comparison, plots: Sequence[Plot]) -> str:
    """The whole page."""
    title = f"Comparison of {', '.join(map(short, comparison.keys[:3])) or 'one configuration'}"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE)),
    ]
    drawn = {plot.name: plot for plot in plots}
    body = [
        tag("h1", title),
        *overview(comparison),
        *results(comparison),
        *failures(comparison),
        *samples(comparison),
        *(part for name in FIGURES if name in drawn for part in figures(drawn[name], comparison)),
        *(() if "curves" in drawn else no_curves()),
        *last_report(comparison),
        *trajectories(comparison),
        *settings(comparison),
        *origins(comparison),
    ]
    return f'<!DOCTYPE html>\n<html lang="en">{tag("head", *head)}\n{tag("body", *body)}</html>\n'


# ---------------------------------------------------------------------------------------------------------------------
# The parts of the page


def overview(comparison: Comparison) -> Iterator[Html]:
    """How much of what was run, and the commands."""
    data = distinct(collection.clean(run.fact("data", "label")) for run in comparison.runs)
    seeds = sorted({run.seed for run in comparison.runs}, key=collection.in_order)
    parts = [
        ", ".join(data),
        counted(len(comparison.configurations), "configuration"),
        f"{counted(len(comparison.runs), 'run')}, {sum(run.finished for run in comparison.runs)} finished",
        f"seeds {', '.join(seeds)}" if len(seeds) > 1 else f"seed {', '.join(seeds)}",
    ]
    yield tag("p", " · ".join(filter(None, parts)), class_="quiet")
    for note in comparison.notes:
        yield tag("p", note, class_="quiet")
    lines = ["gantrain train " + shlex.join(arguments) for arguments in command_lines(comparison.runs)]
    yield tag("pre", "\n".join(lines[:MOST_COMMANDS]))
    if rest := lines[MOST_COMMANDS:]:
        yield tag("details", tag("summary", f"{len(rest)} more commands"), tag("pre", "\n".join(rest)))


def results(comparison: Comparison) -> Iterator[Html]:
    """The tables of quality and diversity; where nothing was evaluated, that of training."""
    yield tag("h2", "Results")
    reading = "Mean ± one standard deviation over seeds; every finished run counts."
    yield tag("p", reading if comparison.columns else "No run finished.", class_="quiet")
    for group in [group for group in comparison.columns if group != "training"] or comparison.columns:
        yield from group_table(comparison, group)


def last_report(comparison: Comparison) -> Iterator[Html]:
    """The table of training, where those of quality and diversity are the results."""
    if "training" in comparison.columns and len(comparison.columns) > 1:
        yield tag("h2", "Losses and bounds at the end")
        yield from group_table(comparison, "training")


def group_table(comparison: Comparison, group: str) -> Iterator[Html]:
    """A group of metrics, one row a configuration, and how to read it."""
    metrics = comparison.columns[group]
    best = {metric: comparison.best(metric) for metric in metrics}
    names = [metric.removeprefix(f"{group}/") + arrow(metric) for metric in metrics]
    rows = [
        [
            named(configuration, comparison),
            tag("td", configuration.seeds, **({} if configuration.finished else {"class_": "failed"})),
            *(
                tag("td", configuration.written(m), class_="number best" if configuration in best[m] else "number")
                for m in metrics
            ),
        ]
        for configuration in comparison.configurations
    ]
    notes = [READING[group]]
    if any(error_of(metric) in comparison.metrics for metric in metrics):
        notes.append(READING[ERROR])
    if any(metric in comparison.reference for metric in metrics):
        notes.append(READING[REFERENCE])
        told = (tag("td", comparison.referred(metric), class_="number") for metric in metrics)
        rows.append([tag("th", comparison.reference_name, scope="row"), tag("td"), *told])
    yield tag("p", "".join(notes), class_="quiet")
    yield table([head(comparison), "seeds", *names], rows, numbers=len(metrics))


def failures(comparison: Comparison) -> Iterator[Html]:
    """Every run that does not count, and why."""
    if comparison.failures:
        yield tag("h2", "Runs that did not finish")
        told = []
        for path, label, status, reason in comparison.failures:
            name = [tag("strong", label)] if label else []
            which = [*name, tag("span", status, class_="failed"), tag("code", str(path))]
            told.append(tag("li", tag("div", *which), tag("p", reason)))
        yield tag("ul", *told, class_="failures")


def samples(comparison: Comparison) -> Iterator[Html]:
    """The newest grids side by side, from one seed and so from the same latents; the other seeds' below."""
    grids = {run.path: name for run in comparison.runs if (name := run.grid())}
    seeds = Counter(run.seed for run in comparison.runs if run.finished and run.path in grids)
    seed = max(sorted(seeds, key=collection.in_order), key=lambda each: seeds[each], default="")
    first = [run for run in (chosen(each, grids, seed) for each in comparison.configurations) if run]
    if not first:
        return
    latents = {(run.seed, run.settings.get("latent.size"), run.settings.get("latent.prior")) for run in first}
    yield tag("h2", "Samples")
    origin = "All are drawn from the same latents" if len(latents) == 1 else "The latents differ with the seed or prior"
    made_by = ", ".join(distinct(collection.clean(run.fact("samples_from")) for run in first))
    yield tag("p", f"The newest of each run, by the {made_by or 'generator'}. {origin}. Click one to enlarge it.")
    labels = {run.path: c.label for c in comparison.configurations for run in c.runs}
    reals = {collection.clean(run.fact("data", "label")): run for run in reversed(first)}
    shown = [grid(run, "samples/real.png", "data", label) for label, run in sorted(reals.items())]
    shown += [grid(run, grids[run.path], labels[run.path], about(run, grids[run.path])) for run in first]
    # Points of a density are drawn with axes and a legend, which need more room than pixels.
    kind = "grids points" if any(run.fact("data", "training_images") is None for run in first) else "grids"
    yield tag("div", *shown, class_=kind)
    rest = [run for run in comparison.runs if run.path in grids and run not in first]
    if rest:
        others = [grid(run, grids[run.path], labels[run.path], about(run, grids[run.path])) for run in rest]
        yield tag("details", tag("summary", f"{counted(len(rest), 'other run')}"), tag("div", *others, class_=kind))


def chosen(configuration: Configuration, grids: Mapping[Path, str], seed: str) -> Run | None:
    """The run whose grid stands for a configuration: of that seed where it finished, else the first that did."""
    candidates = [run for run in (*configuration.finished, *configuration.runs) if run.path in grids]
    return next((run for run in candidates if run.seed == seed and run.finished), next(iter(candidates), None))


def about(run: Run, name: str) -> str:
    """A grid's caption: clock, seed, and how the run ended where it did not finish."""
    clock = f"{int(name.removesuffix('.png')[-12:]):,} images, seed {run.seed}"
    return clock if run.finished else f"{clock}, {run.status}"


def grid(run: Run, name: str, heading: str, caption: str) -> Html:
    """A picture of a run that a click, or the space bar, enlarges; or why it is not shown."""
    try:
        uri = f"data:image/png;base64,{base64.b64encode(collection.picture(run, name)).decode()}"
    except DataError as error:
        return tag("figure", tag("h3", heading), tag("figcaption", f"{caption}: {error}"))
    image = tag("img", src=uri, alt=f"{heading}, {caption}")
    zoom = tag("label", tag("input", type="checkbox", aria_label=f"enlarge {heading}"), image, class_="zoom")
    return tag("figure", tag("h3", heading), zoom, tag("figcaption", caption))


def no_curves() -> Iterator[Html]:
    """Why there are none."""
    yield tag("h2", FIGURES["curves"][0])
    yield tag(
        "p",
        "No run reported more than once, and one report makes no curve. train.report_every_images=… says how often.",
    )


def figures(plot: Plot, comparison: Comparison) -> Iterator[Html]:
    """A plot's panels under a heading and one legend."""
    heading, reading = FIGURES[plot.name]
    yield tag("h2", heading)
    yield tag("p", reading)
    if plot.keyed and len(comparison.configurations) > 1:
        yield legend(comparison)
    drawn = [Html(panels.inline(panel, f"{plot.name}{index}")) for index, panel in enumerate(plot.panels)]
    yield tag("div", *(tag("figure", each) for each in drawn), class_="panels")
    if plot.name == "endpoints":
        yield endpoint_table(comparison)


def legend(comparison: Comparison) -> Html:
    """The lines of all configurations."""
    names = [panels.name(configuration, comparison) for configuration in comparison.configurations]
    entries = [
        tag("li", tag("svg", tag("path", d="M0 5h36", stroke=colour, **stroke(dashes)), viewBox="0 0 36 10"), name)
        for name, (colour, dashes) in zip(names, looks(comparison), strict=True)
    ]
    return tag("ul", *entries, class_="legend")


def stroke(dashes: Iterable[float]) -> dict[str, str]:
    """A line's attributes in SVG."""
    return {"stroke_width": "2.5", "stroke_dasharray": " ".join(f"{2 * dash:g}" for dash in dashes) or "none"}


def endpoint_table(comparison: Comparison) -> Html:
    """(μ, σ) of each configuration, as reached and in theory, and whether its runs ended as theory promises."""
    rows = []
    for configuration in comparison.configurations:
        ends = [at for run in configuration.finished if (at := coordinates(run, "reached"))]
        reached = [str(Estimate.of(values)) for values in zip(*ends, strict=True)] or ["—", "—"]
        flows = distinct(exact_flow(run) for run in configuration.runs)
        best = distinct(pair(coordinates(run, "optimum")) for run in configuration.runs)
        away = over_seeds(configuration, "endpoint", "distance")
        cells = [*reached, *(", ".join(texts) or "—" for texts in (flows, best)), away, verdict(configuration)]
        rows.append([named(configuration, comparison), *(tag("td", text, class_="number") for text in cells)])
    heads = [head(comparison), "μ, training", "σ, training", "exact flow (μ, σ)", "best Gaussian (μ, σ)", "distance"]
    return table([*heads, "as promised"], rows, numbers=len(heads))


def verdict(configuration: Configuration) -> str:
    """How many of the finished runs ended as theory promises."""
    promises = distinct(collection.clean(run.fact("endpoint", "promise")) for run in configuration.finished)
    kept = [within for run in configuration.finished if isinstance(within := run.fact("endpoint", "within"), bool)]
    return f"{sum(kept)} of {len(kept)}" if kept else "nothing promised" if promises == ["nothing"] else "—"


def trajectories(comparison: Comparison) -> Iterator[Html]:
    """Turns of the Dirac-GAN about its equilibrium and the distance from it, as trained and as linear theory says."""
    kept = [c for c in comparison.configurations if any(run.fact("trajectory") for run in c.finished)]
    if not kept:
        return
    yield tag("h2", "The path about the equilibrium")
    yield tag("p", "Of (θ, ψ) about (0, 0): its turns, and its distance at the first report and at the last.")
    made: list[tuple[str | int, ...]] = [("turns",), ("distance", 0), ("distance", 1)]
    keys = [*made, *(("theory", *each) for each in (made[0], made[2]))]
    rows = [
        [named(c, comparison), *(tag("td", over_seeds(c, "trajectory", *each), class_="number") for each in keys)]
        for c in kept
    ]
    heads = [head(comparison), "turns", "distance, first", "distance, last", "turns, linear theory"]
    yield table([*heads, "distance, last, linear theory"], rows, numbers=len(keys))


def over_seeds(configuration: Configuration, *keys: str | int) -> str:
    """The estimate of a number of the summaries of finished runs, by its keys; — where none has it."""
    found = [collection.number(run.fact(*keys)) for run in configuration.finished]
    values = [value for value in found if value is not None]
    return str(Estimate.of(values)) if values else "—"


def exact_flow(run: Run) -> str:
    """Where the exact flow ends, or how, where it does not come to rest."""
    outcome = collection.clean(run.fact("endpoint", "theory", "outcome"))
    at = pair(coordinates(run, "theory"))
    return at if outcome in ("rests", "") else f"{outcome} {at}".strip()


def pair(at: tuple[float, float] | None) -> str:
    """(μ, σ), as text."""
    return f"({at[0]:z.4f}, {at[1]:.4f})".replace("-", "−") if at else ""


def settings(comparison: Comparison) -> Iterator[Html]:
    """What differs between the configurations, also where it follows from something else that does. A single setting
    is their name already."""
    if len(comparison.differing) < 2:
        return
    reading = (
        "All settings that are not the same in every configuration. The others are in each run's .hydra/config.yaml."
    )
    yield tag("h2", "What differs")
    yield tag("p", reading, class_="quiet")
    rows = [
        [named(c, comparison), *(tag("td", c.runs[0].settings.get(key, "—")) for key in comparison.differing)]
        for c in comparison.configurations
    ]
    yield table(["configuration", *map(short, comparison.differing)], rows)


def origins(comparison: Comparison) -> Iterator[Html]:
    """What every number depends on, and which runs differ in it."""
    yield tag("h2", "Where the numbers come from")
    finished = [run for run in comparison.runs if run.finished]
    made = {run.path: provenance(run) for run in finished or comparison.runs}
    rows = []
    for name in dict.fromkeys(name for each in made.values() for name in each):
        paths: dict[str, set[Path]] = {}
        for path, each in made.items():
            paths.setdefault(each.get(name, "not recorded"), set()).add(path)
        *few, most = sorted(paths, key=lambda value: len(paths[value]))
        texts = [f"{value} ({'; '.join(whose(paths[value], comparison))})" for value in few]
        others = list(whose(paths[most], comparison))
        them = others[0] if len(others) == 1 else f"the other {counted(len(paths[most]), 'run')}"
        texts.append(f"{most} ({them})" if few else most)
        rows.append([tag("th", name, scope="row"), tag("td", "\n".join(texts), class_="text")])
    yield table(["", "finished runs" if finished else "runs"], rows)
    yield tag("p", "compare.csv has every metric of every run in full precision.", class_="quiet")


def whose(paths: Collection[Path], comparison: Comparison) -> Iterator[str]:
    """The configurations of these runs, with their seeds where not all that count are among them."""
    for c in comparison.configurations:
        if seeds := [run.seed for run in c.shown if run.path in paths]:
            name = f"#{c.number}" if panels.numbered(comparison) else c.label
            yield name if len(seeds) == len(c.shown) else f"{name} seed {', '.join(seeds)}"


# ---------------------------------------------------------------------------------------------------------------------
# Small parts


def table(heads: Sequence[str], rows: Iterable[Iterable[Html]], numbers: int = 0) -> Html:
    """A table that scrolls by itself where it is too wide, past its first column; the last `numbers` columns hold
    numbers."""
    kinds = ["text"] * (len(heads) - numbers) + ["number"] * numbers
    top = tag(
        "thead", tag("tr", *(tag("th", heading(head), class_=kind) for head, kind in zip(heads, kinds, strict=True)))
    )
    body = tag("tbody", *(tag("tr", *cells) for cells in rows))
    return tag("div", tag("table", top, body), class_="wide", tabindex="0")


def head(comparison: Comparison) -> str:
    """What the column of configurations is called: the setting that differs, where there is only one."""
    return short(comparison.keys[0]) if len(comparison.keys) == 1 else "configuration"


def named(configuration: Configuration, comparison: Comparison) -> Html:
    """The cell that begins a configuration's row."""
    return tag("th", panels.name(configuration, comparison), scope="row")


def heading(name: str) -> Html:
    """A name that may be broken after its strokes and slashes."""
    return Html(tag("wbr").join(escaped(part) for part in re.split(r"(?<=[/_])", name)))


def counted(count: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, empty ones left out."""
    return list(dict.fromkeys(filter(None, texts)))
