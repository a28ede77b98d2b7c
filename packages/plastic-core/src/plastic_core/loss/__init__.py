"""What a change of a weight costs: Gram matrices of inputs and output gradients, weighted spectra.

Stands on ``linalg`` and ``factors``. ``rounding`` and ``layer`` may use it.
"""
