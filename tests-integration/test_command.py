"""The ``plastic`` command on good and bad input: one clear line, the exit status, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plastic_core.testing import assert_one_error

Run = Callable[..., tuple[int, str, str]]


def damage_truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def damage_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def damage_pickle_renamed(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x02}q\x00." * 100)


def damage_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def index(folder: Path, shard: str) -> None:
    names = ["lm_head.weight"]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def damage_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    index(folder, "model-00001-of-00002.safetensors")


def damage_outside_shard(folder: Path) -> None:
    index(folder, "../model.safetensors")


def put_bits(folder: Path, bits: int) -> None:
    """Overwrite one bfloat16 of model.layers.1.mlp.up_proj.weight."""
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    start = 8 + length + header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0] + 2 * 5
    raw[start : start + 2] = np.uint16(bits).tobytes()
    weights.write_bytes(raw)


def damage_nan(folder: Path) -> None:
    put_bits(folder, 0x7FC0)


def damage_inf(folder: Path) -> None:
    put_bits(folder, 0x7F80)


DAMAGES = {
    damage_truncated: ["model.safetensors"],
    damage_pickle: ["pytorch_model.bin", "safetensors"],
    damage_pickle_renamed: ["model.safetensors"],
    damage_no_weights: ["safetensors"],
    damage_missing_shard: ["model-00001-of-00002.safetensors"],
    damage_outside_shard: ["../model.safetensors"],
    damage_nan: ["model.safetensors", "model.layers.1.mlp.up_proj.weight", "(0, 5)"],
    damage_inf: ["model.safetensors", "model.layers.1.mlp.up_proj.weight", "(0, 5)"],
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_source_is_one_line_and_leaves_nothing(
    run: Run, copy: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy)
    before = sorted(tmp_path.iterdir())
    code, _, err = run("compress", copy, tmp_path / "out", "--keep", 0.5)
    assert code == 2
    assert_one_error(err, *DAMAGES[damage])
    assert sorted(tmp_path.iterdir()) == before


OPTIONS = [
    (["--keep", "0"], ["(0, 1]", "0"]),
    (["--keep", "1.5"], ["(0, 1]", "1.5"]),
    (["--keep", "nan"], ["(0, 1]", "nan"]),
    (["--keep", "much"], ["--keep", "much"]),
    (["--keep", "0.001"], ["at least"]),
    (["--keep", "0.5", "--strategy", "best"], ["--strategy", "best", "stable", "theorem"]),
    (["--keep", "0.5", "--include", "*nothing*"], ["*nothing*"]),
    (["--keep", "0.5", "--exclude", "*"], ["no matrix"]),
    (["--keep", "0.5", "--include", "model.embed_tokens"], ["model.embed_tokens.weight"]),
    ([], ["--keep"]),
]


@pytest.mark.parametrize(("words", "parts"), OPTIONS, ids=lambda x: " ".join(x) or "none")
def test_a_bad_option_is_one_line_and_leaves_nothing(
    run: Run, checkpoint: Path, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    code, _, err = run("compress", checkpoint, tmp_path / "out", *words)
    assert code == 2
    assert_one_error(err, *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_short_calibration_text_names_the_limit(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short")
    out = tmp_path / "out"
    words = ["--keep", 0.5, "--strategy", "activation", "--calibration", text]
    code, _, err = run("compress", checkpoint, out, *words)
    assert code == 2
    assert_one_error(err, "256")
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("command", [["inspect"], ["gguf"], ["verify"]])
def test_a_missing_folder_is_one_line(run: Run, tmp_path: Path, command: list[str]) -> None:
    code, _, err = run(*command, tmp_path / "nowhere")
    assert code == 2
    assert_one_error(err, "nowhere")


@pytest.mark.parametrize("target", ["gguf", "mlx"])
def test_weights_that_are_not_finite_are_not_exported(
    run: Run, checkpoint: Path, tmp_path: Path, target: str
) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    put_bits(broken, 0x7FC0)
    code, _, err = run("export", broken, tmp_path / "out", "--to", target)
    assert code == 2
    assert_one_error(err, "'model.layers.1.mlp.up_proj.weight': it holds NaN or an infinity")
    assert list(tmp_path.iterdir()) == [broken]


def test_an_existing_output_is_kept_without_force(
    run: Run, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for words in ([], ["--force"]):  # not ours: never replaced
        code, _, err = run("compress", checkpoint, out, "--keep", 0.5, *words)
        assert code == 2
        assert_one_error(err, str(out))
        assert [p.name for p in out.iterdir()] == ["mine.txt"]


def test_force_replaces_an_earlier_output(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("compress", checkpoint, out, "--keep", 0.5)[0] == 0
    first = (out / "plastic.json").read_bytes()
    assert run("compress", checkpoint, out, "--keep", 0.4)[0] == 2
    assert (out / "plastic.json").read_bytes() == first
    assert run("compress", checkpoint, out, "--keep", 0.4, "--force")[0] == 0
    assert (out / "plastic.json").read_bytes() != first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX only")
def test_an_output_that_cannot_be_made_is_an_io_error(run: Run, checkpoint: Path) -> None:
    code, _, err = run("compress", checkpoint, "/proc/plastic/out", "--keep", 0.5)
    assert code == 3
    assert_one_error(err, "/proc")


def test_inspect_tells_machines_and_people_the_same(run: Run, checkpoint: Path) -> None:
    code, text, _ = run("inspect", checkpoint, "--spectra")
    assert code == 0
    code, out, _ = run("inspect", checkpoint, "--spectra", "--json")
    assert code == 0
    record = json.loads(out)
    assert f"{record['parameters']:,} parameters" in text
    assert len(record["spectra"]) == 28
    for name, spectrum in record["spectra"].items():
        assert name in text
        assert 1 <= spectrum["stable"] <= spectrum["effective"]


def test_verify_finds_every_flipped_bit(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("compress", checkpoint, out, "--keep", 0.5)[0] == 0
    assert run("verify", out)[0] == 0
    rng = np.random.default_rng(0)
    for name in ["model.safetensors", "sleep.safetensors", "config.json", "plastic_model.py"]:
        good = (out / name).read_bytes()
        for _ in range(5):
            bad = bytearray(good)
            bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
            (out / name).write_bytes(bad)
            code, _, err = run("verify", out)
            assert code == 2
            assert name in err
        (out / name).write_bytes(good)
    (out / "model-extra.safetensors").write_bytes(good)
    assert run("verify", out)[0] == 2


def test_the_command_is_quiet_when_not_a_terminal(checkpoint: Path, tmp_path: Path) -> None:
    words = ["compress", str(checkpoint), str(tmp_path / "out"), "--keep", "0.5", "--json"]
    plastic = shutil.which("plastic", path=str(Path(sys.executable).parent))
    assert plastic
    done = subprocess.run([plastic, *words], capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    assert done.stderr == ""
    assert record["kept"] + record["removed"] == pytest.approx(1)
    assert record["kept"] <= 0.5
