"""A run that dies between any two writes loses no component and no bit.

``pytest --hypothesis-profile=thorough`` runs 1,000 machines of 50 steps.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from plastic_core import Factors
from plastic_core.files import AtomicFile
from plastic_core.testing import bits
from plastic_runtime import SleepStore
from plastic_runtime.sleep.store import verify_store

POPULATION = 12
PATHS = ("layers.0", "layers.10")


class PowerCut(BaseException):
    """The end of a process, as seen from inside."""


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on what really reaches the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Disk:
    """Counts what reaches the disk and stops before one of it; from then on nothing does.

    Attributes:
        left: Operations until the end; None for no end.
        renamed: What has been renamed since the last sync of a folder.
    """

    def __init__(self, left: int | None = None) -> None:
        self.left, self.dead, self.count = left, False, 0
        self.renamed: list[Path] = []

    def step(self) -> None:
        self.count += 1
        if self.dead or self.left == 0:
            self.dead = True
            raise PowerCut
        if self.left is not None:
            self.left -= 1

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Everything in the block goes through this disk."""
        patch = pytest.MonkeyPatch()
        write, replace, unlink = AtomicFile.write, os.replace, os.unlink

        def cut_write(file: AtomicFile, data: bytes | memoryview) -> None:
            try:
                self.step()
            except PowerCut:
                if self.left == 0:  # the one that was under way: half of it arrives
                    self.left = -1
                    write(file, memoryview(data)[: memoryview(data).nbytes // 2])
                raise
            write(file, data)

        def cut_replace(source: Any, target: Any) -> None:
            self.step()
            replace(source, target)
            self.renamed.append(Path(target))

        def cut_fsync(descriptor: int) -> None:
            self.step()
            self.renamed.clear()

        def cut_unlink(path: Any, **how: Any) -> None:
            self.step()
            unlink(path, **how)

        patch.setattr(AtomicFile, "write", cut_write)
        patch.setattr(os, "replace", cut_replace)
        patch.setattr(os, "fsync", cut_fsync)
        patch.setattr(os, "unlink", cut_unlink)
        try:
            yield
        finally:
            patch.undo()

    def lose_unsynced(self) -> None:
        """As after a power cut: a name that no sync has made durable is gone."""
        for path in self.renamed:
            path.unlink(missing_ok=True)


def population(seed: int) -> dict[int, Factors]:
    """Components by serial number, all different, of arbitrary bits."""
    rng = np.random.default_rng(seed)
    return {
        serial: Factors(
            *(
                mx.array(rng.integers(0, 2**32, shape), dtype=mx.uint32).view(mx.float32)
                for shape in ((5, 1), (1,), (1, 4))
            )
        )
        for serial in range(POPULATION)
    }


def content(factors: Factors) -> bytes:
    return b"".join(bits(a.reshape(-1)) for a in factors)


class Run:
    """A run in training, without the training: what is awake, and what was saved of it.

    Saving is one atomic step, as ``save_run`` is, after which the store is told.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.serials = {content(f): s for s, f in population(seed).items()}
        self.awake = population(seed)
        self.store = SleepStore(folder)
        self.saved = (dict(self.awake), self.store.meta())
        self.given: dict[int, int] = {}

    def park(self, serials: list[int], path: str) -> None:
        chosen = [self.awake[s] for s in serials if s in self.awake]
        if not chosen:
            return
        columns = zip(*chosen, strict=True)
        ids = self.store.park(path, Factors(*map(stacked, columns, (1, 0, 0))))
        gone = [s for s in serials if s in self.awake]
        for id, serial in zip(ids, gone, strict=True):
            assert id not in self.given, "a number was given twice"
            self.given[id] = serial
            del self.awake[serial]

    def wake(self, index: int) -> None:
        path = PATHS[index % len(PATHS)]
        ids = self.store.ids(path)
        if ids:
            id = ids[index % len(ids)]
            factors, _ = self.store.take(path, [id])
            self.awake[self.given[id]] = factors

    def save(self) -> None:
        self.saved = (dict(self.awake), self.store.meta())
        self.store.release()

    def restart(self) -> None:
        """Go on from what was saved, as after a crash."""
        self.store.close()
        awake, meta = self.saved
        store = SleepStore(self.folder)
        found = {self.serials[content(f)] for f in awake.values()}
        found |= {self.serials[content(asleep(store, id))] for id in all_ids(store)}
        assert found == set(range(POPULATION)), "a component is neither asleep nor saved"
        store.load({}, meta)
        self.store, self.awake = store, dict(awake)

    def check(self) -> None:
        """Everyone is either awake or asleep, with the same bits."""
        awake = [self.serials[content(f)] for f in self.awake.values()]
        sleeping = [self.serials[content(asleep(self.store, id))] for id in all_ids(self.store)]
        assert sorted(awake + sleeping) == list(range(POPULATION))


def stacked(arrays: tuple[mx.array, ...], axis: int) -> mx.array:
    return mx.concatenate(list(arrays), axis=axis)


def all_ids(store: SleepStore) -> list[int]:
    return [id for path in store.paths() for id in store.ids(path)]


def asleep(store: SleepStore, id: int) -> Factors:
    p = store.get(id)
    return Factors(p.U, p.S, p.Vh)


class SleepMachine(RuleBasedStateMachine):
    """Park, wake, save, compact, reopen; die within any of it, by kill or by power cut."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.run = Run(self.root / "sleep", seed=0)

    def teardown(self) -> None:
        self.run.store.close()
        assert verify_store(self.run.folder) == []
        shutil.rmtree(self.root)

    def do(self, action: Callable[[], None], left: int | None, power: bool) -> None:
        disk = Disk(left)
        try:
            with disk.attached():
                action()
        except PowerCut:
            if power:
                disk.lose_unsynced()
            self.run.restart()

    @rule(
        serials=st.sets(st.integers(0, POPULATION - 1), min_size=1, max_size=4),
        path=st.sampled_from(PATHS),
        left=st.none() | st.integers(0, 20),
        power=st.booleans(),
    )
    def park(self, serials: set[int], path: str, left: int | None, power: bool) -> None:
        self.do(lambda: self.run.park(sorted(serials), path), left, power)

    @rule(index=st.integers(0, 100))
    def wake(self, index: int) -> None:
        self.run.wake(index)

    @rule(left=st.none() | st.integers(0, 5), power=st.booleans())
    def save(self, left: int | None, power: bool) -> None:
        self.do(self.run.save, left, power)

    @rule(left=st.none() | st.integers(0, 50), power=st.booleans())
    def compact(self, left: int | None, power: bool) -> None:
        self.do(self.run.store.compact, left, power)

    @rule()
    def restart(self) -> None:
        self.run.restart()

    @invariant()
    def nobody_is_lost(self) -> None:
        self.run.check()


TestSleepMachine = SleepMachine.TestCase
TestSleepMachine.settings = settings(stateful_step_count=50)


def scenario(run: Run) -> None:
    """Some of everything."""
    run.park([0, 1, 2], PATHS[0])
    run.save()
    run.wake(0)
    run.park([3, 4], PATHS[1])
    run.wake(1)
    run.save()
    run.store.compact()
    run.park([0, 5], PATHS[0])
    run.wake(0)
    run.store.compact()
    run.save()


@pytest.mark.parametrize("power", [False, True])
def test_every_prefix_of_what_reaches_the_disk_recovers(tmp_path: Path, power: bool) -> None:
    prefixes = 0
    while True:
        run, disk = Run(tmp_path / str(prefixes), seed=1), Disk(prefixes)
        try:
            with disk.attached():
                scenario(run)
        except PowerCut:
            if power:
                disk.lose_unsynced()
            run.restart()
            run.check()
            stray = [p for p in os.listdir(run.folder) if p.startswith(".") and p != ".holder.json"]
            assert not stray
            scenario(run)
            run.check()
            run.store.close()
            prefixes += 1
            continue
        break
    run.store.close()
    assert prefixes > 50
