"""Exact values that training is compared with, computed without training.

`quadrature` integrates divergences between mixtures on the line; open it first. `gaussian_fit` minimises them and
follows generator losses, `properties` derives suprema, duals and effective divergences from the catalogue, and
`verification` compares a trained discriminator with the truth about the known densities of `cases`.
"""
