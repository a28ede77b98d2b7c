"""Files and folders that must be refused in one clear line, with nothing read outside of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from plastic_core.files import load_safetensors
from plastic_core.testing import BAD_FILES, BAD_INDEXES, GOOD, GOOD_FILES

from provoked.checkpoints import tiny, tree
from provoked.child import command, in_child
from provoked.outcome import Outcome

INDEX = "model.safetensors.index.json"
LIMIT = 20  # seconds for one file
OURS = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[3]), "/proc/", "/sys/")
"""Where Python and this repository may be read while a file of somebody else is refused."""


class Case(NamedTuple):
    """A command that must be refused.

    Attributes:
        name: What is wrong.
        words: The command.
        file: What the message must begin with.
        reason: Pattern that it must match.
        home: The only folder that may be read.
    """

    name: str
    words: list[str]
    file: Path
    reason: str
    home: Path


def malformed(quick: bool, work: Path) -> list[Outcome]:
    """Every malformed safetensors file and every malformed index."""
    target = "exit 2, one line with file, tensor, reason, remedy; no read outside the folder"
    files = Outcome("malformed safetensors files", target)
    indexes = Outcome("malformed index files", target)
    controls = Outcome("valid edge cases of the same kinds", "read")
    with files.timed():
        for cases in _batches(list(_files(work / "files"))):
            _refused(files, cases)
    with indexes.timed():
        for cases in _batches(list(_indexes(work / "indexes"))):
            _refused(indexes, cases)
    with controls.timed():
        for name, content in GOOD_FILES.items():
            file = _folder(work / "valid" / name, content) / "model.safetensors"
            ended = in_child(_loads(file))
            controls.count([] if ended.status == 0 else [ended.printed], name)
    return [files, indexes, controls]


def special(quick: bool, work: Path) -> list[Outcome]:
    """Pipes, devices, links, folders, sparse giants: in place of inputs and of outputs."""
    outcome = Outcome(
        "pipe, socket, device, folder, link, sparse giant, pickle, code as input",
        "exit 2, one line, within 20 s; no read outside the folder",
    )
    with outcome.timed():
        for cases in _batches(list(_inputs(work))):
            _refused(outcome, cases)
    out = Outcome(
        "link, hard link, pipe, file, Hub cache, the source itself as output",
        "exit 2, and nothing there changes",
    )
    with out.timed():
        for name, words in _outputs(work / "outputs"):
            before = tree(work / "outputs")
            ended = in_child(command(*words), LIMIT)
            problems = [] if ended.status == 2 else [f"exit {ended.status}: {ended.printed}"]
            if tree(work / "outputs") != before:
                problems.append("something there changed")
            out.count(problems, name)
    return [outcome, out]


def _loads(file: Path) -> Callable[[], None]:
    def call() -> None:
        load_safetensors(file)

    return call


def _files(work: Path) -> Iterator[Case]:
    for name, bad in BAD_FILES.items():
        folder = _folder(work / name, bad.content)
        file = folder / "model.safetensors"
        reason = bad.reason if bad.tensor is None else f"tensor .*{bad.reason}"
        yield Case(name, ["inspect", str(folder)], file, reason, folder)


def _indexes(work: Path) -> Iterator[Case]:
    outside = _folder(work / "outside", GOOD)
    for name, (index, reason) in BAD_INDEXES.items():
        folder = _folder(work / name, GOOD)
        text = index if isinstance(index, str) else json.dumps(index)
        (folder / INDEX).write_text(text)
        yield Case(name, ["inspect", str(folder)], folder / INDEX, reason, folder)
    for name, reason, spoil in _spoilt(outside):
        folder = tiny(work / name)
        file = spoil(folder)
        yield Case(name, ["inspect", str(folder)], file, reason, folder)


def _spoilt(outside: Path) -> Iterator[tuple[str, str, Callable[[Path], Path]]]:
    """Folders whose files do not agree."""
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))

    def missing(folder: Path) -> Path:
        (folder / second).unlink()
        return folder / second

    def twice(folder: Path) -> Path:
        shutil.copyfile(folder / first, folder / second)
        return folder / second

    def linked(folder: Path) -> Path:
        (folder / second).unlink()
        (folder / second).symlink_to(outside / "model.safetensors")
        return folder / second

    yield "shard missing", "not there", missing
    yield "tensor in two shards", "is in .* too", twice
    yield "shard a link outside", "leaves the folder", linked


def _inputs(work: Path) -> Iterator[Case]:
    outside = _folder(work / "outside", GOOD)
    for name in ("model.safetensors", "config.json", INDEX):
        for kind, reason, make in _kinds(outside / name):
            folder = _folder(work / f"{kind} as {name}", GOOD)
            (folder / name).unlink(missing_ok=True)
            make(folder / name)
            yield Case(folder.name, ["inspect", str(folder)], folder / name, reason, folder)
    folder = _folder(work / "sparse", _giant())
    os.truncate(folder / "model.safetensors", len(_giant()) + 2**38)
    words = ["inspect", str(folder), "--spectra"]
    yield Case("sparse", words, folder, "do not fit into the memory", folder)
    configs: dict[str, dict[str, object]] = {
        "model_file": {"model_file": "evil.py"},
        "auto_map": {"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"},
    }
    for name, config in configs.items():
        folder = _folder(work / name, GOOD, {"model_type": "llama", **config})
        (folder / "evil.py").write_text("open('/tmp/evil', 'w')\n")
        (folder / "text").write_text("text " * 99)
        words = ["evaluate", str(folder), "--text", str(folder / "text")]
        yield Case(name, words, folder, "never run", folder)
    folder = _folder(work / "large config", GOOD)
    (folder / "config.json").write_bytes(b'{"a":"' + b"x" * 2**27 + b'"}')
    yield Case("large config", ["inspect", str(folder)], folder, "too many for a JSON", folder)
    for suffix in ("bin", "pt", "pth", "ckpt", "pkl", "npz", "gguf", "h5"):
        folder = _folder(work / suffix, GOOD)
        (folder / "model.safetensors").rename(folder / f"pytorch_model.{suffix}")
        reason = "not safetensors"
        yield Case(f"only .{suffix}", ["inspect", str(folder)], folder, reason, folder)


def _kinds(outside: Path) -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    if not outside.exists():
        outside.write_text("{}")

    def bind(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.getcwd()
            os.chdir(path.parent)  # a socket's path must be short
            listener.bind(path.name)
            os.chdir(here)

    yield "pipe", "a named pipe, not a regular file", os.mkfifo
    yield "socket", "a socket, not a regular file", bind
    yield "folder", "a directory, not a regular file", os.mkdir
    yield "device", "a device, not a regular file|leaves the folder", _link("/dev/zero")
    yield "dangling link", "a link to nowhere, which does not exist", _link("nowhere")
    yield "looping link", "a link that leads back to itself", lambda p: p.symlink_to(p.name)
    yield "link outside", "a link that leaves the folder", _link(outside)


def _link(target: str | Path) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _outputs(work: Path) -> Iterator[tuple[str, list[str]]]:
    source = tiny(work / "source")
    other = tiny(work / "other")
    cache = work / "models--a--b" / "snapshots"
    cache.mkdir(parents=True)
    (cache.parent / "blobs").mkdir()
    blob = cache.parent / "blobs" / "digest"
    blob.write_bytes(GOOD)
    (work / "cached").symlink_to(cache.parent / "blobs")
    (work / "link").symlink_to(other)
    (work / "dangling").symlink_to("nowhere")
    (work / "file").write_text("text")
    os.link(blob, work / "hard link")
    os.mkfifo(work / "pipe")
    thesis = work / "thesis"
    thesis.mkdir()
    (thesis / "years of work").write_text("text")
    places = {
        "the source": source,
        "around the source": work,
        "a link to a folder": work / "link",
        "a dangling link": work / "dangling",
        "a file": work / "file",
        "a hard link": work / "hard link",
        "in the Hub cache": cache / "out",
        "in the Hub cache by a link": work / "cached" / "out",
        "a foreign folder": thesis,
    }
    options = ["--keep", "0.5", "--format", "dense", "--force"]
    for name, place in places.items():
        yield name, ["compress", str(source), str(place), *options]
    os.unlink(work / "pipe")


def _refused(outcome: Outcome, cases: list[Case]) -> None:
    """Run cases in one child, whose last words say how each went."""

    def call() -> int:
        from plastic_export.cli import main  # imports before the hook looks

        for case in cases:
            print("RESULT", json.dumps(_result(case, main)), flush=True)
        return 0

    ended = in_child(call, LIMIT * (len(cases) + 1))
    lines = [line.partition("RESULT ") for line in ended.printed.splitlines()]
    results = [json.loads(result) for _, mark, result in lines if mark]
    for case, problems in zip(cases, results, strict=False):
        outcome.count(problems, case.name)
    for case in cases[len(results) :]:
        outcome.count([f"ended the process: {ended.status} {ended.printed[-300:]}"], case.name)


def _result(case: Case, main: Callable[[list[str]], None]) -> list[str]:
    opened = _watch(case.home)
    err, status = StringIO(), 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LIMIT)
    start = time.perf_counter()
    with redirect_stderr(err), redirect_stdout(StringIO()):
        try:
            main(case.words)
        except SystemExit as error:
            status = int(error.code or 0)
    signal.alarm(0)
    lines = err.getvalue().splitlines()
    problems = [f"read {path}" for path in opened]
    _WATCHED.clear()
    if status != 2 or len(lines) != 1:
        problems.append(f"exit {status}: {err.getvalue()!r:.300}")
        return problems
    if not lines[0].startswith(f"error: {case.file}") or "; " not in lines[0]:
        problems.append(f"names no file or no remedy: {lines[0]}")
    if not re.search(case.reason, lines[0]):
        problems.append(f"another reason: {lines[0]}")
    if (seconds := time.perf_counter() - start) > LIMIT / 2:
        problems.append(f"took {seconds:.0f} s")
    return problems


_WATCHED: list[tuple[Path, list[str]]] = []


def _watch(home: Path) -> list[str]:
    """A list that will hold every path opened from now on that belongs neither there nor to us."""
    opened: list[str] = []
    if not _WATCHED and not getattr(_watch, "hooked", False):
        sys.addaudithook(_hook)
        _watch.hooked = True  # type: ignore[attr-defined]
    _WATCHED.append((home, opened))
    return opened


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _WATCHED or not isinstance(arguments[0], str | os.PathLike):
        return
    home, opened = _WATCHED[-1]
    path = os.path.abspath(os.fspath(arguments[0]))
    ours = (
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parents[3]),
        str(home),
        "/proc/",
        "/sys/",
    )
    if not path.startswith(ours) and "site-packages" not in path:
        opened.append(path)


def _folder(folder: Path, weights: bytes, config: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return folder


def _giant() -> bytes:
    entry = {"dtype": "U8", "shape": [2**19, 2**19], "data_offsets": [0, 2**38]}
    entry = entry | {"dtype": "BF16", "shape": [2**19, 2**18]}
    text = json.dumps({"model.layers.0.mlp.up_proj.weight": entry}).encode()
    return struct.pack("<Q", len(text)) + text


def _batches(cases: list[Case]) -> Iterator[list[Case]]:
    for start in range(0, len(cases), 20):
        yield cases[start : start + 20]
