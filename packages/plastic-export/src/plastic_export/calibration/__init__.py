"""Gram matrices of a checkpoint's layers, measured on a text; the texts, as tokens.

Stands on ``model`` and below.
"""

from plastic_export.calibration.loss_grams import in_batches, pulled_tokens, use_float32

__all__ = ["in_batches", "pulled_tokens", "use_float32"]
