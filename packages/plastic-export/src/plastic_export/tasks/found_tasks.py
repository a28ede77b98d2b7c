"""Tasks found by their names, with their data, before any model is loaded."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from plastic_export.model.library import brief

_NEAR = 3  # names that a wrong one may have been meant for


@dataclass(frozen=True)
class FoundTasks:
    """Tasks of lm-evaluation-harness whose data are at hand.

    Attributes:
        manager: Its ``TaskManager``, which knows them.
        chosen: What was asked for: its ``Task`` and ``Group`` objects.
        single: Every single task among them, by name.
    """

    manager: Any
    chosen: list[Any]
    single: dict[str, Any]


def find_tasks(
    names: Sequence[str], include_path: str | Path | None, logged: Sequence[str] = ()
) -> FoundTasks:
    """Load tasks with their data, from this machine alone.

    Args:
        names: Tasks, groups, tags, or patterns of these.
        include_path: Folder of further definitions, which go before those of the harness.
        logged: The errors that the harness logs meanwhile, see `contained`.

    Raises:
        ValueError: If a name is unknown, its data are not on this machine, it cannot be set up, or
            a task comes twice; or if one needs images, or runs code that a model writes.
        OSError: If the folder does not exist.
    """
    manager = _manager(names, include_path)
    wanted = [task for name in dict.fromkeys(names) for task in _known(manager, name)]
    chosen = [one for name in dict.fromkeys(wanted) for one in _loaded(manager, name, logged)]
    single = manager.load(chosen)["tasks"]
    for name, task in single.items():
        _check(name, task)
    return FoundTasks(manager, chosen, single)


def _manager(names: Sequence[str], include_path: str | Path | None) -> Any:
    """Return one that reads no more definitions than are needed: the harness has 14,000."""
    from lm_eval.tasks import TaskManager

    if include_path is None:
        return TaskManager()
    folder = Path(include_path)
    if not folder.is_dir():
        raise NotADirectoryError(20, "no such folder of task definitions", str(folder))
    own = TaskManager(include_path=folder, include_defaults=False)
    if all(own.match_tasks([name]) for name in names):
        return own
    return TaskManager(include_path=folder)


def _known(manager: Any, name: str) -> list[str]:
    """Return the tasks of a name or pattern."""
    matched: list[str] = manager.match_tasks([name])
    if not matched:
        near = get_close_matches(name, manager.all_tasks, _NEAR, cutoff=0.7)
        way = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
        raise ValueError(f"there is no task {name!r}; {way}")
    return matched


def _loaded(manager: Any, name: str, logged: Sequence[str]) -> list[Any]:
    try:
        loaded = manager.load([name])
    except Exception as error:  # definitions are code, which raises what it likes
        raise ValueError(_why(name, error, logged)) from error
    group = loaded["groups"].get(name)
    return [*loaded["tasks"].values()] if group is None else [group]


def _why(name: str, error: Exception, logged: Sequence[str]) -> str:
    """Say in a line why a task cannot be had, and how to fetch data that are missing."""
    task = _downloading(error)
    if task is None:
        why = [*logged[-1:], f"{type(error).__name__}: {brief(error)}"]
        return f"task {name!r} cannot be set up: {'; '.join(why)}"
    wanted, kwargs = task.config.task or name, task.config.dataset_kwargs or {}
    named = [task.DATASET_PATH, *([task.DATASET_NAME] if task.DATASET_NAME else [])]
    if "data_files" in kwargs or "data_dir" in kwargs or Path(named[0]).exists():
        return f"task {wanted!r}: its data cannot be read: {brief(error)}"
    call = ", ".join([*map(repr, named), *(f"{k}={v!r}" for k, v in kwargs.items())])
    return (
        f"task {wanted!r}: its data set {' '.join(named)} is not on this machine; fetch it with: "
        f'python -c "import datasets; datasets.load_dataset({call})"'
    )


def _downloading(error: Exception) -> Any:
    """Return the task whose data an error is about, by the frame that asked for them."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        task = frame.f_locals.get("self")
        if frame.f_code.co_name == "download" and hasattr(task, "DATASET_PATH"):
            return task
    return None


def _check(name: str, task: Any) -> None:
    """Refuse what mlx-lm's part of the harness cannot do, and what it does not do unasked."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"task {name!r} runs code that the model writes, which is never done here")
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"task {name!r} needs images or sound, and mlx-lm judges text alone")
