"""Regularizers of a game: what D is shown, penalties on its slope, outputs and features, and limits of its weights.

Open `regularizer` first: it has the interface that every regularizer follows. `gradient_penalties` has those on D's
slope, `regularizers` the others, and the names of all of them.
"""
