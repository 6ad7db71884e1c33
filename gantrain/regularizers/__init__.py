"""Regularizers of a game: what D is shown, penalties on its slope, outputs and features, and limits of its weights.

Open `gradient_penalties` first: it has the interface that every regularizer follows. `regularizers` has the others, and
what all of them are called.
"""
