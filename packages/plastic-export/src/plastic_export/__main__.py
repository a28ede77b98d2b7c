"""``python -m plastic_export``: the ``plastic`` command."""

from __future__ import annotations

from plastic_command import start

if __name__ == "__main__":  # not where the spawned processes of a command import it again
    start()
