"""The whole command: how it ends when it is interrupted."""

from __future__ import annotations

import itertools
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from plastic_export.cli import command
from plastic_export.cli.command import main, plastic_command
from plastic_runtime.distributed import Team

Run = Callable[..., tuple[int, str, str]]
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit status, standard output and standard error of a command."""

    def ended(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(list(map(str, words)))
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return ended


@pytest.fixture
def source(write_readable: Callable[[Path], Path], tmp_path: Path) -> Path:
    return write_readable(tmp_path / "source")


PLAN = ["--bits-per-weight", 5.5, "--window", 24, "--windows", 8, "--bits", "4,8"]
HEAL = ["--steps", 6, "--window", 24, "--windows", 8, "--batch", 2]
TRAIN = ["--steps", 8, "--batch", 2, "--window", 32, "--rank", 2, "--evaluate-every", 4]


def test_alone_it_prints_its_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert (code, out, err) == run("--help")
    assert out.startswith("Usage: plastic [OPTIONS] COMMAND [ARGS]...\n\n  Compress")


def test_in_several_processes_a_command_that_does_not_exist_is_refused_as_in_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run("nosuch")
    assert alone[0] == 2
    assert "No such command 'nosuch'" in alone[2]
    several = Team()
    several.size = 2
    monkeypatch.setattr(command, "current_team", lambda: several)
    assert run("nosuch") == alone
    code, _, err = run("inspect", "nowhere")
    assert (code, err.startswith("error: inspect runs in one process; ")) == (2, True)


@pytest.mark.parametrize("width", ["80", "100"])
def test_no_summary_of_a_command_is_cut(
    run: Run, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert not [line for line in run("--help")[1].splitlines() if line.endswith("...")][1:]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    def printed(**settings: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from plastic_command import start; start()"],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert "_plastic_completion" in printed(_PLASTIC_COMPLETE=f"{shell}_source")
    words = {"COMP_WORDS": "plastic inspect --sp", "COMP_CWORD": "2"}
    if shell == "fish":
        words["COMP_CWORD"] = "--sp"
    assert "--spectra" in printed(_PLASTIC_COMPLETE=f"{shell}_complete", **words)


def test_the_package_is_a_program_too() -> None:
    words = [sys.executable, "-m", "plastic_export", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("plastic, version ")


WAITS = "the same command goes on with it\n"


def write_rows(data: Path, text: Path) -> Path:
    """A folder of rows to train on, cut from a text."""
    data.mkdir()
    rows = [json.dumps({"text": text.read_text()[i : i + 40]}) for i in range(0, 480, 40)]
    (data / "train.jsonl").write_text("\n".join(rows[:8]))
    (data / "valid.jsonl").write_text("\n".join(rows[8:]))
    return data


def patch_losing(patch: pytest.MonkeyPatch, name: str, number: int, calls: int) -> None:
    """Let a function send a signal at one of its calls, and lose what that raises.

    So does a constructor of MLX that is called within the backward pass.
    """
    original = pkgutil.resolve_name(name)
    count = itertools.count(1)

    def changed(*args: Any, **options: Any) -> Any:
        if next(count) == calls:
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        return original(*args, **options)

    patch.setattr(name, changed)


@BOTH
def test_a_signal_lost_in_the_calibration_ends_the_plan_and_it_goes_on(
    run: Run, source: Path, text: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["plan", source, "--calibration", text, *PLAN, "--out"]
    whole, out = text.with_name("whole.json"), text.with_name("cut.json")
    assert run(*words, whole)[0] == 0
    with monkeypatch.context() as patch:
        patch_losing(patch, "plastic_runtime.measure.numpy_products._times", number, 64)
        code, _, error = run(*words, out)
    assert (code, error.strip().count("\n")) == (5, 0)
    assert error.strip().startswith("error: interrupted; ")
    assert error.endswith(f"cut.grams.npz.parts: {WAITS}")
    assert not out.exists()
    assert run(*words, out)[0] == 0
    assert {**json.loads(out.read_text()), "grams": 0} == {
        **json.loads(whole.read_text()),
        "grams": 0,
    }


@BOTH
def test_a_signal_lost_in_a_backward_pass_ends_the_healing_and_it_goes_on(
    run: Run, source: Path, text: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, packed = text.with_name("plan.json"), text.with_name("packed")
    assert run("plan", source, "--calibration", text, *PLAN, "--out", plan)[0] == 0
    assert run("compress", source, packed, "--plan", plan)[0] == 0
    words = ["heal", packed, "--reference", source, "--calibration", text, *HEAL, "--out"]
    whole, out = text.with_name("whole"), text.with_name("healed")
    assert run(*words, whole)[0] == 0
    with monkeypatch.context() as patch:
        patch_losing(patch, "plastic_export.model.numpy_functions.sigmoid", number, 20)
        code, _, error = run(*words, out)
    assert (code, error.strip().count("\n")) == (5, 0)
    assert error.endswith(f"healed.heal.safetensors: {WAITS}")
    assert not out.exists()
    assert run(*words, out)[0] == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@BOTH
def test_a_signal_lost_in_a_loss_ends_the_training_and_it_goes_on(
    run: Run, source: Path, text: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(text.with_name("data"), text)
    words = ["train", source, "--data", data, *TRAIN, "--out"]
    whole, out = text.with_name("whole"), text.with_name("run")
    assert run(*words, whole)[0] == 0
    with monkeypatch.context() as patch:
        patch_losing(patch, "mlx.nn.losses.cross_entropy", number, 3)
        code, _, error = run(*words, out)
    assert code == 5
    assert error.endswith(f"\nerror: interrupted; {WAITS}")
    assert run(*words, out)[0] == 0
    file = Path("adapters", "adapters.safetensors")
    assert (out / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compress", "SRC", "OUT", "--keep", "0.0001"], "error: --keep must be at least 0.0"),
        (
            [
                "heal",
                "SRC",
                "--reference",
                "SRC",
                "--calibration",
                "TEXT",
                "--learning-rate",
                "inf",
            ],
            "error: --learning-rate must be a finite number above 0, got inf",
        ),
        (
            [
                "train",
                "SRC",
                "--data",
                "DATA",
                "--out",
                "RUN",
                "--max-size",
                "10",
                "--window",
                "32",
            ],
            "error: --max-size must be at least ",
        ),
    ],
)
def test_a_refusal_names_the_option(
    run: Run, source: Path, text: Path, words: list[str], said: str
) -> None:
    data = write_rows(text.with_name("data"), text)
    places = {"SRC": source, "TEXT": text, "DATA": data, "OUT": data / "out", "RUN": data / "run"}
    code, _, error = run(*(places.get(word, word) for word in words))
    assert code == 2
    assert error.splitlines()[-1].startswith(said)


@pytest.mark.parametrize("form", [["--keep", 0.6], ["--keep", 0.6, "--format", "dense"]])
def test_a_value_that_does_not_fit_float16_has_a_remedy_that_exists(
    run: Run, make_readable: Any, tiny_weights: dict[str, mx.array], text: Path, form: list[Any]
) -> None:
    weights = {name: w.astype(mx.float16) for name, w in tiny_weights.items()}
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = mx.full(weights[name].shape, 60_000.0, mx.float16)
    source = make_readable("large", weights=weights)
    code, _, error = run("compress", source, text.with_name("out"), *form)
    assert code == 2
    assert name in error
    assert "leave it out with --exclude, or take a copy in bfloat16" in error
    assert run("compress", source, text.with_name("out"), *form, "--exclude", "*1.mlp.up*")[0] == 0


def check_record(record: Any) -> None:
    """One object, its names in snake_case, and no number among its words."""
    assert isinstance(record, dict)
    for name, value in record.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
        assert not isinstance(value, str) or not re.match(r"[\d.]+\b", value), (name, value)


@pytest.mark.parametrize("name", plastic_command.commands)
def test_every_command_has_an_output_for_machines(name: str) -> None:
    assert "as_json" in {p.name for p in plastic_command.commands[name].params}


def test_json_is_one_object_of_numbers(run: Run, source: Path, text: Path) -> None:
    def record(*words: object) -> dict[str, Any]:
        code, out, err = run(*words, "--json")
        assert (code, err) == (0, ""), (words, err)
        found: dict[str, Any] = json.loads(out)
        check_record(found)
        return found

    at = text.with_name
    data = write_rows(at("data"), text)
    read = ["--calibration", text, "--window", 24, "--windows", 8]
    record("inspect", source, "--spectra")
    record("gguf", source)
    record("plan", source, *read, "--bits", "4,8", "--bits-per-weight", 5.5, "--out", at("p.json"))
    record("compress", source, at("packed"), "--plan", at("p.json"))
    record("compress", source, at("low"), "--keep", 0.5)
    assert record("dial", at("low"), at("lower"), "--keep", 0.3, "--park")["sleep_bytes"] > 0
    record("heal", at("packed"), "--reference", source, *read, "--steps", 1, "--out", at("healed"))
    found = record("evaluate", at("packed"), "--reference", source, "--text", text, *read[2:])
    assert found["evaluations"][0]["kl"] > 0
    assert found["scores"] == []
    assert record("report", at("packed"), "--plan", at("p.json"))["budgets"][0]["matrices"] == 16
    record("restore", at("low"), at("back"))
    assert record("verify", at("healed"))["defects"] == []
    record("train", source, "--data", data, *TRAIN, "--out", at("run"))
    assert record("report", at("run"))["steps"] == 8
