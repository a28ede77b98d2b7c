"""Adapters made smaller, added up, and merged into a base.

Stands on ``adapters`` and ``merging``.
"""
