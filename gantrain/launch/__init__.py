"""From checked settings to a finished run.

`run` trains one run in its folder; open it first. `build` makes its parts, and `sweep` handles the runs of a sweep.
"""
