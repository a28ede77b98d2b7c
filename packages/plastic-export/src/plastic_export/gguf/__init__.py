"""GGUF, the files of llama.cpp: models with their tokenizers, and adapters, through ``gguf``."""

from plastic_export.gguf.architectures import ARCHITECTURES
from plastic_export.gguf.tokens.pre_tokenizers import PRE_TOKENIZERS, Cuts

__all__ = ["ARCHITECTURES", "PRE_TOKENIZERS", "Cuts"]
