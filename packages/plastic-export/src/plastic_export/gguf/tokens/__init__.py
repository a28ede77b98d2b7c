"""Tokenizers as GGUF lists them: sentencepiece models and byte-level BPE."""
