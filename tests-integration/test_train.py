"""``plastic train``: mlx-lm's own trainer, ranks that change in it, runs that are cut and go on."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.tuner import trainer
from plastic_core import RankLayer
from plastic_core.files import load_safetensors, read_json
from plastic_export import (
    Calibration,
    CheckpointWarning,
    DivergedError,
    FormatError,
    TrainedRun,
    TrainingOptions,
    load_model,
    open_checkpoint,
    read_adapter,
    report,
    train,
    write_adapter,
)
from plastic_export.model import divergences, log_softmax
from plastic_export.training import GAUGE, read_training_data
from plastic_runtime import Generations, PlasticityManager, ResumableBatches, attach
from zoo.building import build_checkpoint

FAULTS = Path(__file__).parents[1] / "tools" / "faults"
SHORT = TrainingOptions(steps=8, batch=2, window=32, rank=2, evaluate_every=4, evaluate_batches=2)
ADAPTED = TrainingOptions(
    steps=24,
    batch=2,
    window=48,
    rank=3,
    learning_rate=1.5e-3,
    decay=False,
    evaluate_every=2,
    evaluate_batches=2,
    plasticity={
        "patience": 1,
        "window": 1,
        "cooldown": 0,
        "delta": 10.0,
        "gamma": 1e-4,
        "guard": 100,
    },
)
FLOAT16 = float(np.finfo(np.float16).eps)  # the rounding of a factor, and more than a loss feels
BLOCKS = ["*.2.self_attn.*", "*.3.mlp.*"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def adapted(
    checkpoint: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainedRun:
    """The trained checkpoint, over-trained on two rows: its validation loss falls, then rises."""
    folder = tmp_path_factory.mktemp("adapted")
    write_rows(folder / "data", calibration.read_text())
    return train(checkpoint, folder / "data", folder / "run", ADAPTED, include=BLOCKS)


@pytest.fixture(scope="module")
def overtrained(adapted: TrainedRun, checkpoint: Path) -> TrainedRun:
    """The same run, with adapters of its last state."""
    options, out = replace(ADAPTED, state="last"), adapted.out.with_name("overtrained")
    return train(checkpoint, adapted.out.with_name("data"), out, options, include=BLOCKS)


def write_rows(folder: Path, text: str) -> None:
    folder.mkdir()
    rows = [{"text": text[i : i + 120]} for i in range(0, 960, 120)]
    for name, own in (("train", rows[:2]), ("valid", rows[2:])):
        lines = (json.dumps(row) + "\n" for row in own)
        (folder / f"{name}.jsonl").write_text("".join(lines))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_in_mlx_lms_trainer_shows_growth_shrink_and_waking_in_its_report(
    adapted: TrainedRun,
) -> None:
    page = report(adapted.out).page.read_text()
    actions = {e.action for _, e in adapted.history.events}
    assert actions == {"grow", "shrink", "wake"}
    for action in actions:
        assert f"<td>{action}</td>" in page
    assert len({layer.last for layer in adapted.history.layers}) > 1
    losses = [loss for _, loss in adapted.history.train]
    assert losses[-1] < 0.5 * losses[0]


def test_stock_mlx_lm_gives_the_same_logits_with_the_adapter(
    overtrained: TrainedRun, checkpoint: Path
) -> None:
    stock, tokenizer = mlx_lm.load(str(checkpoint), adapter_path=str(overtrained.adapter))
    base, _ = mlx_lm.load(str(checkpoint))
    ours = as_written(restored(overtrained, checkpoint, "generations"), overtrained)
    tokens = mx.array([tokenizer.encode("def read(self):\n    return")])
    for model in (stock, base):
        model.set_dtype(mx.float32)
    logits = ours(tokens)
    slack = 100 * np.finfo(np.float32).eps * float(mx.abs(logits).max())
    assert float(mx.abs(stock(tokens) - logits).max()) <= slack
    assert float(mx.abs(base(tokens) - logits).max()) > 1e6 * slack / 100


def test_the_form_of_peft_has_one_rank_and_the_same_weights(
    adapted: TrainedRun, checkpoint: Path
) -> None:
    config = read_json(adapted.peft / "adapter_config.json")
    tensors = load_safetensors(adapted.peft / "adapter_model.safetensors")
    layers = plastic_layers(as_written(restored(adapted, checkpoint), adapted))
    ranks = {path: layer.rank for path, layer in layers.items() if layer.rank}
    assert config["r"] == config["lora_alpha"] == max(ranks.values())
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["base_model_name_or_path"] == str(checkpoint.resolve())
    assert sorted(config["target_modules"]) == sorted(ranks)
    for path in ranks:
        A = tensors.pop(f"base_model.model.{path}.lora_A.weight")
        B = tensors.pop(f"base_model.model.{path}.lora_B.weight")
        assert A.shape[0] == B.shape[1] == config["r"]
        assert A.dtype == B.dtype == mx.float16
        found, dense = B.astype(mx.float32) @ A.astype(mx.float32), layers[path].factors().dense()
        assert float(mx.abs(found - dense).max()) <= 1e-6 * float(mx.abs(dense).max() + 1)
    assert not tensors
    assert read_adapter(adapted.out).ranks == ranks  # zeros that fill up are no components


def test_the_adapters_hold_the_state_of_the_lowest_validation_loss(
    adapted: TrainedRun, checkpoint: Path
) -> None:
    _, tokenizer = mlx_lm.load(str(checkpoint))
    data = adapted.out.with_name("data")
    rows = read_training_data(data, tokenizer, batch=2, window=48, mask_prompt=False)
    order = ResumableBatches(trainer.iterate_batches, seed=ADAPTED.seed)
    with contextlib.redirect_stdout(io.StringIO()):
        model = as_written(restored(adapted, checkpoint), adapted)
        found = trainer.evaluate(model, rows.valid, 2, 2, 48, iterate_batches=order)
    losses = dict(adapted.history.valid)
    assert losses[adapted.written.step] == min(losses.values()) < losses[max(losses)]
    assert found == pytest.approx(adapted.written.loss, rel=1e-5)
    assert adapted.written.loss == pytest.approx(losses[adapted.written.step], rel=FLOAT16)


def test_a_run_is_dialled_to_the_losses_that_its_report_shows(
    adapted: TrainedRun, checkpoint: Path, tmp_path: Path, run: Run
) -> None:
    _, tokenizer = mlx_lm.load(str(checkpoint))
    rows = read_training_data(
        adapted.out.with_name("data"), tokenizer, batch=2, window=48, mask_prompt=False
    )
    sizes = adapted.history.sizes
    assert len(sizes) == 5
    assert sizes[0].loss == adapted.written.loss
    for size in sizes:
        out = tmp_path / str(size.nbytes)
        code, printed, err = run("dial", adapted.out, out, "--max-size", size.nbytes, "--json")
        assert code == 0, err
        record = json.loads(printed)
        assert max(f.stat().st_size for f in out.rglob("*.safetensors")) == size.nbytes
        assert record["nbytes"] == size.nbytes
        stock, _ = mlx_lm.load(str(checkpoint), adapter_path=str(out / "adapters"))
        stock.set_dtype(mx.float32)
        order = ResumableBatches(trainer.iterate_batches, seed=ADAPTED.seed)
        with contextlib.redirect_stdout(io.StringIO()):
            found = trainer.evaluate(stock, rows.valid, 2, 2, 48, iterate_batches=order)
        assert found == pytest.approx(size.loss, rel=1e-5)
    drawn = json.loads(run("report", adapted.out, "--out", tmp_path / "page", "--json")[1])
    assert drawn["sizes"] == [size._asdict() for size in sizes]
    page = (tmp_path / "page" / "report.html").read_text()
    assert all(f"{size.nbytes:,}" in page for size in sizes)
    code, _, err = run("dial", adapted.out, tmp_path / "no", "--max-size", "0.3KB")
    assert (code, err.count("\n")) == (2, 1)
    assert "error: --max-size must be at least" in err


def test_a_run_without_a_price_is_written_and_cannot_be_dialled(
    tiny: Any, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the gradient of the probe is not finite in the last state."""

    def unpriced(*_: Any) -> Any:
        raise ValueError("the probe's loss or gradient is not finite in the layer 'lm_head'")

    monkeypatch.setattr("plastic_export.training.results.order_by_worth", unpriced)
    said: list[str] = []
    done = train(tiny.base, tiny.data, tmp_path / "run", SHORT, say=said.append)
    assert "warning: the probe's loss or gradient is not finite" in said[-1]
    assert done.history.sizes == ()
    mlx_lm.load(str(tiny.base), adapter_path=str(done.adapter))
    code, _, err = run("dial", done.out, tmp_path / "small", "--max-size", "20KB")
    assert (code, err.count("\n")) == (2, 1)
    assert "its components were never priced" in err


