"""Scores in tasks against those computed by hand from the models' own logits."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
from plastic_export import (
    BitsPlan,
    Compressed,
    compress,
    evaluate_tasks,
    load_model,
    load_tokenizer,
)

pytest.importorskip("lm_eval", reason="the extra `tasks` is not installed", exc_type=ImportError)

Run = Callable[..., tuple[int, str, str]]
Once = Callable[[str, Callable[[Path], Path]], Path]

QUESTIONS = [
    ("import", ["os", "zebra"], 0),
    ("for i in", ["lambda", "range(len(x)):"], 1),
    ("raise", ["ValueError", "elephants and tigers"], 0),
    ("if not", ["isinstance(x, str):", "##"], 0),
    ("def __init__(", ["quietly", "self, name):"], 1),
    ("class Error(", ["Exception):", "]]]"], 0),
    ("return", ["while", "None"], 0),  # the gold answer is the unlikely one
    ("with open(name) as", ["f:", "yesterday"], 0),
]
DEFINITION = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
    train: {data}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1.5
"""


class Tasks(NamedTuple):
    folder: Path
    name: str = "python_code"


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """A folder with the definition of one task and its data."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": q, "choices": c, "gold": g} for q, c, g in QUESTIONS]
    data = folder / "questions.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    made = Tasks(folder)
    (folder / "task.yaml").write_text(DEFINITION.format(name=made.name, data=data))
    return made


@pytest.fixture
def lowered(checkpoint: Path, once: Once) -> Path:
    """The checkpoint at so low ranks that it answers differently."""

    def make(folder: Path) -> Path:
        compress(checkpoint, folder / "lowered", keep=0.15, check=False)
        return folder / "lowered"

    return once("lowered", make)


def log_likelihood(model: Any, tokenizer: Any, question: str, answer: str) -> float:
    """The sum over the tokens behind those of the question, in float64."""
    before = len(tokenizer.encode(question))
    ids = tokenizer.encode(f"{question} {answer}")
    logits = np.asarray(model(mx.array([ids[:-1]])).astype(mx.float32), np.float64)[0]
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return float(sum(log_p[i - 1, ids[i]] for i in range(before, len(ids))))


def right(folder: Path) -> dict[str, list[float]]:
    """Whether each question is answered rightly: by log-likelihood, and per byte of the answer."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    found: dict[str, list[float]] = {"acc": [], "acc_norm": []}
    for question, choices, gold in QUESTIONS:
        scores = [log_likelihood(model, tokenizer, question, c) for c in choices]
        per_byte = [s / len(c.encode()) for s, c in zip(scores, choices, strict=True)]
        found["acc"].append(float(np.argmax(scores) == gold))
        found["acc_norm"].append(float(np.argmax(per_byte) == gold))
    return found


def error_of(draws: Sequence[float]) -> float:
    return float(np.std(draws, ddof=1) / len(draws) ** 0.5)


def test_scores_are_those_of_the_log_likelihoods(checkpoint: Path, tasks: Tasks) -> None:
    expected = right(checkpoint)
    assert 0 < np.mean(expected["acc"]) < 1
    scores = evaluate_tasks([checkpoint], [tasks.name], include_path=tasks.folder)
    assert [s.measure for s in scores] == ["acc", "acc_norm"]
    for score in scores:
        assert score.value == np.mean(expected[score.measure])
        assert score.error == pytest.approx(error_of(expected[score.measure]))
        assert score.higher_is_better
        assert score.difference is None
        assert (score.settings.items, score.settings.of) == (8, 8)
        assert (score.settings.version, score.settings.shots) == ("1.5", 0)
        assert not score.settings.chat_template


