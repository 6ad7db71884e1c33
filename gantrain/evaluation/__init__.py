"""Metrics of the quality and the diversity of samples.

`evaluation` compares samples with real examples through a feature extractor; open it first. `features`, `classifier`,
`classifier_training` and `inception` extract features; `metrics` lists the numbers, which `formulas` computes with
`distances` and `classes`: in float64 over all pairs, so that none depends on the order of the images or the batch size.
"""
