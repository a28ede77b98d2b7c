"""The cost of a change of a weight: Grams of inputs and output gradients, weighted spectra.

Stands on ``linalg`` and ``factors``. ``rounding`` and ``layer`` may use it.
"""
