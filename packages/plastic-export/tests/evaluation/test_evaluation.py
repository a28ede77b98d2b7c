"""Figures against their definitions, computed in NumPy float64 from the models' own logits."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import mlx.core as mx
import numpy as np
import pytest
import sentencepiece
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from numpy.typing import NDArray
from plastic_core.files import FormatError
from plastic_export.cli.command import main
from plastic_export.evaluation.estimates import Comparison, Evaluation
from plastic_export.evaluation.evaluation import compare, evaluate
from plastic_export.evaluation.intervals import confidence_interval
from plastic_export.model.load import load_model
from plastic_export.model.text import text_windows
from plastic_export.model.tokenizer import load_tokenizer

MakeModel = Callable[..., Path]

VOCABULARY = 400
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
WINDOW = 12
CERTAIN = 1e-9  # no token of these models is less likely
TEXT = Path(json.__file__).read_text(encoding="utf-8")


def tokenizer_model(text: str) -> bytes:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=writer,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    return writer.getvalue()


@pytest.fixture(scope="session")
def pieces() -> bytes:
    """A sentencepiece model of the text."""
    return tokenizer_model(TEXT)


@pytest.fixture
def make_model(tmp_path: Path, pieces: bytes) -> MakeModel:
    """``make_model(name, seed=0, head=1.0)``: a random Llama whose output layer is scaled."""

    def make(name: str, *, seed: int = 0, head: float = 1.0, pieces: bytes = pieces) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(pieces)
        tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (folder / "config.json").write_text(json.dumps(CONFIG))
        mx.save_safetensors(str(folder / "model.safetensors"), _weights(seed, head))
        return folder

    return make


def _weights(seed: int, head: float) -> dict[str, mx.array]:
    model = llama.Model(llama.ModelArgs.from_dict(CONFIG))
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    shapes = {name: weight.shape for name, weight in parameters.items()}
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    weights = {
        name: mx.random.normal(shape, key=key) * shape[-1] ** -0.5
        for (name, shape), key in zip(shapes.items(), list(keys), strict=True)
    }
    return weights | {"lm_head.weight": weights["lm_head.weight"] * head}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """The text as a file."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def log_probabilities(folder: Path, tokens: mx.array) -> NDArray[np.float64]:
    logits = np.asarray(load_model(folder)(tokens[:, :-1]), np.float64)
    total: NDArray[np.float64] = np.exp(logits).sum(axis=-1, keepdims=True)
    return logits - np.log(total)


def expected(folder: Path, reference: Path, windows: int) -> dict[str, NDArray[np.float64]]:
    """Each measure, averaged within each window."""
    tokens = text_windows(load_tokenizer(folder), TEXT, length=WINDOW, limit=windows)
    p, q = log_probabilities(folder, tokens), log_probabilities(reference, tokens)
    targets = np.asarray(tokens)[:, 1:, None]
    return {
        "nll": -np.take_along_axis(p, targets, axis=-1)[..., 0].mean(axis=1),
        "kl": (np.exp(q) * (q - p)).sum(axis=-1).mean(axis=1),
        "top1": (p.argmax(axis=-1) == q.argmax(axis=-1)).mean(axis=1),
    }


def rounding(scale: float) -> float:
    """What float32 leaves undetermined in a sum over the vocabulary of terms of this scale."""
    return 10 * VOCABULARY * float(np.finfo(np.float32).eps) * scale


def one(results: Sequence[Evaluation]) -> Evaluation:
    assert len(results) == 1
    return results[0]


def test_every_figure_is_its_definition(make_model: MakeModel, text: Path) -> None:
    folder, reference = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    result = one(evaluate(folder, [text], reference=reference, window=WINDOW, windows=10))
    for name, values in expected(folder, reference, 10).items():
        atol = rounding(float(np.abs(values).max()))
        assert getattr(result, name) == pytest.approx(values.mean(), rel=0, abs=atol), name
        error = values.std(ddof=1) / math.sqrt(10)
        assert getattr(result, f"{name}_error") == pytest.approx(error, rel=0, abs=atol), name
    assert result.perplexity == math.exp(result.nll)
    assert result.perplexity_error == result.perplexity * result.nll_error
    assert (result.text, result.windows, result.tokens) == ("text.txt", 10, 10 * (WINDOW - 1))


