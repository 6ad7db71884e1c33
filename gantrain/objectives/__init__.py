"""What the discriminator and the generator minimise.

`divergences` is the catalogue of f-divergences; open it first. `objective` turns a pair of divergences into the two
players' losses, and `critics` has the other losses of D. Nothing here knows an optimizer or a device.
"""
