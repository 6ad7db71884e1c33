"""Reporting of a run in training: metrics.jsonl, loggers, progress line and pictures.

`reporter` writes each report to metrics.jsonl, to the loggers and to the console; open it first. `tensorboard` and
`wandb` are the loggers, `health` finds states in which training goes wrong, and `pictures` draws curves and samples.
"""
