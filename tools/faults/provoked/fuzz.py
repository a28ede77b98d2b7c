"""Headers a few edits away from valid ones: our verdict against that of the safetensors library."""

from __future__ import annotations

from pathlib import Path

from plastic_core.files import FormatError, load_safetensors, read_header
from plastic_core.testing import STRICTER, mutants
from safetensors import SafetensorError, deserialize

from provoked.child import in_child
from provoked.outcome import Outcome

Shapes = dict[str, tuple[int, ...]]


def fuzz(quick: bool, work: Path) -> list[Outcome]:
    """Mutations in memory-backed files; what both accept is read whole."""
    count, piece = (2_000, 2_000) if quick else (100_000, 10_000)
    outcome = Outcome(
        "header mutations",
        "verdict of the safetensors library, or refused by one of our stricter rules",
    )
    with outcome.timed():
        for seed in range(count // piece):
            _piece(outcome, seed, piece, work)
    return [outcome]


def _piece(outcome: Outcome, seed: int, count: int, work: Path) -> None:
    report = work / "report"

    def call() -> None:
        found = Outcome("", "")
        for content in mutants(seed, count):
            _compare(found, content, work / "model.safetensors")
        lines = [f"{found.tried} {found.right}"]
        lines += [f"{number} {name}" for name, number in found.remarks.items()]
        report.write_text("\n".join([*lines, "wrong", *found.wrong[:10]]))

    ended = in_child(call, 600)
    if ended.status:
        outcome.count([f"ended with {ended.status}: {ended.printed[-300:]}"], f"seed {seed}")
        return
    counts, _, wrong = report.read_text().partition("\nwrong")
    first, *remarks = counts.splitlines()
    tried, right = map(int, first.split())
    outcome.tried, outcome.right = outcome.tried + tried, outcome.right + right
    outcome.wrong += wrong.splitlines()[1:]
    for line in remarks:
        number, _, name = line.partition(" ")
        outcome.remark(name, int(number))


def _compare(outcome: Outcome, content: bytes, path: Path) -> None:
    path.write_bytes(content)
    theirs, ours, reason = _of_the_library(content), None, ""
    try:
        header = read_header(path)
        ours = {name: info.shape for name, info in header.tensors.items()}
        arrays = load_safetensors(path)
        loaded: Shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    except FormatError as error:
        reason, loaded = str(error), {}
    rule = next((rule for rule, phrase in STRICTER.items() if phrase in reason), None)
    if ours is not None:
        outcome.count([] if ours == theirs == loaded else [f"{content!r}"], "accepted")
        outcome.remark("accepted by both and read")
    elif theirs is None:
        outcome.count([], "")
        outcome.remark("refused by both")
    else:
        outcome.count([] if rule else [f"{content!r}: {reason}"], "refused by us alone")
        outcome.remark(f'refused by us alone: "{rule}"')


def _of_the_library(content: bytes) -> Shapes | None:
    try:
        found = deserialize(content)
        return {name: tuple(info["shape"]) for name, info in found}
    except SafetensorError:
        return None
