"""``evaluate --like``: the figures of mlx-lm, run here, and of llama.cpp, run once and kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm import perplexity
from mlx_lm.tuner.datasets import TextDataset
from numpy.typing import NDArray
from plastic_export import Evaluation, evaluate, load_tokenizer

Once = Callable[..., Any]
KEPT = Path(__file__).parents[1] / "codex" / "evidence" / "llama-cpp.txt"


@pytest.fixture(scope="session")
def four_bits(checkpoint: Path, once: Once) -> Path:
    """The checkpoint as ``mlx_lm.convert -q`` writes it, in 4 bits and groups of 64."""

    def make(folder: Path) -> Path:
        mlx_lm.convert(str(checkpoint), str(folder / "Q4"), quantize=True, q_bits=4)
        return folder / "Q4"

    found: Path = once("four-bits", make)
    return found


@pytest.mark.parametrize("samples", [4, 12])
def test_mlx_lm_prints_the_same_perplexity(
    checkpoint: Path, heldout: Path, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """Stock ``mlx_lm.perplexity`` on a data set that has the text as its one document."""

    def of_one_text(args: Any, tokenizer: Any) -> tuple[Any, None, None]:
        return TextDataset([{"text": heldout.read_text()}], tokenizer), None, None

    monkeypatch.setattr(perplexity, "load_dataset", of_one_text)
    model, tokenizer = mlx_lm.load(str(checkpoint))
    model.set_dtype(mx.float32)  # as evaluate computes on a CPU
    data = perplexity.load_data(tokenizer, "", num_samples=samples, sequence_length=512)
    stock, error = perplexity.eval_ppl(model, data)
    (ours,) = evaluate(checkpoint, [heldout], like="mlx-lm", windows=samples)
    assert (ours.windows, ours.tokens) == (samples, samples * 511)
    assert f"{ours.perplexity:.3f} ± {ours.perplexity_error:.3f}" == f"{stock:.3f} ± {error:.3f}"


def printed(label: str, after: str = ": ") -> float:
    """Return what the kept run of llama-perplexity printed after a label, or its error."""
    lines = [" ".join(line.split()) for line in KEPT.read_text().splitlines()]
    (line,) = [line for line in lines if re.match(rf"{re.escape(label)} ?:", line)]
    found = re.search(rf"{after}(-?[0-9.]+)", line)
    assert found, label
    return float(found[1])


def error_of(label: str) -> float:
    return printed(label, after="± ")


@pytest.fixture(scope="module")
def like_llama(four_bits: Path, checkpoint: Path, heldout: Path) -> Evaluation:
    (result,) = evaluate(four_bits, [heldout], reference=checkpoint, like="llama.cpp")
    return result


STEPS = 5e-5
"""What the 16 bits in equal steps change of one token, in which llama.cpp saves the reference's
logarithms: nats. The mean changes by a fiftieth of that."""


def test_llama_cpp_printed_the_same_means_and_errors(like_llama: Evaluation) -> None:
    r, d = like_llama, like_llama.distance
    assert d is not None
    assert d.correlation is not None
    assert r.perplexity_error is not None
    assert r.kl is not None
    assert r.top1 is not None
    assert r.perplexity == pytest.approx(printed("Mean PPL(Q)"), abs=1e-5)
    assert r.perplexity_error == pytest.approx(error_of("Mean PPL(Q)"), abs=1e-6)
    assert d.reference_perplexity == pytest.approx(printed("Mean PPL(base)"), abs=2e-5)
    assert d.log_ratio.value == pytest.approx(printed("Mean ln(PPL(Q)/PPL(base))"), abs=3e-6)
    assert d.log_ratio.error == pytest.approx(error_of("Mean ln(PPL(Q)/PPL(base))"), abs=1e-6)
    assert d.ratio.value == pytest.approx(printed("Mean PPL(Q)/PPL(base)"), abs=3e-6)
    assert f"{100 * d.correlation:.2f}" == f"{printed('Cor(ln(PPL(Q)), ln(PPL(base)))'):.2f}"
    assert r.kl == pytest.approx(printed("Mean KLD"), abs=2e-6)
    assert r.kl_error == pytest.approx(error_of("Mean KLD"), abs=1e-6)
    assert f"{100 * d.change.value:.3f}" == f"{printed('Mean Δp'):.3f}"
    assert f"{100 * d.change_rms.value:.3f}" == f"{printed('RMS Δp'):.3f}"
    assert d.change_rms.error == pytest.approx(error_of("RMS Δp") / 100, abs=5e-6)
    assert f"{100 * r.top1:.3f}" == f"{printed('Same top p'):.3f}"


def test_llama_cpp_printed_the_same_percentiles(like_llama: Evaluation) -> None:
    d = like_llama.distance
    assert d is not None
    for percent, kl in d.kl_over_tokens.percentiles.items():
        if percent not in (25.0, 75.0):  # which it prints of the other alone
            name = "Median" if percent == 50 else f"{percent:.1f}%"
            assert kl == pytest.approx(printed(f"{name} KLD"), abs=STEPS), percent
    for percent, change in d.change_over_tokens.percentiles.items():
        name = "Median" if percent == 50 else f"{percent:.1f}%"
        assert change is not None
        assert 100 * change == pytest.approx(printed(f"{name} Δp"), abs=3e-3), percent
    assert d.kl_over_tokens.most == pytest.approx(printed("Maximum KLD"), abs=STEPS)
    assert d.kl_over_tokens.least == pytest.approx(printed("Minimum KLD"), abs=STEPS)
    assert 100 * d.change_over_tokens.most == pytest.approx(printed("Maximum Δp"), abs=3e-3)
    assert 100 * d.change_over_tokens.least == pytest.approx(printed("Minimum Δp"), abs=3e-3)


def in_equal_steps(log_q: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities as llama.cpp saves them: 65,536 equal steps, at most 16 nats down."""
    least = np.maximum(log_q.min(axis=-1), log_q.max(axis=-1) - 16)[:, None]
    scale = (log_q.max(axis=-1, keepdims=True) - least) / np.float32(65535)
    codes = np.where(log_q > least, np.rint((log_q - least) / scale), 0)
    return (scale * codes + least).astype(np.float32)


