"""Faults provoked for real, one kind per module; ``tools/bench/faults.py`` runs them."""
