"""Ways round a tokenizer that is code: another tokenizer, and texts that are token ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plastic_core.files import FormatError
from plastic_export.calibration.text import Calibration
from plastic_export.calibration.token_ids import read_token_ids
from plastic_export.calibration.tokens import TokenReader
from plastic_export.checkpoint.reader import open_checkpoint
from plastic_export.cli.command import main
from plastic_export.model.tokenizer import load_tokenizer

Make = Callable[..., Path]
CODE = """
import pathlib
pathlib.Path(__file__).with_name("ran").write_text("it ran")
raise SystemExit
"""


@pytest.fixture
def coded(make_readable: Make) -> Path:
    """A checkpoint whose tokenizer is code of its folder, which leaves a mark where it runs."""
    return with_code(make_readable("coded"))


def with_code(folder: Path) -> Path:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenization_own.py").write_text(CODE)
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {}}
    config["auto_map"] = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def alone(make_readable: Make, tmp_path: Path) -> Path:
    """A folder with a tokenizer and nothing else."""
    source, folder = make_readable("whole"), tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture
def ids(alone: Path, text: Path) -> list[int]:
    """The tokens of the text."""
    found: list[int] = load_tokenizer(alone).encode(text.read_text())
    return found


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


FEW = ("--window", 24, "--windows", 8)


def commands(source: Path, text: Path, tokenizer: Path | None) -> dict[str, list[object]]:
    """Every command that reads a text."""
    other = [] if tokenizer is None else ["--tokenizer", tokenizer]
    plan, out = text.with_name("plan.json"), text.with_name("out")
    bits = ("--bits", "2,4", "--bits-per-weight", "4")
    return {
        "plan": ["plan", source, "--calibration", text, *bits, "--out", plan, *FEW, *other],
        "compress": ["compress", source, out, "--keep", 0.8, "--calibration", text, *FEW, *other],
        "evaluate": ["evaluate", source, "--text", text, *FEW, *other],
    }


def reads(code: Any, folder: Path) -> None:
    assert code == 0
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("command", ["plan", "compress", "evaluate"])
def test_a_tokenizer_that_is_code_is_refused_in_one_line_that_names_ways_round(
    coded: Path, text: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *commands(coded, text, None)[command])
    assert (code, err.count("\n")) == (2, 1)
    assert "'auto_map'" in err
    assert "--tokenizer" in err
    assert ".npy" in err
    assert not (coded / "ran").exists()


@pytest.mark.parametrize("command", ["plan", "compress", "evaluate"])
def test_another_tokenizer_takes_its_place(
    coded: Path, alone: Path, text: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = run(capsys, *commands(coded, text, alone)[command])
    reads(code, coded)


@pytest.mark.parametrize("kind", ["npy", "json"])
@pytest.mark.parametrize("command", ["plan", "compress", "evaluate"])
def test_token_ids_need_no_tokenizer(
    coded: Path,
    ids: list[int],
    text: Path,
    kind: str,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = text.with_suffix(f".{kind}")
    if kind == "npy":
        np.save(file, np.array(ids, np.int32))
    else:
        file.write_text(json.dumps(ids))
    code, _, _ = run(capsys, *commands(coded, file, None)[command])
    reads(code, coded)


@pytest.mark.parametrize("way", ["tokenizer", "ids"])
def test_healing_takes_the_same_ways(
    coded: Path,
    alone: Path,
    ids: list[int],
    text: Path,
    way: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = text.with_suffix(".npy")
    np.save(file, np.array(ids))
    read, other = (file, None) if way == "ids" else (text, alone)
    lines = commands(coded, read, other)
    assert run(capsys, *lines["plan"])[0] == 0
    out = text.with_name("out")
    assert run(capsys, "compress", coded, out, "--plan", text.with_name("plan.json"))[0] == 0
    words = ["heal", out, "--reference", coded, "--calibration", read, "--steps", 2, *FEW]
    code, _, _ = run(capsys, *words, *([] if other is None else ["--tokenizer", other]))
    reads(code, coded)


def test_training_takes_another_tokenizer(
    coded: Path, alone: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, data, letters = alone / "tokenizer_config.json", text.with_name("data"), text.read_text()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "0"}))
    data.mkdir()
    rows = [json.dumps({"text": letters[i : i + 20]}) for i in range(0, 400, 20)]
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text("\n".join(rows))
    words = ["train", coded, "--data", data, "--out", text.with_name("RUN"), "--steps", 2]
    words += ["--batch", 2, "--window", 32, "--rank", 2, "--evaluate-every", 2]
    assert run(capsys, *words)[0] == 2
    code, _, _ = run(capsys, *words, "--tokenizer", alone)
    reads(code, coded)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "1"}))
    code, _, err = run(capsys, *words, "--tokenizer", alone)
    assert code == 2
    assert "tokenizer_config.json" in err


def test_a_tokenizer_of_the_hub_is_taken_without_its_weights(
    make_readable: Make, alone: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dict[str, Any]()

    def snapshot(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(alone)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with open_checkpoint(make_readable()) as checkpoint:
        plain = Calibration(text, window=24, windows=8).tokens(checkpoint)
        other = Calibration(text, window=24, windows=8, tokenizer="someone/tiny")
        assert np.array_equal(other.tokens(checkpoint), plain)
    assert asked["repository"] == "someone/tiny"
    assert not any("safetensors" in pattern for pattern in asked["allow_patterns"])
    assert other.record()["tokenizer"].keys() == {"tokenizer.json", "tokenizer_config.json"}


def test_a_tokenizer_that_is_not_there_is_refused_by_name(make_readable: Make, text: Path) -> None:
    with open_checkpoint(make_readable()) as checkpoint:
        reader = TokenReader(checkpoint, text.with_name("nowhere"))
        with pytest.raises(FormatError, match=r"nowhere: there is no such folder of a tokenizer"):
            reader.windows(text, length=24)


@pytest.mark.parametrize("begun", [True, False])
def test_windows_of_ids_begin_as_the_ids_do(make_readable: Make, text: Path, begun: bool) -> None:
    file = text.with_suffix(".json")
    file.write_text(json.dumps([*([1] if begun else []), *range(2, 80)]))
    with open_checkpoint(make_readable()) as checkpoint:  # whose bos_token_id is 1
        windows = np.asarray(TokenReader(checkpoint).windows(file, length=8))
    step = 7 if begun else 8
    own = windows[:, 8 - step :]
    assert own.ravel().tolist() == [*range(2, 80)][: own.size]
    assert (windows[:, 0] == 1).all() == begun


def test_rows_of_ids_are_the_windows(make_readable: Make, text: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 80, (6, 8))
    file = text.with_suffix(".npy")
    np.save(file, rows)
    with open_checkpoint(make_readable()) as checkpoint:
        reader = TokenReader(checkpoint)
        assert np.array_equal(reader.windows(file, length=8), rows)
        assert np.array_equal(reader.windows(file, length=8, limit=2), rows[[0, 3]])
        with pytest.raises(ValueError, match="each row holds 8 tokens, and `window` is 24"):
            reader.windows(file, length=24)


def test_an_id_that_the_model_does_not_know_is_named(make_readable: Make, text: Path) -> None:
    file = text.with_suffix(".npy")
    np.save(file, np.full(100, 93))
    with (
        open_checkpoint(make_readable()) as checkpoint,
        pytest.raises(
            FormatError, match="its embedding has 80 tokens, and the text holds the id 93"
        ),
    ):
        TokenReader(checkpoint).windows(file, length=24)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 2, 2), np.int32), "2 x 2 x 2 of int32, no token ids"),
        (np.zeros(3), "3 of float64, no token ids"),
        (np.zeros(0, np.int32), "0 of int32, no token ids"),
        (np.array([3, -1]), "-1 is no id"),
        (np.array([3, 2**31]), "2147483648 is no id"),
        (np.array([{}], object), "no array of NumPy"),
    ],
)
def test_an_array_of_anything_else_is_refused(tmp_path: Path, array: Any, said: str) -> None:
    file = tmp_path / "ids.npy"
    np.save(file, array, allow_pickle=True)
    with pytest.raises(FormatError, match=said):
        read_token_ids(file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(FormatError, match="no array of NumPy"):
        read_token_ids(file)


@pytest.mark.parametrize("content", ['{"a": 1}', "[1.5]", '["a"]', "[[1], [2, 3]]", "[", "[]", "7"])
def test_any_other_json_is_a_text(tmp_path: Path, content: str) -> None:
    file = tmp_path / "text.json"
    file.write_text(content)
    assert read_token_ids(file) is None


@pytest.mark.parametrize("kind", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_without_its_vocabulary_is_refused(
    make_readable: Make, text: Path, kind: str
) -> None:
    folder = make_readable()
    (folder / "tokenizer.json").unlink()
    named = "LlamaTokenizer" if kind == "tokenizer.model" else "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    with pytest.raises(FormatError, match=r"tokenizer .*--tokenizer") as refused:
        load_tokenizer(folder)
    assert "\n" not in str(refused.value)
    assert "tokens" not in str(refused.value).partition(";")[0]