def test_a_run_ends_when_patience_does_and_stays_so(
    adapted: TrainedRun, checkpoint: Path, tmp_path: Path
) -> None:
    data, base = adapted.out.with_name("data"), checkpoint
    options = replace(ADAPTED, patience=2)
    done = train(base, data, tmp_path / "run", options, include=BLOCKS)
    assert done.history.steps == done.written.step + 2 * options.interval < ADAPTED.steps
    assert done.written == adapted.written
    before = snapshot(tmp_path / "run")
    assert train(base, data, tmp_path / "run", options, include=BLOCKS).history == done.history
    assert snapshot(tmp_path / "run") == before


def test_a_run_goes_on_from_an_adapter(
    adapted: TrainedRun, checkpoint: Path, tmp_path: Path
) -> None:
    data, options = adapted.out.with_name("data"), replace(ADAPTED, steps=2, rank=2)
    start = write_adapter(read_adapter(adapted.out), tmp_path / "start", "mlx")
    done = train(checkpoint, data, tmp_path / "run", options, include=BLOCKS, start=start)
    assert done.history.valid[0][1] == pytest.approx(adapted.written.loss, rel=1e-5)
    ranks = {layer.path: layer.first for layer in done.history.layers}
    before = read_adapter(start).ranks
    assert ranks == {path: max(2, before.get(path, 0)) for path in ranks}
    with pytest.raises(FormatError, match="start"):
        train(checkpoint, data, tmp_path / "run", options, include=BLOCKS)


def test_an_adapter_of_layers_that_are_not_trained_is_refused(
    adapted: TrainedRun, checkpoint: Path, tmp_path: Path
) -> None:
    data, options = adapted.out.with_name("data"), replace(ADAPTED, steps=2)
    with pytest.raises(ValueError, match="`start` must be an adapter of the layers that are"):
        train(checkpoint, data, tmp_path / "run", options, include=BLOCKS[:1], start=adapted.out)
    assert not (tmp_path / "run").exists()


def test_the_last_state_is_written_where_it_is_asked_for(
    adapted: TrainedRun, overtrained: TrainedRun
) -> None:
    step, loss = overtrained.history.valid[-1]
    assert overtrained.written.step == step
    assert overtrained.written.loss == pytest.approx(loss, rel=FLOAT16)
    first, second = (
        read_json(run.adapter / "adapter_config.json") for run in (adapted, overtrained)
    )
    assert first["lora_parameters"]["rank"] < second["lora_parameters"]["rank"]


def as_written(model: nn.Module, run: TrainedRun) -> nn.Module:
    """A saved state with the components that the adapters hold: the same weights in float16."""
    written = read_adapter(run.out).layers
    for path, layer in plastic_layers(model).items():
        dense = layer.factors().dense()
        A, B = written[path].A.astype(mx.float32), written[path].B.astype(mx.float32)
        lost = float(mx.linalg.norm(B @ A - dense))
        assert lost <= 2 * FLOAT16 * float(mx.linalg.norm(dense)), path
        layer.set_factors(B, mx.ones(len(A)), A)
    return model


def restored(run: TrainedRun, checkpoint: Path, states: str = "best") -> nn.Module:
    """The model in training, made again from a saved state alone."""
    model = load_model(checkpoint)
    model.set_dtype(mx.float32)
    record = read_json(run.out / "plastic-run.json")
    attach(model, 1, keys=[*record["ranks"]], also=[p for p in record["ranks"] if "." not in p])
    options = record["identity"]["option plasticity"]
    training = TrainingOptions(learning_rate=1.0, plasticity=options)
    optimizer = None if states == "best" else training.build_optimizer()
    manager = PlasticityManager(model, optimizer, gauge=GAUGE, **options)
    assert Generations(run.out / states, record["identity"]).load(model, optimizer, manager)
    return model.eval()