def test_the_difference_to_the_reference_is_paired(
    checkpoint: Path, lowered: Path, tasks: Tasks
) -> None:
    mine, theirs = right(lowered), right(checkpoint)
    assert mine != theirs
    scores = evaluate_tasks(
        [lowered], [tasks.name], reference=checkpoint, include_path=tasks.folder
    )
    for score in scores:
        differences = np.subtract(mine[score.measure], theirs[score.measure])
        assert score.checkpoint == str(lowered)
        assert score.difference is not None
        assert score.difference.against == str(checkpoint)
        assert score.difference.score == np.mean(theirs[score.measure])
        assert score.difference.mean == pytest.approx(differences.mean(), abs=1e-12)
        assert score.difference.error == pytest.approx(error_of(differences))
        assert score.difference.paired


def test_every_format_is_judged(
    in_every_format: dict[str, Compressed[BitsPlan]],
    tasks: Tasks,
    lowered: Path,
) -> None:
    folders = [*(each.out for each in in_every_format.values()), lowered]
    scores = evaluate_tasks(folders, [tasks.name], include_path=tasks.folder)
    assert len(scores) == 2 * len(folders)
    for score in scores:
        assert score.value == np.mean(right(Path(score.checkpoint))[score.measure])
        assert (score.difference is None) == (score.checkpoint == str(folders[0]))


def test_limit_and_shots(checkpoint: Path, tasks: Tasks) -> None:
    scores = evaluate_tasks([checkpoint], [tasks.name], include_path=tasks.folder, items=3, shots=2)
    again = evaluate_tasks([checkpoint], [tasks.name], include_path=tasks.folder, items=3, shots=2)
    assert (scores[0].settings.items, scores[0].settings.of) == (3, 8)
    assert scores[0].settings.shots == 2
    assert scores == again


