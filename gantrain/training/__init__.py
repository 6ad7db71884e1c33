"""Training a generator against a discriminator.

`loop` is the training loop; open it first. `step` is one iteration, the discriminator's update and the generator's;
`acceleration` compiles it or captures it as a CUDA graph. `state` is what a checkpoint holds.
"""
