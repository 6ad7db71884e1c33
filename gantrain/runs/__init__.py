"""The files of a run: its folder and lock, checkpoints, metrics and summary, and the signals that end it early.

`folder` is the run folder; open it first. `checkpoints` names, saves and prunes state bundles, which `bundles` writes
and verifies; `metrics_file` holds one JSON object for each report, and `summary` writes how a run ended and its log.
"""
