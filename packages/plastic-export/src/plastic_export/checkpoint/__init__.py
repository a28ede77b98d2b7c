"""A model folder as it is read: files, tensors, matrices, the Hub's cache.

Stands on no other room.
"""

from plastic_export.checkpoint.tensors import Kind, compressible, module_path

__all__ = ["Kind", "compressible", "module_path"]