def plastic_layers(model: nn.Module) -> dict[str, RankLayer]:
    return {path: m for path, m in model.named_modules() if isinstance(m, RankLayer)}


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.long)])
def test_a_run_killed_again_and_again_ends_with_the_bits_of_an_undisturbed_one(kills: int) -> None:
    words = [sys.executable, str(FAULTS / "kills.py"), "--kills", str(kills)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line[:34].strip(): int(line[34:]) for line in done.stdout.splitlines()}
    assert found["kills at a drawn moment"] + found["kills after a drawn time"] == kills
    assert found["runs completed and compared"] >= 1
    assert found["differing bits"] == found["other differences"] == 0


@pytest.mark.parametrize("bits", [None, 4])
def test_quantised_bases_accumulation_and_checkpointing(
    tiny: Any, tmp_path: Path, bits: int | None
) -> None:
    base = tiny.base
    if bits is not None:
        base = tmp_path / "quantised"
        mlx_lm.convert(str(tiny.base), str(base), quantize=True, q_bits=bits, q_group_size=32)
    training = replace(SHORT, accumulate=2, warmup=1, steps=16, learning_rate=1e-3)
    plain = train(base, tiny.data, tmp_path / "plain", training)
    call = llama.TransformerBlock.__call__
    done = train(base, tiny.data, tmp_path / "run", replace(training, grad_checkpoint=True))
    assert llama.TransformerBlock.__call__ is call  # which mlx-lm replaced
    losses = np.array([loss for _, loss in done.history.valid])
    assert losses[-1] < losses[0] - 0.05
    np.testing.assert_allclose(losses, [loss for _, loss in plain.history.valid], rtol=1e-5)
    mlx_lm.load(str(base), adapter_path=str(done.adapter))


def test_codes_of_fp8_are_trained_as_what_they_stand_for_with_a_word(
    tiny: Any, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    runs = []
    for kind in ("plain", "codes"):
        base = Path(shutil.copytree(tiny.base, tmp_path / kind))
        weights = mx.load(str(base / "model.safetensors"))
        codes = mx.to_fp8(weights[name].astype(mx.float32))
        plain = mx.from_fp8(codes, dtype=mx.float32).astype(mx.bfloat16)
        scale = {f"{name}_scale": mx.array(1.0)} if kind == "codes" else {}
        weights |= scale | {name: codes if kind == "codes" else plain}
        mx.save_safetensors(str(base / "model.safetensors"), weights)
        config = read_json(base / "config.json") | {"dtype": "bfloat16"}
        if kind == "codes":
            config["quantization_config"] = {"quant_method": "fp8"}
        (base / "config.json").write_text(json.dumps(config))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            runs.append(train(base, tiny.data, tmp_path / f"{kind} run", SHORT))
        assert [w.category for w in said] == [CheckpointWarning] * (kind == "codes")
    adapters = [(run.adapter / "adapters.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]


def test_rows_with_prompts_are_learnt_with_the_chat_template(tiny: Any, tmp_path: Path) -> None:
    base, data = chat_base(tiny, tmp_path), tmp_path / "data"
    data.mkdir()
    row = json.dumps({"prompt": "import", "completion": "os"})
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text(f"{row}\n" * 4)
    train(base, data, tmp_path / "run", replace(SHORT, steps=4, mask_prompt=True))


def chat_base(tiny: Any, folder: Path) -> Path:
    """A copy of the base, with a chat template."""
    base: Path = shutil.copytree(tiny.base, folder / "base")
    config = base / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    return base


def test_rows_whose_answer_the_window_cuts_away_are_named_and_not_trained_on(
    tiny: Any, tmp_path: Path, run: Run
) -> None:
    base, good, bad = chat_base(tiny, tmp_path), tmp_path / "good", tmp_path / "bad"
    row = json.dumps({"prompt": "import", "completion": "os"})
    long = json.dumps({"prompt": "import os " * 40, "completion": "os"})
    empty = json.dumps({"prompt": "import", "completion": ""})
    for folder, train_rows, valid_rows in (
        (good, [row] * 4, [row] * 2),
        (bad, [row, "", long, row, empty, row, long, row], [long, row, row]),
    ):
        folder.mkdir()
        (folder / "train.jsonl").write_text("\n".join(train_rows))
        (folder / "valid.jsonl").write_text("\n".join(valid_rows))
    words = ["--window", 32, "--batch", 2, "--steps", 4, "--rank", 2, "--mask-prompt"]
    for folder in (good, bad):
        out = tmp_path / f"{folder.name} run"
        code, _, err = run("train", base, "--data", folder, "--out", out, *words)
        assert code == 0, err
    cut = "a window of 32 tokens leaves nothing of its answer"
    assert f"{bad}/train.jsonl: left out 2 of 7 rows, lines 3, 7: {cut}\n" in err
    assert f"{bad}/train.jsonl: left out 1 of 7 rows, line 5: its text or answer is empty\n" in err
    assert f"{bad}/valid.jsonl: left out 1 of 3 rows, line 1: {cut}\n" in err
    runs = [snapshot(tmp_path / f"{folder.name} run") for folder in (good, bad)]
    assert runs[0]["losses.jsonl"] == runs[1]["losses.jsonl"]
    (bad / "train.jsonl").write_text(f"{long}\n" * 4)
    code, _, err = run("train", base, "--data", bad, "--out", tmp_path / "none", *words)
    assert code == 2
    assert f"error: {bad}/train.jsonl: 0 rows are left, and a batch takes 2 (left out 4 " in err
    assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_prompt_that_does_not_begin_its_chat_is_refused_where_it_is_masked(
    tiny: Any, tmp_path: Path
) -> None:
    base, data = chat_base(tiny, tmp_path), tmp_path / "data"
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] += "{% if add_generation_prompt %}model, think: {% endif %}"
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    data.mkdir()
    row = json.dumps({"prompt": "import", "completion": "os"})
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text(f"\n{row}\n" * 4)
    masked = replace(SHORT, steps=4, mask_prompt=True)
    with pytest.raises(FormatError, match=r"train.jsonl: line 2: the chat template makes of its"):
        train(base, data, tmp_path / "run", masked)
    assert not (tmp_path / "run").exists()
    train(base, data, tmp_path / "run", replace(masked, mask_prompt=False))


def chats(*messages: Any) -> bytes:
    return json.dumps({"messages": list(messages)}).encode()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"text": ["a", "b"]}', "cannot be read: `text` must be a string, got a list"),
        (b'{"text": 5}', "cannot be read: `text` must be a string, got a number"),
        (b'{"text": NaN}', "cannot be read: `text` must be a string, got a number"),
        (b'{"text": null}', "cannot be read: `text` must be a string, got null"),
        (b'{"text": {"a": 1}}', "cannot be read: `text` must be a string, got an object"),
        (b'{"text": true}', "cannot be read: `text` must be a string, got true or false"),
        (b'{"text": "\\ud800"}', "cannot be read: `text` has half a character, U+D800"),
        (b'{"words": "a"}', "cannot be read: no 'text'"),
        (chats({"role": "user", "content": "a"}), "cannot be read: no 'text'"),
        (b"[1, 2]", "the JSON is not an object"),
        (b"\0\0\0", "not valid JSON"),
        (b'{"text": "a\0b"}', "not valid JSON"),
        (b'{"text": ' + b"[" * 99 + b"]" * 99 + b"}", "not valid JSON (nested more than 32 deep)"),
        (b'{"text": "\xe9"}', "not valid JSON"),
        (b'{"text": "a", "text": "b"}', "the key 'text' appears twice"),
    ],
)
def test_a_row_that_is_none_is_named_by_its_line(
    tiny: Any, tmp_path: Path, row: bytes, reason: str, run: Run
) -> None:
    data = shutil.copytree(tiny.data, tmp_path / "data")
    good = b'{"text": "import os"}\n'
    (data / "train.jsonl").write_bytes(good * 2 + b"\n" + row + b"\n" + good)
    words = ["--data", data, "--out", tmp_path / "out", "--batch", 2, "--steps", 4]
    code, _, err = run("train", tiny.base, *words)
    assert code == 2
    assert f"train.jsonl: line 4: {reason}" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"prompt": "a", "completion": ["b"]}', "`completion` must be a string, got a list"),
        (b'{"prompt": 5, "completion": "b"}', "`prompt` must be a string, got a number"),
        (b'{"messages": []}', "`messages` must be a list of messages, got an empty list"),
        (b'{"messages": "a"}', "`messages` must be a list of messages, got a string"),
        (chats(1), "a message must be an object, got a number"),
        (chats({"content": "a"}), "a message has no 'role'"),
        (chats({"role": None, "content": "a"}), "`role` must be a string, got null"),
        (chats({"role": "user", "content": math.nan}), "`content` must be a string, got a number"),
        (chats({"role": "user", "content": {"a": 1}}), "`content` must be a string, got an object"),
        (chats({"role": "user", "content": "a"}), "the tokenizer has no chat template"),
    ],
)
def test_a_chat_that_is_none_is_named_by_its_line(
    tiny: Any, tmp_path: Path, row: bytes, reason: str
) -> None:
    data = shutil.copytree(tiny.data, tmp_path / "data")
    (data / "train.jsonl").write_bytes(b"\n" + row + b"\n" + row)
    with pytest.raises(
        FormatError, match=re.escape(f"train.jsonl: line 2: cannot be read: {reason}")
    ):
        train(tiny.base, data, tmp_path / "out", SHORT)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_named(tiny: Any, tmp_path: Path, encoding: str) -> None:
    data = shutil.copytree(tiny.data, tmp_path / "data")
    text = (data / "valid.jsonl").read_text()
    (data / "valid.jsonl").write_text(text, encoding=encoding)
    with pytest.raises(FormatError, match=r"valid.jsonl: it begins with a byte order mark; save"):
        train(tiny.base, data, tmp_path / "out", SHORT)