@pytest.mark.long
def test_the_steps_of_its_saved_logits_are_all_that_differs(
    four_bits: Path, checkpoint: Path, heldout: Path
) -> None:
    """Its formulas on stock mlx-lm's logits, with its way of saving the reference."""
    tokens = load_tokenizer(checkpoint).encode(heldout.read_text())
    windows = np.array(tokens[: len(tokens) // 512 * 512]).reshape(-1, 512)
    windows[:, 0] = json.loads((checkpoint / "config.json").read_text())["bos_token_id"]
    log_p, log_q = (np.concatenate(list(predicted(f, windows))) for f in (four_bits, checkpoint))
    log_q = in_equal_steps(log_q)
    targets = windows[:, 257:].reshape(-1, 1)
    kl = np.where(log_q > -16, np.exp(log_q) * (log_q - log_p), 0).sum(axis=-1)
    assert f"{kl.mean():.6f}" == f"{printed('Mean KLD'):.6f}"
    for label, value in {
        "Maximum KLD": kl.max(),
        "99.9% KLD": np.quantile(kl, 0.999),
        "99.0% KLD": np.quantile(kl, 0.99),
        "95.0% KLD": np.quantile(kl, 0.95),
        "90.0% KLD": np.quantile(kl, 0.9),
        "Median KLD": np.median(kl),
        "10.0% KLD": np.quantile(kl, 0.1),
        "Mean PPL(base)": math.exp(-np.take_along_axis(log_q, targets, axis=-1).mean()),
        "Mean PPL(Q)": math.exp(-np.take_along_axis(log_p, targets, axis=-1).mean()),
    }.items():  # sums in another order turn some of the codes
        assert value == pytest.approx(printed(label), abs=STEPS / 2), label


def predicted(folder: Path, windows: NDArray[Any]) -> Any:
    """Yield the log-probabilities of the second half of each window, of stock mlx-lm's model."""
    model, _ = mlx_lm.load(str(folder))
    model.set_dtype(mx.float32)
    for window in windows:
        logits = np.array(model(mx.array(window[None, :-1]))[0, 256:].astype(mx.float32), "f8")
        shifted = logits - logits.max(axis=-1, keepdims=True)
        yield shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
