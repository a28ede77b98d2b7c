"""An output folder as it is written: whole or not at all, resumable, with its manifest.

Stands on ``checkpoint`` and ``process``.
"""

from plastic_export.folder.shards import as_float32, as_stored

__all__ = ["as_float32", "as_stored"]