def test_a_run_that_follows_a_budget_ends_in_its_bytes(tiny: Any, tmp_path: Path) -> None:
    training = replace(SHORT, steps=16, rank=None, max_bytes=24_000)
    done = train(tiny.base, tiny.data, tmp_path / "run", training)
    assert done.history.awake[0][1] > 3 * 24_000
    assert 23_000 < done.history.awake[-1][1] <= 24_000
    assert {e.action for _, e in done.history.events} == {"shrink"}
    assert {step for step, _ in done.history.events} == {4}
    assert "lm_head" in {layer.path for layer in done.history.layers}
    mlx_lm.load(str(tiny.base), adapter_path=str(done.adapter))


@pytest.mark.parametrize("size", [14_000, 30_000, 90_000])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "mixtral"])
def test_what_is_written_is_no_larger_than_the_size(
    tiny: Any, tmp_path: Path, model_type: str, size: int
) -> None:
    base = build_checkpoint(tmp_path / "base", model_type, "mlx")
    training = replace(SHORT, steps=12, rank=None, max_bytes=size, learning_rate=1e-3)
    done = train(base, tiny.data, tmp_path / "run", training)
    has_head = model_type != "gemma3_text"  # whose embedding is the head too: nothing is cut
    assert {step for step, _ in done.history.events} == ({4} if has_head else set())
    counted = done.history.awake[-1][1]
    stock = (done.adapter / "adapters.safetensors").stat().st_size
    peft = (done.peft / "adapter_model.safetensors").stat().st_size
    names = 100 * sum(layer.last > 0 for layer in done.history.layers)
    assert counted - names < stock <= peft <= counted <= size
    mlx_lm.load(str(base), adapter_path=str(done.adapter))


def stock_bytes(file: Path, layers: dict[str, RankLayer]) -> int:
    """The size of an adapter of one rank for these layers, as stock MLX writes it."""
    awake = {path: layer.shape for path, layer in layers.items() if layer.rank}
    rank = max(layer.rank for layer in layers.values())
    half = mx.float16
    A = {f"{path}.lora_a": mx.zeros((inner, rank), half) for path, (_, inner) in awake.items()}
    B = {f"{path}.lora_b": mx.zeros((rank, out), half) for path, (out, _) in awake.items()}
    mx.save_safetensors(str(file), A | B, {"format": "mlx"})
    return file.stat().st_size


