"""Adapters of a model that people use, at equal bytes of their files: ours and its peers."""
