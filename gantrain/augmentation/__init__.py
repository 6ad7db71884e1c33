"""Augmentation of what both players see.

`augmentations` are the choices of `augment` with their settings, and the controller of ADA's p; open it first.
`transforms` are the differentiable changes of images that they are made of. Nothing here knows a network or a game.
"""