@pytest.mark.parametrize("options", [{}, {"follow": "loss", "rank": 2}, {"optimizer": "muon"}])
def test_every_saved_state_since_the_cut_would_be_written_within_the_size(
    tiny: Any, tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    restless = {"patience": 1, "window": 1, "cooldown": 0, "delta": 10.0, "gamma": 0.0, "k": 3}
    training = replace(
        SHORT,
        steps=24,
        max_bytes=26_000,
        evaluate_every=2,
        **({"rank": None, "plasticity": restless} | options),
    )
    sizes: list[tuple[int, int]] = []
    best: list[tuple[int, int]] = []
    save = Generations.save

    def saved(self: Generations, step: int, model: nn.Module, *rest: Any, **more: Any) -> Any:
        nbytes = stock_bytes(tmp_path / "now.safetensors", plastic_layers(model))
        (sizes if self.folder.name == "generations" else best).append((step, nbytes))
        return save(self, step, model, *rest, **more)

    monkeypatch.setattr(Generations, "save", saved)
    done = train(tiny.base, tiny.data, tmp_path / "run", training)
    cut = 0 if training.follow == "loss" else 4
    assert [step for step, _ in sizes] == list(range(0, 25, 2))
    assert all(nbytes <= 26_000 for step, nbytes in sizes if step >= cut), sizes
    assert best
    assert all(nbytes <= 26_000 for _, nbytes in best), best
    assert {e.action for _, e in done.history.events}


@pytest.mark.parametrize(
    ("at", "options"), [(2, {}), (6, {}), (6, {"accumulate": 2, "grad_checkpoint": True})]
)
def test_a_run_cut_around_its_reallocation_ends_with_the_same_bits(
    tiny: Any, tmp_path: Path, at: int, options: dict[str, Any]
) -> None:
    training = replace(SHORT, steps=12, rank=None, max_bytes=24_000, evaluate_every=2, **options)
    whole = train(tiny.base, tiny.data, tmp_path / "whole", training)
    assert {step for step, _ in whole.history.events} == {2}

    def stop(line: str) -> None:
        if f"step {at:>2}/12" in line:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tiny.base, tiny.data, out, training, say=stop)
    before = snapshot(out)
    with pytest.raises(FormatError, match=r"had option learning_rate 0.001, this one has 0.0003"):
        train(tiny.base, tiny.data, out, replace(training, learning_rate=3e-4))
    with pytest.raises(FormatError, match="had option max_bytes 24000, this one has 30000"):
        train(tiny.base, tiny.data, out, replace(training, max_bytes=30_000))
    assert snapshot(out) == before
    assert train(tiny.base, tiny.data, out, training).resumed == at
    ours, theirs = snapshot(out), snapshot(tmp_path / "whole")
    for name in ("adapters/adapters.safetensors", "peft/adapter_model.safetensors"):
        assert ours[name] == theirs[name]
    assert ours["losses.jsonl"] == theirs["losses.jsonl"]


def test_the_size_that_a_refusal_names_is_enough(tiny: Any, tmp_path: Path, run: Run) -> None:
    words = ["--data", tiny.data, "--batch", 2, "--steps", 4, "--window", 32]
    code, _, err = run("train", tiny.base, *words, "--out", tmp_path / "a", "--max-size", 100)
    assert code == 2
    least = int(re.search(r"--max-size must be at least (\d+) bytes", err)[1])  # type: ignore[index]
    for size in (least - 1, least):
        code, _, err = run("train", tiny.base, *words, "--out", tmp_path / "a", "--max-size", size)
        assert (code, err.count("at least")) == ((0, 0) if size == least else (2, 1)), err
    files = [*(tmp_path / "a").glob("*/adapter*.safetensors")]
    assert len(files) == 2
    assert all(0.9 * least < file.stat().st_size <= least for file in files)


def test_a_rank_above_the_sides_is_the_full_rank_and_is_told_once(
    tiny: Any, tmp_path: Path, run: Run
) -> None:
    words = ["--data", tiny.data, "--batch", 2, "--steps", 2, "--window", 32]
    seed = ["--seed", 2**64 - 1]
    code, _, err = run("train", tiny.base, "--out", tmp_path / "a", *words, "--rank", 512, *seed)
    assert code == 0, err
    assert err.count("have no room for rank 512 and get their full rank") == 1
    full = ["--out", tmp_path / "b", "--max-size", "10MB"]
    code, _, err = run("train", tiny.base, *words, *full)
    assert code == 0, err
    ranks = {layer.path: layer.last for layer in read_ranks(tmp_path / "b")}
    assert ranks == {layer.path: layer.last for layer in read_ranks(tmp_path / "a")}
    assert (tmp_path / "b" / "adapters" / "adapters.safetensors").stat().st_size <= 10_000_000


def read_ranks(folder: Path) -> Any:
    return report(folder).history.layers


def test_a_run_below_the_default_interval_is_cut_in_time(tiny: Any, tmp_path: Path) -> None:
    few = TrainingOptions(steps=6, batch=2, window=32, max_bytes=30_000, evaluate_batches=2)
    done = train(tiny.base, tiny.data, tmp_path / "run", few)
    assert {step for step, _ in done.history.events} == {3}
    assert (done.adapter / "adapters.safetensors").stat().st_size <= 30_000


@pytest.mark.parametrize("model_type", ["dbrx", "recurrent_gemma", "deepseek_v41"])
def test_a_type_that_mlx_lm_cannot_train_is_named_before_anything_is_written(
    tiny: Any, tmp_path: Path, model_type: str, run: Run
) -> None:
    base = build_checkpoint(tmp_path / "base", model_type, "mlx")
    words = ["--data", tiny.data, "--out", tmp_path / "run", "--batch", 2, "--steps", 2]
    code, _, err = run("train", base, *words, "--window", 32)
    assert code == 2
    assert err.startswith(f"error: {base}: mlx-lm's model of type '{model_type}' cannot be trained")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model_type", "left"),
    [("afm7", "qkv_proj"), ("gemma3n", "altup.prediction_coefs")],
)
def test_layers_that_no_plastic_part_fits_are_left_alone(
    tiny: Any, tmp_path: Path, model_type: str, left: str
) -> None:
    base = build_checkpoint(tmp_path / "base", model_type, "mlx")
    training = replace(SHORT, steps=2, evaluate_every=2)
    done = train(base, tiny.data, tmp_path / "run", training)
    paths = {layer.path for layer in done.history.layers}
    assert paths
    assert not any(left in path for path in paths)
    mlx_lm.load(str(base), adapter_path=str(done.adapter))


