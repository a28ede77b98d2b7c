"""A compressed folder behind mlx-lm's own server, at whatever size a request asks for.

Everything that answers is mlx-lm's: its endpoints, its batches, its prompt cache. Stands on
``model`` and below.
"""
