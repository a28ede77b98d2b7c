"""The matrices of a Llama of 7 billion parameters, or of a smaller one of its kind."""

from __future__ import annotations

from plastic_export import Candidate
from plastic_export.checkpoint import Kind

LAYERS, HIDDEN, INNER, VOCABULARY = 32, 4096, 11008, 32000


def llama(
    layers: int = LAYERS, hidden: int = HIDDEN, inner: int = INNER, vocabulary: int = VOCABULARY
) -> list[Candidate]:
    """Return all matrices, embedding and head among them."""
    square, wide, tall = (hidden, hidden), (inner, hidden), (hidden, inner)
    block = {f"self_attn.{p}_proj": square for p in "qkvo"}
    block |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": tall}
    shapes = {f"model.layers.{i}.{n}": s for i in range(layers) for n, s in block.items()}
    found = [matrix(name, shape) for name, shape in shapes.items()]
    table = (vocabulary, hidden)
    return [matrix("embed_tokens", table, embedding=True), *found, matrix("lm_head", table)]


def matrix(path: str, shape: tuple[int, int], *, embedding: bool = False) -> Candidate:
    """Return a bfloat16 matrix with groups of 64."""
    kind: Kind = "embedding" if embedding else "linear"
    return Candidate(f"{path}.weight", shape, "BF16", 64, 2 * shape[0] * shape[1], kind=kind)
