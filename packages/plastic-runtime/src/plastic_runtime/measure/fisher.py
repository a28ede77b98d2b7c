"""The Grams of every linear layer under the loss: of its inputs and its output gradients."""

from collections.abc import Iterable, Sequence

import mlx.core as mx
import mlx.nn as nn

from plastic_runtime.measure.grams import LONGEST_DENSE_SIDE, LossGrams
from plastic_runtime.measure.recorder import LossRecorder, linear_layers
from plastic_runtime.measure.sampled_loss import draws


def loss_grams(
    model: nn.Module,
    batches: Iterable[mx.array],
    *,
    seed: int = 0,
    paths: Sequence[str] | None = None,
    widest: int = LONGEST_DENSE_SIDE,
) -> dict[str, LossGrams]:
    r"""Run a language model forwards and backwards and accumulate the Grams of its linear layers.

    The gradient of a layer is :math:`g = \partial L / \partial y` at its output y, for every
    token, where L is the negative log-likelihood, summed over all positions, of labels drawn
    from the model's own distribution: the Fisher information, not the empirical one. Batch i
    draws with Philox, keyed by ``seed`` and i. No gradient of a weight is made.

    The model is run as it is, in its own types: pass one in float32, after ``model.eval()``. It
    is put back exactly, also when a pass fails.

    Args:
        model: Maps tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``.
        batches: Its inputs. One batch is held with all its activations.
        seed: Decides the labels.
        paths: Paths of the layers wanted: ``nn.Linear``, ``nn.QuantizedLinear`` and ``RankLayer``,
            by default all of these; embeddings and stacks of experts.
        widest: The longest side of a dense Gram. Of a wider one of inputs only the blocks along the
            diagonal are measured (``plastic_core.block_side``), of a wider one of gradients, such
            as those of logits, the diagonal alone.

    Returns:
        Both Grams, float64, of every layer that was run, by path. Layers that one and the same
        array enters, as the query, key and value projections do, share one input Gram. The input
        Gram of an embedding, for which a token is a row of the identity, is a diagonal; where it is
        the output layer too, it has Grams of that under its path with ``.as_linear``. The experts
        of a stack have their own, under its path and their number, ``mlp.up_proj.3``, unless they
        would take more room than one dense Gram may: then one, under its path, is that of all.

    Raises:
        ValueError: If a path is not that of a linear layer, ``batches`` is empty, an input or a
            gradient has NaN or infinities (a note names the layer), or no gradient reaches a
            layer.

    References:
        Martens and Grosse, *Optimizing neural networks with Kronecker-factored approximate
        curvature*, 2015, arXiv 1503.05671, section 3; Kunstner, Balles and Hennig, *Limitations
        of the empirical Fisher approximation*, 2019, arXiv 1905.12558, section 2.

    Note:
        About three forward passes, and ``in^2 + out^2`` operations in float32 per token and
        layer. The sums take ``4 (in^2 + out^2)`` bytes per layer, of all layers at once, where
        ``measure_grams`` holds those of one block. Where MLX computes on the CPU, products of
        unsubclassed ``nn.Linear`` and ``nn.QuantizedLinear`` run in NumPy, forwards and backwards.

    Examples:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
        >>> grams = loss_grams(model, [mx.array([[1, 2, 3]])])["layers.1"]
        >>> grams.input.matrix.shape, grams.output.matrix.shape, grams.output.tokens
        ((4, 4), (5, 5), 3)
    """
    linears, wanted = linear_layers(model, paths)
    recorder = LossRecorder(linears, wanted, widest=widest)
    recorder.pull_back_model(model, zip(batches, draws(seed), strict=False))
    if not recorder.tokens:
        raise ValueError("`batches` must hold at least one batch.")
    return recorder.grams()
