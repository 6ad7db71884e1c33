"""The files of a run: its folder and lock, checkpoints, metrics and summary.

`folder` is the run folder; open it first. `checkpoints` writes and verifies state bundles, `metrics_file` holds one
JSON object for each report, and `summary` records how a run ended.
"""
