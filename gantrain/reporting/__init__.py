"""What a run shows while it trains.

`reporter` writes each report to metrics.jsonl, to the loggers and to the console; open it first. `tensorboard` and
`wandb` are the loggers, and `health` names the states in which training is not going well.
"""