def test_a_weight_that_is_not_finite_is_named_before_the_first_step(
    tiny: Any, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny.base, tmp_path / "base")
    weights = mx.load(str(base / "model.safetensors"))
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 5] = float("nan")
    mx.save_safetensors(str(base / "model.safetensors"), weights, {"format": "mlx"})
    with pytest.raises(FormatError, match=f"the weight '{name}' is not finite"):
        train(base, tiny.data, tmp_path / "run", SHORT)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_started_again_changes_nothing(tiny: Any, tmp_path: Path) -> None:
    train(tiny.base, tiny.data, tmp_path / "run", SHORT)
    before = snapshot(tmp_path / "run")
    assert train(tiny.base, tiny.data, tmp_path / "run", SHORT).resumed == SHORT.steps
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["adapters.safetensors", "adapter_config.json"])
def test_an_adapter_that_was_trained_further_is_never_replaced(
    tiny: Any, tmp_path: Path, name: str
) -> None:
    out = train(tiny.base, tiny.data, tmp_path / "run", replace(SHORT, steps=4)).out
    mine = out / "adapters" / name
    if name.endswith(".json"):
        mine.write_text(json.dumps(json.loads(mine.read_text()) | {"num_layers": 1}))
    else:
        tensors = {name: 2 * array for name, array in load_safetensors(mine).items()}
        mx.save_safetensors(str(mine), tensors, {"format": "mlx"})
    before = snapshot(out)
    with pytest.raises(FormatError, match=rf"{name}.*not what this run wrote.*move it elsewhere"):
        train(tiny.base, tiny.data, out, replace(SHORT, steps=4))
    assert snapshot(out) == before
    mine.unlink()
    train(tiny.base, tiny.data, out, replace(SHORT, steps=4))
    assert mine.exists()


