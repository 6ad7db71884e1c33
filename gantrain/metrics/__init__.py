"""How good samples are and how diverse, in numbers: from features, class counts or points to floats.

A set of images is seen through a network: features φ(x) `[N, F]` and class probabilities p(y|x) `[N, K]`. Distances
between the clouds of features of real images and of samples then stand for distances between the distributions, so
every such number belongs to its network and is comparable only where network, real images and N are the same. Points of
a density are their own features.

All arithmetic is float64 on the CPU; no number depends on the order of the images or on the size of a batch, and none
is drawn at random: everything is computed over all pairs. `distances` compares whole clouds, `neighbours` looks around
single points, `classes` counts, and `catalogue` says which number has which name.
"""
