"""``python -m plastic_export``: the ``plastic`` command."""

from __future__ import annotations

from plastic_command import start

start()