def test_the_command_prints_a_table_and_json(
    run: Run, checkpoint: Path, lowered: Path, heldout: Path, tasks: Tasks
) -> None:
    words = [lowered, "--reference", checkpoint, "--tasks", tasks.name]
    words += ["--include-path", tasks.folder, "--limit", 4]
    code, out, err = run("evaluate", *words)
    assert (code, err) == (0, "")
    assert "python_code  acc" in out
    assert "4 of 8" in out
    assert "version 1.5, 0 shots, no chat template, seed 123; lm-eval" in out
    texts = ["--text", heldout, "--windows", 2, "--window", 32]
    code, out, err = run("evaluate", *words, *texts, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    (on_text,), (acc, acc_norm) = found["evaluations"], found["scores"]
    assert on_text["text"] == heldout.name
    assert (acc["task"], acc["measure"], acc_norm["measure"]) == (tasks.name, "acc", "acc_norm")
    assert acc["difference"]["against"] == str(checkpoint)


def with_dataset(tasks: Tasks, name: str, path: str, config: str = "") -> None:
    text = (tasks.folder / "task.yaml").read_text().replace(tasks.name, name)
    start, end = text.index("dataset_path"), text.index("output_type")
    named = f"dataset_path: {path}\n{f'dataset_name: {config}' if config else ''}\n"
    (tasks.folder / f"{name}.yaml").write_text(text[:start] + named + text[end:])


def refused(run: Run, checkpoint: Path, tasks: Tasks, name: str, *words: object) -> str:
    code, out, err = run(
        "evaluate", checkpoint, "--tasks", name, "--include-path", tasks.folder, *words
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


def test_data_that_are_not_here_are_one_line_with_the_command_that_fetches_them(
    run: Run, checkpoint: Path, tasks: Tasks
) -> None:
    with_dataset(tasks, "elsewhere", "someone/letters", "easy")
    assert refused(run, checkpoint, tasks, "elsewhere") == (
        "error: task 'elsewhere': its data set someone/letters easy is not on this machine; fetch "
        'it with: python -c "import datasets; '
        "datasets.load_dataset('someone/letters', 'easy')\"\n"
    )


def test_data_come_from_the_cache_of_datasets(
    checkpoint: Path, tasks: Tasks, tmp_path: Path
) -> None:
    import datasets

    files = {"test": str(tasks.folder / "questions.jsonl")}
    files["train"] = files["test"]
    loaded = datasets.load_dataset("json", data_files=files)
    home = tmp_path / "cache" / "someone___letters" / "default" / "0.0.0" / "0123456789abcdef"
    shutil.copytree(Path(loaded["test"].cache_files[0]["filename"]).parent, home)
    for file in home.glob("json-*.arrow"):
        file.rename(home / file.name.replace("json", "letters"))
    info = home / "dataset_info.json"
    info.write_text(info.read_text().replace('"dataset_name": "json"', '"dataset_name": "letters"'))
    with_dataset(tasks, "cached", "someone/letters")
    names = ["cached", tasks.name]
    cached, _, own, _ = evaluate_tasks([checkpoint], names, include_path=tasks.folder)
    assert (cached.task, own.task) == ("cached", tasks.name)
    assert (cached.value, cached.error) == (own.value, own.error)


def test_files_that_are_missing_are_named(run: Run, checkpoint: Path, tasks: Tasks) -> None:
    (tasks.folder / "questions.jsonl").unlink()
    err = refused(run, checkpoint, tasks, tasks.name)
    assert err.startswith(f"error: task {tasks.name!r}: its data cannot be read: ")
    assert "questions.jsonl" in err


@pytest.mark.long  # it looks through the 14,000 definitions of the harness
def test_an_unknown_task_names_those_that_are_near(
    run: Run, checkpoint: Path, tasks: Tasks
) -> None:
    err = refused(run, checkpoint, tasks, "python_coed")
    assert "there is no task 'python_coed'; did you mean python_code" in err


def test_a_definition_that_is_wrong_is_one_line(run: Run, checkpoint: Path, tasks: Tasks) -> None:
    text = (tasks.folder / "task.yaml").read_text().replace("acc_norm", "nothing_known")
    (tasks.folder / "task.yaml").write_text(text)
    err = refused(run, checkpoint, tasks, tasks.name)
    assert f"task {tasks.name!r} cannot be set up" in err
    assert "nothing_known" in err


def test_a_chat_template_that_is_missing_is_named(run: Run, checkpoint: Path, tasks: Tasks) -> None:
    err = refused(run, checkpoint, tasks, tasks.name, "--apply-chat-template")
    assert err == (
        f"error: --apply-chat-template: the tokenizer of {str(checkpoint)!r} has no chat template; "
        "leave it out, or name a tokenizer that has one\n"
    )


def test_a_chat_template_is_taken_where_there_is_one(copy: Path, tasks: Tasks) -> None:
    file = copy / "tokenizer_config.json"
    template = "{% for m in messages %}>>> {{ m['content'] }}\n{% endfor %}"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    where: dict[str, Any] = {"include_path": tasks.folder, "items": 2}
    assert evaluate_tasks([copy], [tasks.name], **where)[0].settings.chat_template
    plain = evaluate_tasks([copy], [tasks.name], **where, chat_template=False)
    assert not plain[0].settings.chat_template


def test_too_little_memory_is_told_before_the_work(
    run: Run, checkpoint: Path, tasks: Tasks
) -> None:
    assert "--memory" in refused(run, checkpoint, tasks, tasks.name, "--memory", "1MB")


def test_a_folder_of_definitions_that_is_missing_is_named(
    run: Run, checkpoint: Path, tasks: Tasks
) -> None:
    nowhere = tasks.folder / "nowhere"
    code, _, err = run("evaluate", checkpoint, "--tasks", tasks.name, "--include-path", nowhere)
    assert (code, err.count("\n")) == (3, 1)
    assert "nowhere: no such folder of task definitions" in err


def test_libraries_are_left_as_they_were(checkpoint: Path, tasks: Tasks) -> None:
    import datasets
    import tqdm
    from huggingface_hub import constants

    def state() -> list[Any]:
        offline = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
        bars = datasets.are_progress_bars_disabled()
        return [tqdm.tqdm.__init__, *offline, bars, [*logging.getLogger("datasets").handlers]]

    before = state()
    evaluate_tasks([checkpoint], [tasks.name], include_path=tasks.folder, items=1)
    assert state() == before
