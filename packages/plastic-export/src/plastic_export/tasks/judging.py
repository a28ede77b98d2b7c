"""Checkpoints in the tasks of lm-evaluation-harness, their scores and differences."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from plastic_core.linalg import on_cpu
from plastic_runtime import Track, untracked

from plastic_export.checkpoint.finite import blaming_weights
from plastic_export.checkpoint.reader import Checkpoint, open_checkpoint
from plastic_export.estimate.limits import Estimate, announce
from plastic_export.estimate.model_shape import ModelShape
from plastic_export.estimate.peaks import whole_peak
from plastic_export.estimate.speed import Work
from plastic_export.model.load import load_for_inference
from plastic_export.model.numpy_functions import use_numpy_functions
from plastic_export.model.tokenizer import load_tokenizer, tokenizer_folder
from plastic_export.tasks.found_tasks import FoundTasks, find_tasks
from plastic_export.tasks.harness import check_harness, contained
from plastic_export.tasks.scores import Draws, TaskScore, TaskSettings

SEED = 123  # that of mlx_lm.evaluate
_PROMPT = 512  # tokens of a prompt that memory is estimated for
_NO_FILTER = ",none"

Results = dict[str, Any]


def evaluate_tasks(
    sources: Sequence[str | Path],
    tasks: Sequence[str],
    *,
    reference: str | Path | None = None,
    items: int | None = None,
    shots: int | None = None,
    include_path: str | Path | None = None,
    chat_template: bool | None = None,
    tokenizer: str | Path | None = None,
    memory: int | None = None,
    track: Track = untracked,
) -> list[TaskScore]:
    """Score checkpoints in tasks of lm-evaluation-harness, as ``mlx_lm.evaluate`` does.

    Models of every format that this package writes are judged, by this package's own loading.
    Data come from the cache of ``datasets`` on this machine, or from the files that a definition
    names; nothing is downloaded.

    Cost: one checkpoint in memory at a time, as a whole; on a CPU in float32.

    Args:
        sources: Folders or Hub ids.
        tasks: Names of tasks, groups or tags, or patterns of these.
        reference: Checkpoint to compare with, as a folder or Hub id; without it, the first source.
        items: Questions per task at most, the first ones; by default all.
        shots: Solved questions before each, where the task takes any; by default the task's own
            number.
        include_path: Folder with definitions of further tasks (YAML). Functions that they name are
            run.
        chat_template: Whether prompts are rendered with the template of the tokenizer; by default
            where all of them have one.
        tokenizer: Folder or Hub id of the tokenizer of all; by default each has its own.
        memory: Bytes of memory that it may take; by default what the machine has.
        track: Wraps the loop over the questions of each checkpoint.

    Returns:
        For every task and measure one score per source, in the order of the sources.

    Raises:
        ValueError: If there is no source or task, a task is unknown or cannot be judged here, its
            data are not on this machine (with the command that fetches them), a chat template is
            missing, a model does not fit into ``memory``, or ``reference`` is a file of saved
            predictions.
        FormatError: If a checkpoint cannot be read or its predictions are not finite.
        ModuleNotFoundError: If lm-evaluation-harness or mlx-lm is not installed.
        OSError: If a file or folder is missing or cannot be read.

    Examples:
        >>> scores = evaluate_tasks(
        ...     ["PACKED"], ["letters"], reference="SRC", include_path="tasks", items=4
        ... )
        >>> for score in scores:
        ...     print(score.task, score.measure, score.settings.items, score.difference.paired)
        letters acc 4 True
        letters acc_norm 4 True
    """
    if not sources or not tasks:
        raise ValueError("`sources` and `tasks` must name at least one each")
    _check_reference(reference)
    check_harness()
    names = [*([] if reference is None else [reference]), *sources]
    opened = [_opened(name) for name in names]
    tokenizers = [
        load_tokenizer(tokenizer_folder(tokenizer) if tokenizer else each.folder) for each in opened
    ]
    rendered = _is_rendered(chat_template, names, tokenizers)
    with contained() as logged:
        found = find_tasks(tasks, include_path, logged)
    for each in opened:
        peak = whole_peak(ModelShape.of(each), 1, _PROMPT)
        announce(Estimate(Work(), peak, 0), memory=memory)
    judged: list[Results] = []
    with blaming_weights(*opened):
        for name, each, words in zip(names, opened, tokenizers, strict=True):
            model = load_for_inference(each.folder)
            how = {"source": str(name), "chat_template": rendered, "track": track}
            judged.append(_judge(model, words, found, items, shots, how))
            del model
            mx.clear_cache()
    return _scores([str(name) for name in names], judged, found, rendered, len(sources))


def check_tasks(
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    reference: str | Path | None = None,
) -> None:
    """Refuse before other work what `evaluate_tasks` would refuse; see there for the errors."""
    _check_reference(reference)
    check_harness()
    with contained() as logged:
        find_tasks(tasks, include_path, logged)


def _check_reference(reference: str | Path | None) -> None:
    if reference is not None and Path(reference).is_file():
        raise ValueError(f"`reference` {str(reference)!r} is a file; tasks need its checkpoint")


def _opened(source: str | Path) -> Checkpoint:
    with open_checkpoint(source) as checkpoint:
        return checkpoint


def _is_rendered(
    chat_template: bool | None, names: Sequence[str | Path], tokenizers: Sequence[Any]
) -> bool:
    """Tell whether prompts are rendered with a template: for all checkpoints or for none."""
    lacking = [n for n, t in zip(names, tokenizers, strict=True) if t.chat_template is None]
    if chat_template and lacking:
        raise ValueError(
            f"`chat_template`: the tokenizer of {str(lacking[0])!r} has no chat template; "
            "leave it out, or name a tokenizer that has one"
        )
    return not lacking if chat_template is None else chat_template


def _judge(
    model: Any,
    tokenizer: Any,
    found: FoundTasks,
    items: int | None,
    shots: int | None,
    how: dict[str, Any],
) -> Results:
    """Let the harness ask a model everything, with the settings of ``mlx_lm.evaluate``."""
    with contained(), use_numpy_functions():
        from lm_eval import simple_evaluate

        from plastic_export.tasks.judged_model import JudgedModel

        mx.random.seed(SEED)
        results: Results = simple_evaluate(
            model=JudgedModel(model, tokenizer, **how),
            tasks=found.chosen,
            task_manager=found.manager,
            num_fewshot=shots,
            limit=items,
            apply_chat_template=how["chat_template"],
            fewshot_as_multiturn=False,
            random_seed=SEED,
            numpy_random_seed=SEED,
            torch_random_seed=SEED,
            fewshot_random_seed=SEED,
        )
    return results


def _scores(
    names: list[str], judged: list[Results], found: FoundTasks, rendered: bool, sources: int
) -> list[TaskScore]:
    """Gather the scores of the sources, which come last, and compare them with the first of all."""
    first = judged[0]
    scores = []
    for task, row in first["results"].items():
        settings = _settings(task, first, found, rendered)
        for key in filter(_is_measure, row):
            draws = [_draws(task, key, results) for results in judged]
            better = first["higher_is_better"].get(task) or {}
            for i in range(len(names) - sources, len(names)):
                scores.append(
                    TaskScore(
                        task=task,
                        measure=key.removesuffix(_NO_FILTER),
                        checkpoint=names[i],
                        value=draws[i].value,
                        error=draws[i].error,
                        higher_is_better=better.get(key.partition(",")[0]),
                        difference=draws[i].minus(draws[0], names[0]) if i else None,
                        settings=settings,
                    )
                )
    return scores


def _is_measure(key: str) -> bool:
    name, comma, _ = key.partition(",")
    return bool(comma) and not name.endswith("_stderr")


def _draws(task: str, key: str, results: Results) -> Draws:
    """Return a score with what is known of its questions."""
    row, (measure, _, chosen) = results["results"][task], key.partition(",")
    error = row.get(f"{measure}_stderr,{chosen}")
    samples = [s for s in results["samples"].get(task, ()) if s["filter"] == chosen]
    return Draws.of(
        float(row[key]),
        float(error) if isinstance(error, int | float) else None,
        [s["doc_hash"] for s in samples],
        [s.get(measure) for s in samples],
    )


def _settings(task: str, results: Results, found: FoundTasks, rendered: bool) -> TaskSettings:
    counts = results["n-samples"].get(task) or {}
    return TaskSettings(
        version=str(results["versions"].get(task)),
        items=counts.get("effective", results["results"][task].get("sample_len", 0)),
        of=counts.get("original"),
        shots=results["n-shot"].get(task),
        chat_template=rendered,
        seed=SEED,
        harness=version("lm-eval"),
        precision="float32" if on_cpu() else "as stored",
        device="cpu" if on_cpu() else "gpu",
    )
