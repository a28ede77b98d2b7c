"""Faults provoked for real, one kind per module; ``tools/faults/provoke.py`` runs them."""
