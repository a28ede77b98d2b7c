"""The page that turns the dial, in a headless Chromium; left out where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from plastic_export import SizeServer, compress

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
SECONDS = 120


class Browser:
    """A page, asked over the pipes of Chromium's own protocol."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._count, self._rest, self._session = 0, b"", {}

    def call(self, method: str, **params: Any) -> Any:
        self._count += 1
        sent = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(sent).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                got = os.read(self._answers, 65536)
                assert got, "Chromium ended"
                self._rest += got
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._count:
                return answer["result"]

    def open(self, url: str) -> None:
        target = self.call("Target.createTarget", url=url)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def value(self, script: str) -> Any:
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return got["result"].get("value")

    def until(self, script: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not self.value(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.1)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    words += ["--remote-debugging-pipe", f"--user-data-dir={profile}"]
    script = f'exec 3<&{in_read} 4>&{out_write}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *words],
        pass_fds=(in_read, out_write),
        stderr=subprocess.DEVNULL,
    )
    os.close(in_read)
    os.close(out_write)
    try:
        yield Browser(in_write, out_read)
    finally:
        process.kill()
        process.wait()
        os.close(in_write)
        os.close(out_read)


def test_it_compares_two_sizes(checkpoint: Path, tmp_path: Path) -> None:
    compress(checkpoint, tmp_path / "served", keep=0.8)
    with (
        SizeServer(tmp_path / "served", port=0, page=True) as server,
        browser(tmp_path / "profile") as page,
    ):
        page.open(f"{server.url}/")
        page.until('at("state")?.textContent === "ready"')
        before = page.value('at("dot-a").getAttribute("cx")')
        middle = server.sizes[len(server.sizes) // 2].keep
        turn = f'at("keep-a").value = {middle}; at("keep-a").dispatchEvent(new Event("input"))'
        page.value(turn)
        assert page.value('at("dot-a").getAttribute("cx")') != before
        assert f"{100 * middle:.2f} %" in page.value('at("size-a").textContent')
        page.value('at("tokens").value = 12; at("go").click()')
        page.until('at("state").textContent === "answered"')
        texts = [page.value(f'at("answer-{side}").textContent') for side in "ab"]
        marks = [page.value(f'at("answer-{s}").querySelectorAll("mark").length') for s in "ab"]
        assert all(texts)
        assert (texts[0] == texts[1]) == (marks == [0, 0])
        page.value('at("keep-a").value = 1; at("go").click()')
        page.until('at("state").textContent === "answered" && !at("go").disabled')
        page.until('at("note-a").textContent.startsWith("0 of")')
        assert page.value('at("answer-a").textContent') == texts[1]
