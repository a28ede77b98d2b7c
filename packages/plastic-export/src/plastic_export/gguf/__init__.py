"""GGUF, the files of llama.cpp: models with their tokenizers, and adapters, through ``gguf``."""
