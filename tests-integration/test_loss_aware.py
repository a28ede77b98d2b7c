"""A trained checkpoint in mixed bits, chosen by predicted loss: stock mlx-lm, sizes, divergence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.convert import convert
from plastic_core.files import sha256_file
from plastic_core.testing import assert_one_error
from plastic_export import (
    BitsPlan,
    Calibration,
    Compressed,
    FormatError,
    LossPlan,
    evaluate,
    execute_plan,
    export_safetensors,
    load_safetensors,
    plan_checkpoint,
    restore,
    verify,
)

BUDGETS = (3.5, 4.5)
HEADER = 200 * 3  # bytes that a matrix takes in the header of a file, at most

Run = Callable[..., tuple[int, str, str]]


class Planned(NamedTuple):
    """A plan of two budgets, its file, and what came of carrying out each."""

    plan: LossPlan
    file: Path
    outputs: dict[float, Compressed[BitsPlan]]


@pytest.fixture(scope="session")
def planned(checkpoint: Path, calibration: Path, once: Callable[..., Any]) -> Planned:
    """Half of the blocks and the embeddings, from one short calibration."""

    def make(folder: Path) -> tuple[LossPlan, Path, dict[float, Compressed[BitsPlan]]]:
        file, text = folder / "plan.json", Calibration(calibration, window=128, windows=16)
        plan = plan_checkpoint(
            checkpoint, file, calibration=text, budgets=BUDGETS, exclude=["*.[01].*"]
        )
        outputs = {b: execute_plan(checkpoint, folder / f"{b}", file, budget=b) for b in BUDGETS}
        return plan, file, outputs

    return Planned(*once("loss-aware", make))


@pytest.fixture(scope="session")
def outputs(planned: Planned) -> dict[float, Compressed[BitsPlan]]:
    return planned.outputs


def divergence(out: Path, checkpoint: Path, text: Path) -> float:
    (result,) = evaluate(out, [text], reference=checkpoint, window=128, windows=8)
    assert result.kl is not None
    return result.kl


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_bytes_on_disk_are_those_that_were_predicted(planned: Planned, budget: float) -> None:
    plan, result = planned.plan, planned.outputs[budget]
    assert result.plan.bits_per_weight <= budget
    assert sum(r.stored_bytes for r in result.matrices) == result.plan.nbytes
    header = result.model_bytes - result.plan.nbytes - plan.left_bytes
    assert 0 < header < HEADER * len(plan.matrices)


@pytest.mark.parametrize("budget", BUDGETS)
def test_stock_mlx_lm_loads_and_generates_without_a_flag(
    outputs: dict[float, Compressed[BitsPlan]], budget: float
) -> None:
    model, tokenizer = mlx_lm.load(str(outputs[budget].out))
    assert isinstance(mlx_lm.generate(model, tokenizer, "def main(", max_tokens=4), str)


def test_the_output_is_intact_and_has_nothing_to_restore(
    outputs: dict[float, Compressed[BitsPlan]], tmp_path: Path
) -> None:
    out = outputs[3.5].out
    assert verify(out) == []
    with pytest.raises(FormatError, match=r"what rounding took is not kept.*'stdlib-llama'"):
        restore(out, tmp_path / "dest")


def test_it_diverges_less_than_stock_rounding_at_no_more_bytes_and_as_predicted(
    checkpoint: Path, heldout: Path, outputs: dict[float, Compressed[BitsPlan]], tmp_path: Path
) -> None:
    planned = {r.name.removesuffix(".weight") for r in outputs[3.5].matrices}

    def only_planned(path: str, _: Any) -> bool:
        return path in planned

    rounded = tmp_path / "rounded"
    convert(str(checkpoint), str(rounded), quantize=True, q_bits=3, quant_predicate=only_planned)
    assert outputs[3.5].model_bytes <= (rounded / "model.safetensors").stat().st_size + HEADER
    kl = {b: divergence(outputs[b].out, checkpoint, heldout) for b in BUDGETS}
    assert kl[4.5] < kl[3.5] < 0.5 * divergence(rounded, checkpoint, heldout)
    for b in BUDGETS:
        # Measured 1.01 and 0.99 here.
        assert 0.75 < kl[b] / outputs[b].plan.predicted < 1.4


def test_the_command_plans_and_carries_it_out(
    run: Run, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "plan.json", tmp_path / "out"
    few = ["--windows", 1, "--include", "*.3.mlp.*", "--bits-per-weight", "3,4.5", "--out", file]
    code, text, err = run("plan", checkpoint, "--calibration", calibration, *few)
    assert (code, err) == (0, "")
    assert "mnat" in text
    assert "model.embed_tokens.weight" in text
    code, text, _ = run("compress", checkpoint, out, "--plan", file, "--bits-per-weight", 3)
    assert code == 0
    assert "bits per weight" in text
    assert run("verify", out)[0] == 0
    code, _, err = run("plan", checkpoint, "--calibration", calibration, *few)
    assert code == 2
    assert_one_error(err, str(file), "--force")


def test_another_plan_finds_the_calibration_complete(
    run: Run, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    words = ["--calibration", calibration, "--windows", 1, "--include", "*.3.mlp.up_proj"]
    grams = []
    for budgets in ("3", "4.5,6"):
        out = ["--out", file, "--force", "--bits-per-weight", budgets]
        assert run("plan", checkpoint, *words, *out)[0] == 0
        grams.append(file.with_suffix(".grams.npz").stat().st_mtime_ns)
    assert grams[0] == grams[1]
    file.rename(tmp_path / "elsewhere.json")
    other = ["--out", file, "--bits-per-weight", "3", "--window", 64]
    code, _, err = run("plan", checkpoint, *words, *other)
    assert code == 2
    assert_one_error(err, "plan.grams.npz", "had text", "delete it")
    assert file.with_suffix(".grams.npz").stat().st_mtime_ns == grams[0]
    assert run("plan", checkpoint, *words, *other, "--force")[0] == 0
    assert file.with_suffix(".grams.npz").stat().st_mtime_ns > grams[0]


def test_a_plan_is_the_same_bytes_whatever_the_hashes_and_the_threads(
    checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    words = ["plan", checkpoint, "--calibration", calibration, "--windows", 4, "--window", 64]
    words += ["--include", "*.3.mlp.*", "--include", "lm_head", "--bits", "2,4", "--keep", 0.2]
    digests = []
    for seed, threads in (("1", "1"), ("2", "2")):
        file = tmp_path / seed / "plan.json"
        environment = {"PYTHONHASHSEED": seed, "OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, "-c", "from plastic_export.cli import main; main()"]
        subprocess.run(
            [*command, *map(str, words), "--out", str(file)],
            env=os.environ | environment,
            check=True,
            capture_output=True,
        )
        digests.append({f.suffix: sha256_file(f) for f in (file, file.with_suffix(".grams.npz"))})
    assert digests[0] == digests[1]


def test_a_plan_that_could_not_be_written_is_refused_before_the_work(
    run: Run, checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    foreign, folder, link = (tmp_path / f"{name}.json" for name in ("foreign", "folder", "link"))
    foreign.write_text('{"mine": true}')
    folder.mkdir()
    link.symlink_to("nowhere")
    (tmp_path / "plotted.png").mkdir()
    before = sorted(tmp_path.iterdir())
    words = ["plan", checkpoint, "--calibration", calibration, "--windows", 1, "--force"]
    for file, reason in (
        (foreign, "it exists and is no plan"),
        (folder, "a link or a folder"),
        (link, "a link or a folder"),
        (tmp_path / "plan.png", "the name of its plot"),
        (tmp_path / "plotted.json", "the plot cannot replace"),
    ):
        code, _, err = run(*words, "--out", file)
        assert code == 2
        assert_one_error(err, reason)
    assert sorted(tmp_path.iterdir()) == before


def test_a_layer_that_is_not_finite_is_named(
    run: Run, copy: Path, calibration: Path, tmp_path: Path
) -> None:
    weights = load_safetensors(copy / "model.safetensors")
    path = "model.layers.1.input_layernorm"
    weights[f"{path}.weight"] = mx.full((128,), float("nan"), mx.bfloat16)
    export_safetensors(copy / "model.safetensors", weights)
    words = ["--calibration", calibration, "--windows", 1, "--out", tmp_path / "plan.json"]
    code, _, err = run("plan", copy, *words)
    assert code == 2
    told, error = err.splitlines()  # the estimate comes before the work
    assert told.startswith("about ")
    assert_one_error(error, "model.layers.1.input_layernorm.weight")
    assert list(tmp_path.iterdir()) == [copy]


REFUSED = [
    (["--bits-per-weight", "2"], ["at least 2.25", "got 2"]),
    (["--bits-per-weight", "3,17"], ["at most 16", "got 17", "dense"]),
    (["--bits-per-weight", "three"], ["three", "3,3.5,4.5"]),
    (["--bits-per-weight", ","], ["','", "3,3.5,4.5"]),
    (["--group-size", "32,48"], ["'32,48' must be some of 32, 64, 128"]),
    (["--exclude", "*"], ["no matrix is left"]),
    (["--include", "*layernorm"], ["matches no matrix"]),
    (["--include", "model.embed_tokens", "--no-embeddings"], ["no layer is left"]),
    (["--window", "99999"], ["the text has", "window of 99999", "calibration.txt"]),
]


@pytest.mark.parametrize(("words", "parts"), REFUSED, ids=lambda x: " ".join(x))
def test_a_plan_that_cannot_be_made_is_one_line_and_leaves_nothing(
    run: Run,
    checkpoint: Path,
    calibration: Path,
    tmp_path: Path,
    words: list[str],
    parts: list[str],
) -> None:
    out = ["--out", tmp_path / "plan.json"]
    code, _, err = run("plan", checkpoint, "--calibration", calibration, *out, *words)
    assert code == 2
    assert_one_error(err, *parts)
    assert list(tmp_path.iterdir()) == []


CONFLICTS = [
    (["--strategy", "energy"], ["--plan has decided", "--strategy"]),
    (["--keep", "0.5"], ["3.5, 4.5", "got keep 0.5"]),
    (["--size", "3MB"], ["3.5, 4.5", "got 3000000 bytes"]),
    (["--size", "3TB"], ["a size must be", "3TB"]),
    (["--keep", "0.5", "--bits-per-weight", "3.5"], ["give one"]),
    (["--exclude", "*mlp*"], ["--plan has decided", "--exclude"]),
    ([], ["3.5, 4.5", "choose"]),
    (["--bits-per-weight", "4"], ["3.5, 4.5", "got 4"]),
]


@pytest.mark.parametrize(("words", "parts"), CONFLICTS, ids=lambda x: " ".join(x) or "none")
def test_a_plan_leaves_nothing_to_other_options(
    run: Run,
    checkpoint: Path,
    planned: Planned,
    tmp_path: Path,
    words: list[str],
    parts: list[str],
) -> None:
    code, _, err = run("compress", checkpoint, tmp_path / "out", "--plan", planned.file, *words)
    assert code == 2
    assert_one_error(err, *parts)
    assert list(tmp_path.iterdir()) == []


def test_bits_per_weight_without_a_plan_is_refused(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    words = ["--keep", 0.5, "--bits-per-weight", 3]
    code, _, err = run("compress", checkpoint, tmp_path / "out", *words)
    assert code == 2
    assert_one_error(err, "--plan")
