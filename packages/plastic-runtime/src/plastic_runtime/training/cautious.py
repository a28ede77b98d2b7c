"""AdamW whose steps go no further than the mean gradient and that of the step agree on."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import mlx.optimizers as optim


class CautiousAdamW(optim.AdamW):
    r"""AdamW that moves an entry as far as its mean gradient and that of the step agree.

    With the moments :math:`m_t, v_t` of Adam (over :math:`1 - \beta^t` where their bias is
    corrected), the gradient :math:`g_t`, the rate :math:`\eta` and the weight decay
    :math:`\lambda`,

    .. math::

        \theta_{t+1} = (1 - \eta \lambda) \, \theta_t
            - \eta \, \frac{\mathrm{minmod}(m_t, g_t)}{\sqrt{v_t} + \epsilon} , \qquad
        \mathrm{minmod}(a, b) = \tfrac{1}{2} (\mathrm{sgn}\, a + \mathrm{sgn}\, b)
            \min(|a|, |b|) .

    Adam has :math:`m_t` there. An entry whose gradients are noise stays where it is in half of the
    steps; one whose gradients agree moves as under Adam, and none moves further. State, arguments
    and cost are those of ``mlx.optimizers.AdamW``.

    References:
        Liang, Chen, Liu, Liu, *Cautious Optimizers: Improving Training with One Line of Code*,
        2024, arXiv 2411.16085, algorithm 1, which takes the whole :math:`m_t` where the signs
        agree and lengthens the step by what stays. That jumps where a gradient is zero up to
        rounding, so runs that differ in rounding alone part; minmod, the limiter of LeVeque,
        *Finite Volume Methods for Hyperbolic Problems*, 2002, equation 6.26, is continuous. In
        place of the mask it is a heuristic; ``tools/bench/train.py smollm2`` measures it.

    Examples:
        >>> cautious, x = CautiousAdamW(0.1, weight_decay=0.0), {"x": mx.zeros(2)}
        >>> x = cautious.apply_gradients({"x": mx.array([1.0, 1.0])}, x)
        >>> turned = cautious.apply_gradients({"x": mx.array([1.0, -0.5])}, x)
        >>> (turned["x"] < x["x"]).tolist(), (turned["x"] == x["x"]).tolist()
        ([True, False], [False, True])
    """

    def apply_single(
        self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]
    ) -> mx.array:
        """Return the parameter after a step, and update its moments."""
        rate = self.learning_rate.astype(gradient.dtype)
        b1, b2 = self.betas
        m = state["m"] = b1 * state["m"] + (1 - b1) * gradient
        v = state["v"] = b2 * state["v"] + (1 - b2) * mx.square(gradient)
        if self.bias_correction:
            m, v = (a / (1 - b**self.step).astype(a.dtype) for a, b in ((m, b1), (v, b2)))
        step = rate * minmod(m, gradient) / (mx.sqrt(v) + self.eps)
        return cast(mx.array, parameter * (1 - rate * self.weight_decay) - step)


def minmod(a: mx.array, b: mx.array) -> mx.array:
    """Return the smaller of both where their signs agree, else 0."""
    return 0.5 * (mx.sign(a) + mx.sign(b)) * mx.minimum(mx.abs(a), mx.abs(b))
