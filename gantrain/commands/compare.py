"""`gantrain compare`: a table of runs, compare.csv, figures and one page."""

from __future__ import annotations

from dataclasses import dataclass

from gantrain.comparison.comparison import compare
from gantrain.config import overrides
from gantrain.errors import ConfigError
from gantrain.files import expand_home
from gantrain.launch.sweep_folder import report_comparison

HELP = """Compare runs: tables, figures, compare.csv, and report.html, one page that needs no network.

  gantrain compare DIR… [baseline=CONFIGURATION] [out=DIR]

Examples
  gantrain compare sweeps/2026-11-22_10-00-00        a sweep; its report is written into its folder
  gantrain compare runs out=comparison               all runs below a folder
  gantrain compare RUN RUN RUN

Runs that differ only in seed are one configuration, named after the settings that differ: mean ± standard deviation
over its finished runs; (error …) is that of one measurement. For metrics with a better direction (↑ or ↓), a table has
the differences from the baseline, paired by seed, with 95 % intervals and p-values after Holm's correction. * marks
what is better with p ≤ .05; if the best mean is not significant, a line estimates how many more seeds are needed.
baseline is the number or label of a configuration, such as baseline=kl; by default the first without a failed run.
A setting with three or more ordered values, such as gen_div=alpha_0.25,alpha_0.5,alpha_0.75, is tested for a trend
(Page).
Metrics of quality and diversity are shown for runs that were evaluated; "training data" is what training examples get
in place of samples. Runs with rescaled weights of samples have the columns weights/…, means over the last tenth of each
run, and in "G follows" the divergence with the effective order of its weights (kl, order 0.31). A sweep is compared
when it ends; before that, runs that have not started are listed. Rows of runs from several folders name the folder. out
is DIR by default, or comparison for a single run and for more than one DIR."""


@dataclass
class Options:
    """Options of `gantrain compare`."""

    baseline: str | None = None
    out: str | None = None


def run(arguments: list[str]) -> None:
    """Compare the runs in and below the folders that the arguments name."""
    overrides.refuse_flags(arguments, Options)
    folders = [expand_home(argument) for argument in arguments if overrides.is_path(argument)]
    options = overrides.parse_into(Options, [text for text in arguments if not overrides.is_path(text)])
    if not folders:
        raise ConfigError("compare needs runs, sweeps, or a tree that holds them: gantrain compare DIR… [out=DIR]")
    comparison = compare(folders, options.baseline)
    is_tree = len(folders) == 1 and comparison.runs[0].path != folders[0]
    report_comparison(comparison, folders, expand_home(options.out or (folders[0] if is_tree else "comparison")))
