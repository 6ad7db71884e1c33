"""Exact values that training is compared with, computed without training.

`quadrature` integrates divergences between densities in one dimension; open it first. `properties` derives suprema,
duals and effective divergences from the catalogue, and `verification` checks a trained discriminator against known
densities.
"""