def test_the_divergence_is_from_the_reference_and_not_to_it(
    make_model: MakeModel, text: Path
) -> None:
    sharp, flat = make_model("sharp", head=8.0), make_model("flat", head=0.0)
    result = one(evaluate(flat, [text], reference=sharp, window=WINDOW, windows=4))
    entropy = np.log(VOCABULARY) - one(evaluate(flat, [text], window=WINDOW, windows=4)).nll
    assert abs(entropy) < rounding(np.log(VOCABULARY))
    kl = expected(flat, sharp, 4)["kl"].mean()
    back = expected(sharp, flat, 4)["kl"].mean()
    assert abs(kl - back) > 100 * rounding(kl)
    assert result.kl == pytest.approx(kl, rel=0, abs=rounding(kl))


def test_a_model_does_not_diverge_from_itself(make_model: MakeModel, text: Path) -> None:
    folder = make_model("a")
    result = one(evaluate(folder, [text], reference=folder, window=WINDOW, windows=4))
    step = math.log(VOCABULARY / CERTAIN) / 2**16  # the widest of the reference's codes
    assert result.kl is not None
    assert 0 <= result.kl < step**2
    assert (result.top1, result.top1_error) == (1.0, 0.0)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    make_model: MakeModel, text: Path
) -> None:
    result = one(evaluate(make_model("flat", head=0.0), [text], window=WINDOW, windows=4))
    atol = rounding(math.log(VOCABULARY))
    assert result.nll == pytest.approx(math.log(VOCABULARY), rel=0, abs=atol)
    assert result.perplexity == pytest.approx(VOCABULARY, rel=atol)
    assert result.nll_error <= atol
    assert result.kl is None
    assert result.top1 is None


def test_one_window_has_no_standard_error(make_model: MakeModel, text: Path) -> None:
    result = one(evaluate(make_model("a"), [text], window=WINDOW, windows=1))
    assert math.isfinite(result.nll)
    assert result.nll_error is None


