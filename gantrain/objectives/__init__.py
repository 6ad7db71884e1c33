"""What the discriminator and the generator minimise.

`divergences` is the catalogue of f-divergences; open it first. `objective` turns a pair of divergences into the two
players' losses, `regularizers` holds penalties of the discriminator, and `augment` changes of what it is shown. Nothing
here knows an optimizer or a device.
"""