def test_a_folder_that_was_just_begun_is_ours(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in (".holder.json", ".plastic-run.json.tmp", ".plastic-run.json.1a2b3c4d.tmp"):
        (out / name).write_text("half")
    train(tiny.base, tiny.data, out, replace(SHORT, steps=4))
    assert not [name for name in out.iterdir() if name.name.startswith(".")]


def test_temporary_files_of_others_are_left_in_the_folder_of_a_run(
    tiny: Any, tmp_path: Path
) -> None:
    out, few = tmp_path / "run", replace(SHORT, steps=4)
    train(tiny.base, tiny.data, out, few)
    mine, ours = out / ".draft.tmp", out / "adapters" / ".adapters.safetensors.tmp"
    for file in (mine, ours):
        file.write_text("half")
    train(tiny.base, tiny.data, out, few)
    assert mine.read_text() == "half"
    assert not ours.exists()


def test_a_table_without_the_package_that_reads_it_is_one_line(
    tiny: Any, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "train-00000-of-00001.parquet").touch()
    code, _, err = run("train", tiny.base, "--data", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert err == (
        "error: rows in parquet or arrow need the package datasets; install the extra: "
        "pip install 'plastic-export[data]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_the_same_rows_in_other_files_are_the_same_run(tiny: Any, tmp_path: Path) -> None:
    whole = train(tiny.base, tiny.data, tmp_path / "run", SHORT)
    before = snapshot(tmp_path / "run")
    lines = (tiny.data / "train.jsonl").read_text().splitlines(keepends=True)
    shards = tmp_path / "shards"
    shards.mkdir()
    shutil.copy(tiny.data / "valid.jsonl", shards / "validation.jsonl")
    for i in range(2):
        (shards / f"train-{i:05}-of-00002.jsonl").write_text("".join(lines[20 * i : 20 * i + 20]))
    again = train(tiny.base, shards, tmp_path / "run", SHORT)
    assert (again.resumed, again.history) == (SHORT.steps, whole.history)
    assert snapshot(tmp_path / "run") == before
    turned = [*sorted(shards.glob("train-*"), reverse=True), shards / "validation.jsonl"]
    with pytest.raises(FormatError, match="had train data"):
        train(tiny.base, turned, tmp_path / "run", SHORT)


def test_another_run_is_refused_by_what_differs(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny.base, tiny.data, out, SHORT)
    before = snapshot(out)
    other = shutil.copytree(tiny.base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    more = shutil.copytree(tiny.data, tmp_path / "more")
    with (more / "train.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    chatty = shutil.copytree(tiny.base, tmp_path / "chatty")
    (chatty / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    split = shutil.copytree(tiny.base, tmp_path / "split")
    tokenizer = json.loads((split / "tokenizer_config.json").read_text())
    (split / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"padding_side": "left"}))
    cases: list[tuple[str, Path, Path, TrainingOptions]] = [
        ("had base", other, tiny.data, SHORT),
        ("had file chat_template.jinja nothing", chatty, tiny.data, SHORT),
        (
            r"had file tokenizer_config.json '\w{64}', this one has '\w{64}'",
            split,
            tiny.data,
            SHORT,
        ),
        ("had train data", tiny.base, more, SHORT),
        ("had option steps 8, this one has 12", tiny.base, tiny.data, replace(SHORT, steps=12)),
        ("had option seed 0, this one has 1", tiny.base, tiny.data, replace(SHORT, seed=1)),
        ("had option optimizer 'cautious'", tiny.base, tiny.data, replace(SHORT, optimizer="sgd")),
    ]
    for difference, base, data, training in cases:
        with pytest.raises(FormatError, match=difference):
            train(base, data, out, training)
    assert snapshot(out) == before


def test_one_process_trains_in_a_folder_and_may_be_interrupted(tiny: Any, tmp_path: Path) -> None:
    words = ["--data", tiny.data, "--out", tmp_path / "run", "--steps", 100_000, "--batch", 2]
    code = "from plastic_export.cli.command import main; main()"
    start = [sys.executable, "-c", code, "train", tiny.base, *words, "--evaluate-every", 5]
    line = [str(word) for word in start]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        while "step      5/" not in first.stderr.readline():
            assert first.poll() is None
        second = subprocess.run(line, capture_output=True, text=True, check=False)
        first.terminate()
        *_, last = first.stderr.read().splitlines()
    assert second.returncode == 4
    assert f"in use by process {first.pid}" in second.stderr
    assert first.returncode == 5
    assert last == "error: interrupted; the same command goes on with it"
    assert not (tmp_path / "run" / ".holder.json").exists()


def test_a_damaged_state_is_refused_and_the_one_before_goes_on(tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(tiny.base, tiny.data, out, SHORT)
    whole = snapshot(out)
    newest = out / "generations" / "step-000000008.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.raises(FormatError, match="step-000000008") as refused:
        train(tiny.base, tiny.data, out, SHORT)
    assert refused.value.__notes__[-1] == "delete it to go on from step 4"
    newest.unlink()
    assert train(tiny.base, tiny.data, out, SHORT).resumed == 4
    assert snapshot(out)["losses.jsonl"] == whole["losses.jsonl"]
    adapter = "adapters/adapters.safetensors"
    assert snapshot(out)[adapter] == whole[adapter]


def test_a_loss_that_is_not_finite_changes_no_rank_and_costs_no_state(
    tiny: Any, tmp_path: Path
) -> None:
    out, wild = tmp_path / "run", replace(SHORT, learning_rate=1e30, steps=16)
    with pytest.raises(DivergedError, match=r"loss is nan at step \d+: no rank was changed"):
        train(tiny.base, tiny.data, out, wild)
    states = sorted(p.name for p in (out / "generations").iterdir())
    assert states == ["step-000000000.safetensors"]
    for array in load_safetensors(out / "generations" / states[0]).values():
        assert bool(mx.isfinite(array).all()) if array.dtype == mx.float32 else True
    assert not (out / "adapters").exists()
    assert report(out).history.events == ()


def test_bad_input_is_one_line(tiny: Any, tmp_path: Path, run: Run) -> None:
    texts = {
        "empty": "",
        "json": '{"text": "a"}\n{"text": \n',
        "keys": '{"words": "a"}\n',
        "late": '{"text": "one"}\n\n{"text": "two"}\n{"prompt": "three"}\n',
        "chat": '{"messages": [{"role": "user", "content": "hello"}]}\n',
        "few": '{"text": "a b c"}\n',
    }
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(text * 4 if name == "chat" else text)
        shutil.copy(tiny.data / "valid.jsonl", tmp_path / name)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no such folder", {"--data": tmp_path / "nowhere"}),
        ("train.jsonl: there is no such file", {"--data": tmp_path}),
        ("train.jsonl: 0 rows, and a batch takes 2", {"--data": tmp_path / "empty"}),
        ("train.jsonl: line 2: not valid JSON", {"--data": tmp_path / "json"}),
        ("train.jsonl: 1 rows, and a batch takes 2", {"--data": tmp_path / "few"}),
        (
            "line 1: Unsupported data format, its fields are words; each",
            {"--data": tmp_path / "keys", "--batch": 1},
        ),
        ("train.jsonl: line 4: cannot be read: no 'text'", {"--data": tmp_path / "late"}),
        ("train.jsonl: line 1: cannot be read", {"--data": tmp_path / "chat"}),
        ("the folder is not empty and holds no plastic-run.json", {"--out": tmp_path / "taken"}),
        ("no matrix of the checkpoint", {"--include": "*.nothing"}),
        ("no matrix is left; name some", {"--exclude": "*"}),
        ("one component for each of the", {"--max-size": "100", "--evaluate-every": 2}),
        (
            "--rank must be lower to begin below",
            {"--max-size": "20KB", "--follow": "loss", "--rank": 32},
        ),
        (
            "that a run which follows the budget begins with",
            {"--max-size": "1MB", "--rank": 1, "--evaluate-every": 2},
        ),
        (
            "--evaluate-every must be below the 4 --steps",
            {"--max-size": "20KB", "--evaluate-every": 4},
        ),
        ("--learning-rate must be a finite number above 0, got inf", {"--learning-rate": "inf"}),
        ("--steps must be a multiple of --accumulate = 3", {"--accumulate": 3}),
        ("--seed must be from 0 to 2^64 - 1", {"--seed": 2**64}),
        ("a size must be a number of bytes", {"--max-size": "much"}),
    ]
    for reason, changed in cases:
        words = {"--data": tiny.data, "--out": tmp_path / "out", "--batch": 2, "--steps": 4}
        options = [str(w) for pair in (words | changed).items() for w in pair]
        code, _, err = run("train", tiny.base, *options)
        assert code == 2, err
        assert reason in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_the_default_run_ends_with_ranks_that_differ_within_its_size(
    checkpoint: Path, heldout: Path, tmp_path: Path, run: Run
) -> None:
    text, file, out = heldout.read_text(), tmp_path / "rows.jsonl", tmp_path / "run"
    rows = [{"text": text[i : i + 100]} for i in range(0, 4000, 100)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["--steps", 20, "--max-size", "150KB"]
    code, _, err = run("train", checkpoint, "--data", file, "--out", out, *words)
    assert code == 0, err
    assert "4 of 40 rows, drawn by the seed 0, are held out of training" in err
    ranks = {layer.path: layer.last for layer in read_ranks(out)}
    assert len(set(ranks.values())) > 1, ranks
    files = [*out.glob("adapters/*.safetensors"), *out.glob("peft/*.safetensors")]
    assert [file.stat().st_size <= 150_000 for file in files] == [True, True]
    mlx_lm.load(str(checkpoint), adapter_path=str(out / "adapters"))
    assert run("report", out)[0] == 0
    page = (out / "report.html").read_text()
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == len([*out.glob("report-*.png")]) > 0
    for picture in pictures:
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith("svg")


def test_the_steps_are_tracked_with_the_loss_and_the_pace(tiny: Any, tmp_path: Path) -> None:
    notes: list[str] = []

    def track(items: Any, description: str) -> Any:
        for item in items:
            yield item
            notes.append(f"{description} {item} {items.note()}")

    train(tiny.base, tiny.data, tmp_path / "run", SHORT, track=track)
    steps = [note.split()[1] for note in notes]
    assert steps == [str(step) for step in range(SHORT.steps - 1)]  # the last one ends the loop
    assert re.fullmatch(r"training 5 loss \d\.\d{4}, \d+ tokens/s", notes[5])


def test_events_and_losses_count_the_same_steps(tiny: Any, tmp_path: Path) -> None:
    training = replace(SHORT, max_bytes=20_000, rank=None)
    train(tiny.base, tiny.data, tmp_path / "run", training)
    events, losses = (
        [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in ("events.jsonl", "losses.jsonl")
    )
    assert {e["step"] for e in events} == {4}
    assert {e["validation"] for e in events} == {2}
    assert 4 in {loss["step"] for loss in losses if loss["kind"] == "valid"}


def test_the_command_prints_what_came_of_it(tiny: Any, tmp_path: Path, run: Run) -> None:
    words = ["--data", tiny.data, "--out", tmp_path / "run", "--steps", 4, "--batch", 2]
    code, out, err = run("train", tiny.base, *words, "--window", 32, "--rank", 2)
    assert code == 0, err
    assert "step 0/4" in err
    assert "--adapter-path" in out
    assert "training steps" in out
    record = json.loads(run("train", tiny.base, *words, "--window", 32, "--rank", 2, "--json")[1])
    assert record["adapter"] == str(tmp_path / "run" / "adapters")


def test_a_limit_on_what_is_forgotten_turns_the_dial_down(
    adapted: TrainedRun, checkpoint: Path, heldout: Path, tmp_path: Path
) -> None:
    free = divergence_from_base(adapted, checkpoint, heldout)
    limit = round(free / 4, 4)
    data, options = adapted.out.with_name("data"), replace(ADAPTED, forget=limit)
    words: dict[str, Any] = {"include": BLOCKS, "base_text": heldout}
    done = train(checkpoint, data, tmp_path / "run", options, **words)
    written, *curve = done.dial
    assert curve[0].forgotten == pytest.approx(free, rel=FLOAT16)
    assert curve[0].loss == dict(done.history.valid)[done.written.step]
    assert done.written.loss == pytest.approx(written.loss, rel=FLOAT16)
    assert (curve[-1].scale, curve[-1].forgotten) == (0, pytest.approx(0, abs=1e-6))
    assert 0.8 * limit < written.forgotten <= limit
    found = divergence_from_base(done, checkpoint, heldout)
    assert found == pytest.approx(written.forgotten, rel=FLOAT16)
    assert train(checkpoint, data, tmp_path / "run", options, **words).dial == done.dial
    drawn = report(done.out).history.dial
    assert drawn is not None
    assert (drawn.limit, drawn.points) == (limit, done.dial)


def divergence_from_base(run: TrainedRun, checkpoint: Path, text: Path) -> float:
    """KL of what stock mlx-lm makes of the adapter, on the windows that the dial reads."""
    base, _ = mlx_lm.load(str(checkpoint))
    stock, _ = mlx_lm.load(str(checkpoint), adapter_path=str(run.adapter))
    for model in (base, stock):
        model.set_dtype(mx.float32)
    with open_checkpoint(checkpoint) as opened:
        tokens = Calibration(text, ADAPTED.window, 16).tokens(opened)
    found = [divergences(stock(row[None]), log_softmax(base(row[None]))).mean() for row in tokens]
    return float(np.mean([float(kl) for kl in found]))


def test_what_is_remembered_is_not_forgotten(
    overtrained: TrainedRun, checkpoint: Path, calibration: Path, heldout: Path, tmp_path: Path
) -> None:
    data = overtrained.out.with_name("data")
    options = replace(ADAPTED, state="last", remember=1.0)
    words: dict[str, Any] = {"include": BLOCKS, "base_text": calibration}
    done = train(checkpoint, data, tmp_path / "run", options, **words)
    plain, remembered = (run.history.train for run in (overtrained, done))
    assert remembered[0][1] == pytest.approx(plain[0][1], rel=0.05)
    assert remembered[-1][1] < 0.5 * remembered[0][1]
    forgotten = [divergence_from_base(run, checkpoint, heldout) for run in (overtrained, done)]
    assert forgotten[1] < 0.7 * forgotten[0]


def test_a_run_that_remembers_ends_with_the_same_bits_where_it_was_cut(
    tiny: Any, heldout: Path, tmp_path: Path
) -> None:
    training = replace(SHORT, steps=16, accumulate=2, warmup=1, grad_checkpoint=True)
    plain = train(tiny.base, tiny.data, tmp_path / "plain", training)
    training = replace(training, remember=0.5)
    text: dict[str, Any] = {"base_text": heldout}
    whole = train(tiny.base, tiny.data, tmp_path / "whole", training, **text)

    def stop(line: str) -> None:
        if "step  8/16" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny.base, tiny.data, tmp_path / "run", training, say=stop, **text)
    assert train(tiny.base, tiny.data, tmp_path / "run", training, **text).resumed == 8
    ours, theirs = snapshot(tmp_path / "run"), snapshot(whole.out)
    for name in ("adapters/adapters.safetensors", "losses.jsonl"):
        assert ours[name] == theirs[name]
        assert ours[name] != snapshot(plain.out)[name]


def test_a_text_too_short_to_be_measured_on_and_remembered_is_refused(
    tiny: Any, tmp_path: Path, run: Run
) -> None:
    text = tmp_path / "base.txt"
    text.write_text("a text of the base")
    words = ["--data", tiny.data, "--out", tmp_path / "run", "--window", 4, "--remember", 1]
    code, _, printed = run("train", tiny.base, *words, "--base-text", text)
    assert code == 2
    assert "--base-text must have more than 16 windows of 4 tokens to be remembered" in printed
    assert not (tmp_path / "run").exists()


def test_a_text_of_the_base_that_nothing_asks_for_is_refused(
    tiny: Any, tmp_path: Path, run: Run
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some words " * 50)
    words = ["--data", str(tiny.data), "--out", str(tmp_path / "run"), "--base-text", str(text)]
    code, _, printed = run("train", str(tiny.base), *words)
    assert code == 2
    assert "--base-text must be None where there is no --forget and no --remember" in printed
    assert not (tmp_path / "run").exists()


def test_a_service_that_is_missing_or_unknown_is_one_line(
    tiny: Any, tmp_path: Path, run: Run
) -> None:
    words = ["--data", str(tiny.data), "--out", str(tmp_path / "run"), "--report-to"]
    for service, reason in (("wandb", "wandb is not installed"), ("notes", "notes callback")):
        code, _, printed = run("train", str(tiny.base), *words, service)
        assert code == 2
        assert printed.startswith("error: ")
        assert reason in printed
        assert "--report-to" in printed
    assert not (tmp_path / "run").exists()


def test_a_listener_hears_of_every_loss_by_its_step(tiny: Any, tmp_path: Path) -> None:
    heard: dict[str, list[tuple[int, float]]] = {"train": [], "valid": []}

    class Listener:
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            heard["train"].append((info["iteration"], info["train_loss"]))

        def on_val_loss_report(self, info: dict[str, Any]) -> None:
            assert info["total_rank"] > 0
            heard["valid"].append((info["iteration"], info["val_loss"]))

    done = train(tiny.base, tiny.data, tmp_path / "run", SHORT, listener=Listener())
    assert heard == {"train": [*done.history.train], "valid": [*done.history.valid]}