def test_batches_of_any_size_give_the_same_figures(
    make_model: MakeModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reference = make_model("a"), make_model("b", seed=1)

    options = {"reference": reference, "window": WINDOW, "windows": 10}
    several = one(evaluate(folder, [text], **options))
    monkeypatch.setattr("plastic_export.evaluation.measures.LOGITS", 1)
    single = one(evaluate(folder, [text], **options))
    assert several.nll == pytest.approx(single.nll, rel=rounding(1))
    assert several.kl == pytest.approx(single.kl, rel=0, abs=rounding(1))


def test_each_text_is_measured_by_itself(make_model: MakeModel, text: Path) -> None:
    folder = make_model("a", head=4.0)
    other = text.with_name("other.txt")
    other.write_text("0 1 2 3 4 5 6 7 8 9 " * 20, encoding="utf-8")
    both = evaluate(folder, [text, other], window=WINDOW, windows=4)
    assert [r.text for r in both] == ["text.txt", "other.txt"]
    assert both[0] == one(evaluate(folder, [text], window=WINDOW, windows=4))
    assert both[1] == one(evaluate(folder, [other], window=WINDOW, windows=4))


def test_a_short_text_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(ValueError, match="fewer than one window of 256") as caught:
        evaluate(make_model("a"), [short])
    assert caught.value.__notes__ == [f"in {short}"]


def test_a_reference_with_another_tokenizer_is_refused(make_model: MakeModel, text: Path) -> None:
    other = tokenizer_model("".join(reversed(TEXT)))
    folder, reference = make_model("a"), make_model("b", pieces=other)
    with pytest.raises(ValueError, match=r"`reference` .* splits the text into other tokens"):
        evaluate(folder, [text], reference=reference, window=WINDOW)


def test_a_missing_folder_is_an_error_of_input(text: Path, tmp_path: Path) -> None:
    with pytest.raises((FormatError, OSError), match="nowhere"):
        evaluate(tmp_path / "nowhere", [text])


def test_limits_are_around_their_estimates(make_model: MakeModel, text: Path) -> None:
    folder, reference = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    r = one(evaluate(folder, [text], reference=reference, window=WINDOW, windows=10))
    assert r.nll_error is not None
    assert r.kl is not None
    assert r.kl_error is not None
    assert r.nll_interval == confidence_interval(r.nll, r.nll_error, 10)
    assert r.kl_interval == confidence_interval(r.kl, r.kl_error, 10)
    assert r.perplexity_interval == tuple(math.exp(x) for x in r.nll_interval)
    alone = one(evaluate(folder, [text], window=WINDOW, windows=1))
    assert (alone.nll_interval, alone.perplexity_interval, alone.kl_interval) == (None, None, None)


def test_limits_stay_within_what_is_possible() -> None:
    one_in_two = {"kl": 0.5, "kl_error": 0.5, "top1": 0.5, "top1_error": 0.5}
    r = Evaluation("t", 2, 2, 800.0, 1.0, math.inf, math.inf, **one_in_two)
    assert r.kl_interval is not None
    assert r.kl_interval[0] == 0
    assert r.kl_interval[1] > 5
    assert r.top1_interval == (0, 1)
    assert r.perplexity_interval is not None
    assert r.perplexity_interval[1] == math.inf


def test_several_checkpoints_are_measured_as_each_is_alone(
    make_model: MakeModel, text: Path
) -> None:
    sources = [make_model(name, seed=seed, head=4.0) for seed, name in enumerate("abc")]
    other = text.with_name("other.txt")
    other.write_text("0 1 2 3 4 5 6 7 8 9 " * 20, encoding="utf-8")
    options = {"reference": make_model("r", seed=9, head=4.0), "window": WINDOW, "windows": 10}
    together = compare(sources, [text, other], **options)
    expected = [evaluate(s, [t], **options) for t in (text, other) for s in sources]
    assert [replace(r, difference=None) for r in together] == [one(e) for e in expected]
    assert [r.checkpoint for r in together] == 2 * [str(s) for s in sources]
    assert [r.difference is None for r in together] == 2 * [True, False, False]


def test_the_difference_is_taken_window_by_window(make_model: MakeModel, text: Path) -> None:
    first, second = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    reference = make_model("r", seed=9, head=4.0)
    for judge, name in ((reference, "kl"), (None, "nll")):
        results = compare([first, second], [text], reference=judge, window=WINDOW, windows=10)
        own, that = (expected(f, reference, 10)[name] for f in (second, first))
        atol = rounding(float(np.abs(own).max()))
        difference = results[1].difference
        assert difference is not None
        assert difference.measure == name
        assert difference.mean == pytest.approx((own - that).mean(), rel=0, abs=atol)
        error = (own - that).std(ddof=1) / math.sqrt(10)
        assert difference.error == pytest.approx(error, rel=0, abs=atol)
        assert difference.error is not None
        limits = confidence_interval(difference.mean, difference.error, 10)
        assert difference.interval == limits


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-2.0, -1.0), "better"),
        ((1.0, 2.0), "worse"),
        ((-1.0, 2.0), "no difference shown"),
        ((0.0, 0.0), "no difference shown"),
        (None, "no difference shown"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(
    interval: tuple[float, float] | None, verdict: str
) -> None:
    assert Comparison("kl", 0.0, None, interval).verdict == verdict


def test_the_better_checkpoint_is_found(make_model: MakeModel, text: Path) -> None:
    reference, near, far = (make_model(f"head {h}", head=h) for h in (4.0, 3.9, 2.0))
    options = {"reference": reference, "window": WINDOW, "windows": 10}
    verdicts = [
        r.difference and r.difference.verdict for r in compare([far, near, far], [text], **options)
    ]
    assert verdicts == [None, "better", "no difference shown"]
    worse = compare([near, far], [text], **options)[1].difference
    assert worse is not None
    assert worse.verdict == "worse"


def test_no_checkpoint_is_refused(text: Path) -> None:
    with pytest.raises(ValueError, match="`sources` must name at least one"):
        compare([], [text])


def test_another_tokenizer_among_the_checkpoints_is_refused(
    make_model: MakeModel, text: Path
) -> None:
    other = make_model("b", pieces=tokenizer_model("".join(reversed(TEXT))))
    with pytest.raises(ValueError, match=r"b' splits the text into other tokens than '.*a'"):
        compare([make_model("a"), other], [text], window=WINDOW)


def test_predictions_that_are_not_finite_are_an_error(make_model: MakeModel, text: Path) -> None:
    bad = make_model("bad", head=math.nan)
    with pytest.raises(FormatError, match=r"bad: .*text\.txt.* not finite"):
        evaluate(bad, [text], window=WINDOW)


RECORD = {
    *("checkpoint", "text", "windows", "tokens", "difference", "vocabulary"),
    *("padding", "overflows", "not_finite", "lost", "distance", "size", "runtime", "settings"),
    *("nll", "nll_error", "nll_interval", "perplexity", "perplexity_error", "perplexity_interval"),
    *("kl", "kl_error", "kl_interval", "top1", "top1_error", "top1_interval"),
}


def test_the_command_tells_machines_and_people_the_same(
    make_model: MakeModel, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, near, far = (make_model(f"head{h}", head=h) for h in (4.0, 3.9, 2.0))
    words = [str(far), str(near), "--reference", str(reference), "--text", str(text)]
    words = ["evaluate", *words, "--window", str(WINDOW), "--windows", "10"]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--json"])
    records = json.loads(capsys.readouterr().out)["evaluations"]
    results = compare([far, near], [text], reference=reference, window=WINDOW, windows=10)
    assert [r.keys() for r in records] == [RECORD, RECORD]
    for record, result in zip(records, results, strict=True):
        for name in RECORD - {"difference", "distance", "size", "runtime", "settings"}:
            value = getattr(result, name)
            assert record[name] == (list(value) if isinstance(value, tuple) else value), name
        assert result.distance is not None
        assert record["distance"]["ratio"]["value"] == result.distance.ratio.value
        percentiles = result.distance.kl_over_tokens.percentiles
        assert record["distance"]["kl_over_tokens"]["percentiles"]["90.0"] == percentiles[90.0]
        assert record["size"]["model_bytes"] == (far / "model.safetensors").stat().st_size
        assert record["settings"]["digest"] == result.settings.digest
        assert record["runtime"]["tokens_per_second"] > 0
    assert records[0]["difference"] is None
    assert records[1]["difference"].keys() == {"measure", "mean", "error", "interval", "verdict"}
    assert records[1]["difference"]["verdict"] == "better"
    with pytest.raises(SystemExit, match="0"):
        main(words)
    table = capsys.readouterr().out
    for record in records:
        low, high = (1e3 * limit for limit in record["kl_interval"])
        assert f"{1e3 * record['kl']:.3f} [{low:.3f}, {high:.3f}]" in table
    low, high = (1e3 * limit for limit in records[1]["difference"]["interval"])
    assert re.search(re.escape(f"[{low:+.3f}, {high:+.3f}]") + r" +better\n", table)


def test_the_command_takes_one_checkpoint_without_a_reference(
    make_model: MakeModel, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(make_model("a")), "--text", str(text), "--window", str(WINDOW)]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--json"])
    (record,) = json.loads(capsys.readouterr().out)["evaluations"]
    assert record.keys() == RECORD
    assert {name for name, value in record.items() if value is None} == {
        *("kl", "kl_error", "kl_interval", "top1", "top1_error", "top1_interval", "difference"),
        *("distance", "lost"),
    }


def test_the_worst_windows_are_named_the_worst_first(make_model: MakeModel, text: Path) -> None:
    folder, reference = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    options = {"reference": reference, "window": WINDOW, "windows": 8}
    result = one(evaluate(folder, [text], **options))
    assert result.distance is not None
    worst = result.distance.worst_windows
    assert len(worst) == len({w.window for w in worst}) == 5
    assert [w.kl for w in worst] == sorted((w.kl for w in worst), reverse=True)
    assert all(1 <= w.window <= 8 for w in worst)
    assert result.kl is not None
    assert worst[0].kl > result.kl > worst[-1].kl * 5 / 8


def test_no_perplexity_is_below_one() -> None:
    result = Evaluation("t", 2, 100, nll=1.9, nll_error=2.0, perplexity=6.7, perplexity_error=13.4)
    assert result.nll_interval is not None
    assert result.perplexity_interval is not None
    assert (result.nll_interval[0], result.perplexity_interval[0]) == (0.0, 1.0)


def test_a_saved_reference_is_worth_the_checkpoint(
    make_model: MakeModel, text: Path, tmp_path: Path
) -> None:
    folder, judge = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    options = {"window": WINDOW, "windows": 10}
    file = tmp_path / "saved"
    first = evaluate(folder, [text], reference=judge, save_reference=file, **options)
    assert evaluate(folder, [text], reference=judge, **options) == first
    assert evaluate(folder, [text], reference=file, **options) == first


def test_a_saved_reference_of_something_else_is_refused(
    make_model: MakeModel, text: Path, tmp_path: Path
) -> None:
    folder, file, other = make_model("a"), tmp_path / "saved", tmp_path / "other.txt"
    saved = {"reference": folder, "save_reference": file, "window": WINDOW, "windows": 4}
    evaluate(folder, [text], **saved)
    other.write_text(TEXT[::-1])
    for texts, window, windows, what in (
        ([text], WINDOW + 1, 4, "window length: 12, not 13"),
        ([text], WINDOW, 5, "number of windows: 4, not 5"),
        ([other], WINDOW, 4, "text"),
        ([text, other], WINDOW, 4, "text"),
    ):
        with pytest.raises(FormatError, match=f"saved: it was saved with another {what}"):
            evaluate(folder, texts, reference=file, window=window, windows=windows)
    with pytest.raises(FormatError, match="another convention: None, not 'mlx-lm'"):
        evaluate(folder, [text], reference=file, window=WINDOW, windows=4, like="mlx-lm")
    cut_otherwise = make_model("b", pieces=tokenizer_model("".join(reversed(TEXT))))
    with pytest.raises(FormatError, match="another tokenizer"):
        evaluate(cut_otherwise, [text], reference=file, window=WINDOW, windows=4)


def test_what_cannot_be_saved_is_refused_before_the_work(make_model: MakeModel, text: Path) -> None:
    folder = make_model("a")
    with pytest.raises(FormatError, match=r"text\.txt: it exists"):
        evaluate(folder, [text], reference=folder, save_reference=text)
    for reference in (None, text):
        with pytest.raises(ValueError, match="`save_reference` needs a `reference`"):
            evaluate(folder, [text], reference=reference, save_reference=text)


def test_an_interruption_leaves_no_file(
    make_model: MakeModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, file, turns = tmp_path / "temporary", tmp_path / "saved", [0]
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    def track(items: Sequence[Any], description: str) -> Iterable[Any]:
        turns[0] -= 1
        if turns[0] == 0:
            raise KeyboardInterrupt
        return items

    folder = make_model("a")
    options = {"window": WINDOW, "windows": 4, "reference": folder, "track": track}
    for turn, saved in ((1, file), (2, None)):  # within the reference, after it
        turns[0] = turn
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, [text], save_reference=saved, **options)
        assert list(temporary.iterdir()) == []
        assert not file.exists()


def test_a_saved_reference_tells_the_weights_that_bits_are_counted_by(
    make_model: MakeModel, text: Path, tmp_path: Path
) -> None:
    judge, file = make_model("a"), tmp_path / "saved"
    options = {"window": WINDOW, "windows": 4}
    saved = one(evaluate(judge, [text], reference=judge, save_reference=file, **options))
    assert saved.size is not None
    assert saved.size.bits_per_weight is not None
    assert 32 < saved.size.bits_per_weight < 33  # norms and the header
    few = {**CONFIG, "intermediate_size": 12}
    small = make_model("b")
    weights = mx.load(str(small / "model.safetensors"))
    assert isinstance(weights, dict)
    for name in ("gate_proj", "up_proj", "down_proj"):
        full = f"model.layers.0.mlp.{name}.weight"
        weights[full] = weights[full][:, :12] if name == "down_proj" else weights[full][:12]
    mx.save_safetensors(str(small / "model.safetensors"), weights)
    (small / "config.json").write_text(json.dumps(few))
    found = one(evaluate(small, [text], reference=file, **options)).size
    assert found is not None
    ratio = found.model_bytes / saved.size.model_bytes
    assert found.bits_per_weight == pytest.approx(saved.size.bits_per_weight * ratio)


def test_half_of_every_window_is_scored_as_llama_cpp_does(
    make_model: MakeModel, text: Path
) -> None:
    folder, reference = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    options = {"like": "llama.cpp", "window": WINDOW, "windows": 6, "both_directions": True}
    result = one(evaluate(folder, [text], reference=reference, **options))
    tokens = load_tokenizer(folder).encode(TEXT)[: 6 * WINDOW]
    windows = np.array(tokens).reshape(6, WINDOW)
    windows[:, 0] = tokens[0]
    p, q = (log_probabilities(f, mx.array(windows))[:, WINDOW // 2 :] for f in (folder, reference))
    nll = -np.take_along_axis(p, windows[:, WINDOW // 2 + 1 :, None], axis=-1).ravel()
    kl, back = (np.exp(q) * (q - p)).sum(axis=-1), (np.exp(p) * (p - q)).sum(axis=-1)
    atol = rounding(float(np.abs(nll).max()))
    assert result.tokens == nll.size == 6 * (WINDOW - 1 - WINDOW // 2)
    assert result.nll == pytest.approx(nll.mean(), rel=0, abs=atol)
    assert result.nll_error == pytest.approx(nll.std(ddof=1) / math.sqrt(nll.size), abs=atol)
    assert result.nll_interval == confidence_interval(result.nll, result.nll_error, nll.size)
    assert result.kl == pytest.approx(kl.mean(), rel=0, abs=atol)
    assert result.distance is not None
    assert result.distance.back is not None
    assert result.distance.back.value == pytest.approx(back.mean(), rel=0, abs=atol)


def test_all_windows_are_read_where_the_tool_reads_all(make_model: MakeModel, text: Path) -> None:
    folder = make_model("a")
    tokens = len(load_tokenizer(folder).encode(TEXT))
    result = one(evaluate(folder, [text], like="llama.cpp", window=WINDOW))
    assert result.windows == tokens // WINDOW
    with pytest.raises(ValueError, match=rf"{tokens} tokens; as llama.cpp .* {2 * tokens} tokens"):
        evaluate(folder, [text], like="llama.cpp", window=tokens)


def spoilt(folder: Path, token: int) -> Path:
    """Let a model be NaN in every window that has a token."""
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.embed_tokens.weight"][token] = mx.nan
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def test_the_share_that_is_not_finite_is_told_with_its_place(
    make_model: MakeModel, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, reference = make_model("a"), make_model("b", seed=1)
    tokens = text_windows(load_tokenizer(folder), TEXT, length=WINDOW, limit=4)
    last = int(tokens[2, -2])  # it stands there, and may stand elsewhere
    lost = (np.asarray(tokens)[:, :-1] == last).any(axis=1)  # attention takes 0 times NaN
    words = ["--window", str(WINDOW), "--windows", "4", "--text", str(text)]
    spoilt(folder, last)
    result = one(evaluate(folder, [text], reference=reference, window=WINDOW, windows=4))
    assert result.not_finite == pytest.approx(lost.mean())
    first = int(lost.argmax()) + 1
    assert result.lost == f"window {first}, after model.layers.0"
    assert result.kl == result.perplexity == math.inf
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", str(folder), "--reference", str(reference), *words, "--full"])
    printed = capsys.readouterr().out
    assert f"not finite: {lost.mean():.2%} of the tokens of text.txt in {folder}" in printed
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(reference), "--reference", str(folder), *words])
    message = capsys.readouterr().err
    assert "its predictions are not finite, after model.layers.0" in message


def test_the_command_says_how_many_tokens_a_percentile_needs(
    make_model: MakeModel, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, reference = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    words = ["evaluate", str(folder), "--text", str(text), "--window", str(WINDOW)]
    words += ["--reference", str(reference)]
    for count, is_known in ((4, False), (100, True)):
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--windows", str(count)])
        printed = capsys.readouterr().out
        assert ("99.9 %  top-1" in printed) == is_known
        scored = count * (WINDOW - 1)
        why = f"no 99.9 % of text.txt: it needs 1000 tokens, and {scored} were scored"
        assert (why in printed) != is_known


def test_the_command_prints_everything_on_request(
    make_model: MakeModel, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, reference = make_model("a", head=4.0), make_model("b", seed=1, head=4.0)
    words = ["evaluate", str(folder), "--text", str(text), "--window", str(WINDOW)]
    words += ["--reference", str(reference), "--windows", "4", "--like", "mlx-lm"]
    plot = tmp_path / "kl.png"
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--full", "--both-directions", "--plot", str(plot)])
    printed, said_beside = capsys.readouterr()
    assert f"plot: {plot}\n" in said_beside
    options = {"window": WINDOW, "windows": 4, "like": "mlx-lm", "both_directions": True}
    result = one(evaluate(folder, [text], reference=reference, **options))
    d = result.distance
    assert d is not None
    assert d.back is not None
    assert d.correlation is not None
    assert d.kl_over_tokens.median is not None
    assert result.perplexity_error is not None
    for said in (
        f"text.txt: {folder}",
        f"perplexity         {result.perplexity:.6f} ± {result.perplexity_error:.6f} [",
        f"ratio              {d.ratio.value:.6f} ± {d.ratio.error:.6f} [",
        f"correlation of ln  {d.correlation:.2%}",
        f"KL, mnat, back     {1e3 * d.back.value:.6f} ± ",
        f"same top 5, %      {1e2 * d.top5.value:.3f} ± ",
        f"its RMS, %         {1e2 * d.change_rms.value:.3f} ± ",
        f"worst windows, mnat  {1e3 * d.worst_windows[0].kl:.3f} in window ",
        f"median {1e3 * d.kl_over_tokens.median:.6f}",
        "needs 1000 tokens",
        "tokens per second",
        "Student's t over the tokens",
        f"settings   {result.settings and result.settings.digest}: text.txt",
        "BOS: the text; float32 on cpu; like mlx-lm",
    ):
        assert " ".join(said.split()) in " ".join(printed.split()), said
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_a_plot_that_cannot_be_is_refused_before_the_work(
    make_model: MakeModel, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(make_model("a"))
    words = ["evaluate", folder, "--text", str(text), "--plot", str(text)]
    for more, why in (([], "from a --reference"), (["--reference", folder], "was not written by")):
        with pytest.raises(SystemExit, match="2"):
            main([*words, *more])
        (line,) = capsys.readouterr().err.splitlines()
        assert why in line
    assert text.read_text(encoding="utf-8") == TEXT
