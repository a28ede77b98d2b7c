"""Outputs run before they are published: good ones pass, wrong ones are named and not published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_core.files import FormatError, load_safetensors
from plastic_export import Calibration, compress, execute_plan, verify
from plastic_export.cli.command import main
from plastic_export.compression import writer
from plastic_export.compression.plan_file import LossPlan
from plastic_export.evaluation.output_check import FailedCheckError, OutputChecker
from plastic_export.format.table import PLAN_FORMATS, RANK_FORMATS
from plastic_export.plan.offers import Choice
from plastic_runtime.dialling import MANIFEST

Run = Callable[..., Any]
Spoil = Callable[[Path], None]
FORMATS = [*PLAN_FORMATS, *RANK_FORMATS]
PACKED = ("lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj")
CORRECTED = "model.layers.1.mlp.up_proj"


@pytest.fixture
def run(readable: Path, tmp_path: Path, make_plan: Callable[..., LossPlan]) -> Run:
    """``run(format, **options)``: a compression in this format to ``out``."""
    choices: dict[str, Choice] = {f"{path}.weight": Choice(8) for path in PACKED}

    def compressed(format: str, **options: Any) -> Any:
        out = tmp_path / "out"
        if format in RANK_FORMATS:
            return compress(readable, out, keep=0.9, format=format, **options)
        file, last = tmp_path / "plan.json", Choice(8) if format == "mixed" else Choice(8, 4, 16)
        make_plan(readable, file, choices | {f"{CORRECTED}.weight": last}, format)
        return execute_plan(readable, out, file, **options)

    return compressed


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Spoil], None]:
    """``spoil(change)``: let outputs be changed once their tensors and configuration are there."""
    written = writer.write_config

    def begin(change: Spoil) -> None:
        def spoiled(folder: Path, *rest: Any) -> None:
            written(folder, *rest)
            change(folder)

        monkeypatch.setattr(writer, "write_config", spoiled)

    return begin


def change_tensor(folder: Path, name: str, change: Callable[[mx.array], mx.array]) -> None:
    (file,) = folder.glob("model*.safetensors")
    tensors = load_safetensors(file)
    mx.eval(tensors)
    tensors[name] = change(tensors[name])
    mx.save_safetensors(str(file), tensors, {"format": "mlx"})


def with_nan(folder: Path) -> None:
    change_tensor(folder, "model.norm.weight", lambda w: w * mx.array(float("nan"), w.dtype))


def of_another_shape(folder: Path) -> None:
    change_tensor(folder, "model.norm.weight", lambda w: w[:32])


def of_no_known_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["plastic"]["stock"]["model_type"] = "none"
    (folder / "config.json").write_text(json.dumps(config))


def shuffled(folder: Path) -> None:
    change_tensor(folder, "model.embed_tokens.weight", lambda w: w[::-1])


def assert_not_published(tmp_path: Path) -> None:
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial" / MANIFEST).exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_good_output_passes_and_says_what_was_measured(
    run: Run, tmp_path: Path, format: str
) -> None:
    result = run(format)
    checked = result.checked
    assert 0 < checked.kl <= checked.limit
    assert checked.top1 > (0.5 if format in PLAN_FORMATS else 0)
    assert (checked.text, checked.tokens) == ("an English text", 64)
    assert checked.predicted == (None if format in RANK_FORMATS else result.plan.cost)
    assert verify(tmp_path / "out") == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{1000 * checked.kl:.4g} millinats per token, 64 tokens of an English text" in card


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [(with_nan, "are not finite"), (of_another_shape, "cannot be run: ")],
    ids=["nan", "shape"],
)
def test_what_does_not_run_is_not_published(
    run: Run,
    spoil: Callable[[Spoil], None],
    tmp_path: Path,
    format: str,
    change: Spoil,
    reason: str,
) -> None:
    spoil(change)
    with pytest.raises(FailedCheckError, match=reason) as caught:
        run(format)
    assert str(caught.value).startswith(f"{tmp_path / 'out'}: ")
    assert_not_published(tmp_path)


@pytest.mark.parametrize("format", PLAN_FORMATS)
def test_what_is_far_from_its_prediction_is_not_published(
    run: Run, spoil: Callable[[Spoil], None], tmp_path: Path, format: str
) -> None:
    spoil(shuffled)
    with pytest.raises(FailedCheckError, match=r"nats per token .* was predicted, top-1"):
        run(format)
    assert_not_published(tmp_path)


def test_the_next_run_checks_again_and_publishes_what_is_right_then(
    run: Run, spoil: Callable[[Spoil], None], tmp_path: Path
) -> None:
    spoil(of_no_known_type)
    for _ in range(2):
        with pytest.raises(FailedCheckError, match="'none' model cannot be built"):
            run("factored")
        assert_not_published(tmp_path)
    spoil(lambda folder: None)
    assert run("factored").checked.kl > 0
    assert verify(tmp_path / "out") == []


def test_a_finished_output_is_checked_again_and_stays(run: Run, tmp_path: Path) -> None:
    first = run("dense")
    assert run("dense").checked == first.checked
    of_another_shape(tmp_path / "out")
    with pytest.raises(FailedCheckError) as caught:
        run("dense")
    assert "it was written by an earlier run, and stays" in caught.value.__notes__
    assert (tmp_path / "out" / MANIFEST).is_file()


def test_a_source_that_does_not_run_is_refused_before_the_work(
    make_readable: Callable[..., Path], tiny_weights: dict[str, mx.array], tmp_path: Path
) -> None:
    norm = {"model.norm.weight": mx.full((64,), float("nan"), mx.bfloat16)}
    source = make_readable(weights=tiny_weights | norm)
    with pytest.raises(FormatError, match="predictions for an English text are not") as caught:
        compress(source, tmp_path / "out", keep=0.5)
    assert "--no-check" in "".join(caught.value.__notes__)
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name]
    assert compress(source, tmp_path / "out", keep=0.5, check=False).checked is None


def test_the_window_is_of_the_calibration_text(readable: Path, text: Path, tmp_path: Path) -> None:
    few = Calibration(text, window=24, windows=4)
    assert compress(readable, tmp_path / "out", keep=0.5, calibration=few).checked.text == text.name


def printed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["compress", *map(str, words)])
    streams = capsys.readouterr()
    return int(ended.value.code or 0), streams.out, streams.err


def test_the_command_prints_what_was_measured_or_that_nothing_was_run(
    readable: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (readable, tmp_path / "out", "--keep", "0.9", "--format", "dense")
    code, out, _ = printed(capsys, *words)
    assert code == 0
    assert "checked    64 tokens of an English text through what was written: KL " in out
    monkeypatch.setattr(OutputChecker, "__init__", lambda *a, **k: pytest.fail("it was checked"))
    code, out, _ = printed(capsys, *words, "--no-check")
    assert code == 0
    assert "unchecked  --no-check: nothing was run through what was written" in out
    assert json.loads(printed(capsys, *words, "--no-check", "--json")[1])["checked"] is None


def test_the_command_ends_with_1_and_one_line(
    readable: Path,
    tmp_path: Path,
    spoil: Callable[[Spoil], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(with_nan)
    code, _, errors = printed(capsys, readable, tmp_path / "out", "--keep", "0.9")
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 1
    assert line.startswith(f"error: {tmp_path / 'out'}: the predictions of what was written")
    assert "--no-check" in line
    assert_not_published(tmp_path)
