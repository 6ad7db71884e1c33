"""What the discriminator and the generator minimise.

`divergences` is the catalogue of f-divergences; open it first. `objective` turns a pair of divergences into the two
players' losses, and `regularizers` holds penalties of the discriminator. Nothing here knows an optimizer or a device.
"""
