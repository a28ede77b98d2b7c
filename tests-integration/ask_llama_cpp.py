"""What llama.cpp's server answers, asked in a process of its own: its shutdown may hang.

    python ask_llama_cpp.py MODEL.gguf [LORA.gguf] < request.json

The request is a completion, or a text under ``content`` that is to be cut into tokens. The model
runs on the CPU, in one thread, with keys and values in float32.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

import xllamacpp


def serve(file: str, lora: str | None) -> Any:
    """Load a file, and an adapter over it."""
    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 256, 1, 0
    settings.warmup, settings.verbosity = False, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if lora is not None:
        settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    return xllamacpp.Server(settings)


def answer(server: Any, request: dict[str, Any]) -> Any:
    """Ask for a completion, or for tokens."""
    if "content" in request:
        asked = urllib.request.Request(
            f"{server.listening_address}/tokenize", json.dumps(request).encode()
        )
        with urllib.request.urlopen(asked, timeout=60) as response:
            return json.load(response)
    said = server.handle_completions(request)
    return json.loads(said) if isinstance(said, str | bytes) else said


def main() -> None:
    """Ask, print, and end without a word to the server."""
    file, *lora = sys.argv[1:]
    server = serve(file, lora[0] if lora else None)
    print(json.dumps(answer(server, json.load(sys.stdin))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
