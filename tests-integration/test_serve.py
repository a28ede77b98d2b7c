"""A folder served at three sizes at once, to the client of OpenAI and to those that misbehave."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import openai
import pytest
from mlx_lm import stream_generate
from plastic_core.files import FormatError
from plastic_export import (
    SizeServer,
    load_model,
    load_tokenizer,
)
from plastic_runtime import Dial
from prometheus_client.parser import text_string_to_metric_families

PROMPTS = ("def main(", "import os", "class Path", "    return self", "for name in", "if not ")
TOKENS = 24
REQUESTS = 64


@pytest.fixture(scope="module")
def out(make_corrected: Callable[[Path], Path], once: Callable[..., Path]) -> Path:
    """The shipped checkpoint in 4 bits per weight, on backbones of 2 and 3 bits."""

    return once("serve", lambda folder: make_corrected(folder / "served"))


@pytest.fixture(scope="module")
def server(out: Path) -> Iterator[SizeServer]:
    """That folder, served with a page."""
    with SizeServer(out, port=0, page=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: SizeServer) -> openai.OpenAI:
    """OpenAI's client of it, which tries nothing twice."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)


def keeps(server: SizeServer) -> tuple[float, ...]:
    """The least size, one between, and the largest."""
    sizes = [size.keep for size in server.sizes]
    return sizes[0], sizes[len(sizes) // 2], sizes[-1]


def alone(out: Path, nbytes: int) -> dict[str, str]:
    """What a model that was loaded for it alone answers to every prompt, one by one."""
    model, tokenizer = load_model(out), load_tokenizer(out)
    with Dial(model, out) as dial:
        dial.to(bytes=nbytes)
    answers = {}
    for prompt in PROMPTS:
        pieces = stream_generate(model, tokenizer, prompt, max_tokens=TOKENS)
        answers[prompt] = "".join(piece.text for piece in pieces)
    return answers


def post(url: str, body: object, place: str = "/v1/completions") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + place, data), timeout=600) as got:
            return got.status, json.load(got)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def metrics(url: str) -> dict[str, float]:
    """Every sample, by its name and its label."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=600) as got:
        assert got.headers["Content-Type"].startswith("text/plain")
        families = text_string_to_metric_families(got.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return {" ".join((s.name, *s.labels.values())): s.value for s in samples}


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < deadline


@contextmanager
def endless(server: SizeServer, keep: float, *, stream: bool) -> Iterator[socket.socket]:
    """A client that asks for an answer without end and reads none of it, until it hangs up."""
    host, port = server.url.removeprefix("http://").split(":")
    body = {"prompt": PROMPTS[0], "max_tokens": 10**6, "stream": stream, "plastic": {"keep": keep}}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.0\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + data)
        wait_for(lambda: metrics(server.url)["plastic_requests_at_hand"] > 0)
        yield client


def test_every_answer_of_three_sizes_at_once_is_that_of_its_size(
    out: Path, server: SizeServer, client: openai.OpenAI
) -> None:
    sizes = keeps(server)
    listed = {size.keep: size.nbytes for size in server.sizes}
    expected = {keep: alone(out, listed[keep]) for keep in sizes}
    assert len({tuple(answers.values()) for answers in expected.values()}) == 3

    def ask(number: int) -> tuple[float, str, str, str]:
        keep, prompt = sizes[number % 3], PROMPTS[number % len(PROMPTS)]
        name = f"{server.model}@{keep:g}"
        by_name = number % 2 == 0
        answer = client.completions.create(
            model=name if by_name else server.model,
            prompt=prompt,
            max_tokens=TOKENS,
            temperature=0,
            extra_body={} if by_name else {"plastic": {"keep": keep}},
        )
        assert answer.model == name
        return keep, prompt, answer.choices[0].text, name

    before, key = metrics(server.url), "plastic_requests_total answered"

    def have_all_arrived() -> bool:
        now = metrics(server.url)
        answered = now.get(key, 0) - before.get(key, 0)
        return answered + now["plastic_requests_at_hand"] - 1 >= REQUESTS

    with ThreadPoolExecutor(REQUESTS) as pool:
        with endless(server, sizes[0], stream=False):  # other sizes wait, however late they come
            asked = [pool.submit(ask, number) for number in range(REQUESTS)]
            wait_for(have_all_arrived)
        answers = [each.result() for each in asked]
    wait_for(lambda: metrics(server.url)["plastic_requests_at_hand"] == 0)
    wrong = [(k, p, t) for k, p, t, _ in answers if t != expected[k][p]]
    assert not wrong
    after = metrics(server.url)
    assert after[key] - before.get(key, 0) == REQUESTS
    turns = sum(after[k] - before.get(k, 0) for k in after if "turn_seconds_count" in k)
    assert turns <= 9, "requests of one size go together"
    assert all(after[f"plastic_tokens_total {name}"] > 0 for *_, name in answers)


def test_requests_that_cannot_be_meant_are_refused_in_a_line(server: SizeServer) -> None:
    good = {"prompt": "def main(", "max_tokens": 4}
    least = f"{server.sizes[0].keep:g}"
    for wrong, status, said in (
        ({"plastic": {"keep": 0.01}}, 400, f'"keep" must be a number from {least}'),
        ({"plastic": {"size": 1}}, 400, '"plastic" has no field "size"'),
        ({"plastic": "half"}, 400, '"plastic" must be an object'),
        ({"model": f"{server.model}@half"}, 400, 'got "half"'),
        ({"model": "gpt"}, 404, f'"model" must be "{server.model}"'),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": "warm"}, 400, "temperature"),
        ({"stop": 5}, 400, '"stop" must be'),
        ({"prompt": ""}, 400, '"prompt" must be'),
        ({"logit_bias": {"99999": 1}}, 400, '"logit_bias" must be'),
        ({"adapters": "run"}, 400, '"adapters" is not served'),
    ):
        got, answer = post(server.url, good | wrong)
        assert got == status, (wrong, answer)
        assert said in answer["error"]
        assert "\n" not in answer["error"]
    for body, said in (
        (b"{", "JSON"),
        (b"\xff", "no JSON in UTF-8"),
        (b"[" * 100_000, "no JSON in UTF-8"),
        (b'{"prompt": "\\ud800"}', '"prompt" holds half of a character'),
        (b'{"prompt": "a", "logit_bias": {"5": null}}', "NoneType"),
    ):
        got, answer = post(server.url, body)
        assert (got, said in answer["error"]) == (400, True), answer
    for stated in ("-5", "99999999999999"):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as wrong_length:
            head = f"POST /v1/completions HTTP/1.0\r\nContent-Length: {stated}\r\n\r\n"
            wrong_length.sendall(head.encode())
            got_bytes = wrong_length.makefile("rb").read()
            assert got_bytes.startswith(b"HTTP/1.0 413")
            assert b"must be from 0 to 67,108,864 bytes" in got_bytes
    assert post(server.url, good)[0] == 200


def test_a_prompt_that_was_cached_whole_is_answered(server: SizeServer) -> None:
    _, first = post(server.url, {"prompt": "def main(", "max_tokens": 8})
    prompt = "def main(" + first["choices"][0]["text"]
    for _ in range(2):
        status, second = post(server.url, {"prompt": prompt, "max_tokens": 8})
        assert status == 200
        assert second["usage"]["completion_tokens"] > 0


def test_caches_of_one_size_serve_no_other(server: SizeServer) -> None:
    prompt = "from collections import "
    cached = []
    for keep in (*keeps(server)[:2], keeps(server)[0]):
        body = {"prompt": prompt, "max_tokens": 4, "plastic": {"keep": keep}}
        _, answer = post(server.url, body)
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert max(cached[:2]) <= 1  # what every prompt begins with
    assert cached[2] > 1


def test_the_models_are_the_sizes(server: SizeServer, client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [m.id for m in models] == [
        server.model,
        *(f"{server.model}@{size.keep:g}" for size in server.sizes),
    ]
    about = client.models.retrieve(models[1].id).model_extra
    assert about is not None
    smallest = server.sizes[0]
    assert about["plastic"]["bytes"] == smallest.nbytes
    assert about["plastic"]["price"] == smallest.price
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_client_that_hangs_up_loses_nobodys_answer(server: SizeServer) -> None:
    least, *_, largest = keeps(server)
    before = metrics(server.url).get("plastic_requests_total hung_up", 0)
    expected = post(server.url, {"prompt": PROMPTS[1], "max_tokens": 8})
    for stream in (True, False):  # an answer without end, and none reads it
        with endless(server, least, stream=stream) as gone, ThreadPoolExecutor(2) as pool:
            same = {"prompt": PROMPTS[1], "max_tokens": 8, "plastic": {"keep": least}}
            other = {"prompt": PROMPTS[1], "max_tokens": 8, "plastic": {"keep": largest}}
            asked = [pool.submit(post, server.url, b) for b in (same, other)]
            gone.close()
            got = [answer.result() for answer in asked]
        assert [status for status, _ in got] == [200, 200]
        assert got[1][1]["choices"] == expected[1]["choices"]
    hung_up = "plastic_requests_total hung_up"
    wait_for(lambda: metrics(server.url)[hung_up] - before >= 2)
    assert metrics(server.url)[hung_up] - before == 2


def test_what_fails_in_generation_ends_alone(
    server: SizeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm import server as stock

    def broken(arguments: Any, *_: Any) -> Any:
        if arguments.sampling.temperature == 0.123:
            raise RuntimeError("the sampler is broken")
        return sampler(arguments, *_)

    sampler = stock._make_sampler
    monkeypatch.setattr(stock, "_make_sampler", broken)
    good = {"prompt": "def main(", "max_tokens": 4}
    status, answer = post(server.url, good | {"temperature": 0.123})
    assert (status, answer["error"]) == (
        500,
        "it could not be generated: the sampler is broken",
    )
    assert post(server.url, good)[0] == 200


def test_a_folder_may_have_any_name(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ünï 中 @0.5 %41 'x'"
    shutil.copytree(out, folder)
    with SizeServer(folder, port=0) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        name = f"{server.model}@{server.sizes[0].keep:g}"
        assert server.model == folder.name
        answer = client.completions.create(model=name, prompt="def main(", max_tokens=2)
        assert answer.model == name
        assert client.models.retrieve(name).id == name
        assert any(name in sample for sample in metrics(server.url))


def test_what_is_no_compressed_folder_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FormatError, match=r"plastic\.json: missing; name a folder that"):
            SizeServer(folder, port=0)


def test_a_folder_that_changes_is_no_fault_of_the_request(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(out, folder)
    with SizeServer(folder, port=0) as server:
        least = {"plastic": {"keep": server.sizes[0].keep}}
        good = {"prompt": "def main(", "max_tokens": 4}
        _, before = post(server.url, good | least)
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
        status, answer = post(server.url, good)
        assert (status, "it changed" in answer["error"]) == (500, True)
        status, after = post(server.url, good | least)
        assert (status, after["choices"]) == (200, before["choices"])
        chat = {"messages": [{"role": "user", "content": [5]}]}
        assert post(server.url, chat, "/v1/chat/completions")[0] == 400


def test_a_limit_of_memory_turns_the_default_down_and_up(out: Path, no_cache: None) -> None:
    with SizeServer(out, port=0) as free:
        least, largest = free.sizes[0].nbytes, free.sizes[-1].nbytes
    mx.clear_cache()
    before = mx.get_active_memory()
    block = 256 * 1024  # bytes by which the cache of this model grows
    limit = (largest + before + 4 * block) * 20 // 18  # a twentieth stays free, one more to turn up
    with SizeServer(out, port=0, memory=limit) as server:
        url = server.url
        _, alone = post(url, {"prompt": "def main(", "max_tokens": 4})
        assert alone["model"] == f"{server.model}@1"
        _, longer = post(url, {"prompt": "def main(", "max_tokens": limit // 1024, "stop": "\n"})
        assert longer["model"] == f"{server.model}@{server.sizes[0].keep:g}"
        assert metrics(url)["plastic_model_bytes"] <= server.sizes[0].nbytes
        _, again = post(url, {"prompt": "def main(", "max_tokens": 4})
        assert again["model"] == alone["model"]
        assert again["choices"] == alone["choices"]
        assert metrics(url)["plastic_memory_limit_bytes"] == limit
    with pytest.raises(ValueError, match=r"`memory` must be at least [\d,]+ bytes, the least"):
        SizeServer(out, port=0, memory=least)
    tight = (least + largest) // 2 * 20 // 19
    with SizeServer(out, port=0, memory=tight) as server:
        status, answer = post(server.url, {"prompt": "a", "plastic": {"keep": 1}})
        assert status == 400
        assert '"keep" must be at most' in answer["error"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_it_has_begun(out: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-m", "plastic_export", "serve", out, "--port", "0", "--json"]
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = ""
            while not printed.endswith("}\n") or printed.count("{") != printed.count("}"):
                line = process.stdout.readline()
                assert line, "it ended"
                printed += line
            url = json.loads(printed)["url"]
            body = {"prompt": "def main(", "max_tokens": 400}  # not over before it is looked at
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(post, url, body)
                wait_for(lambda: metrics(url)["plastic_requests_at_hand"] > 0)
                process.send_signal(number)
                status, content = answer.result()
            assert status == 200
            assert content["usage"]["completion_tokens"] > 0
            assert process.wait(600) == 0
        finally:
            process.kill()


def test_the_command_says_what_is_wrong_in_a_line(
    out: Path, checkpoint: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, exit_status, said in (
            (["--port", port], 3, f"error: 127.0.0.1:{port}: Address already in use"),
            (["--memory", "100KB"], 2, "error: --memory must be at least"),
            (["--", "--temp", "hot"], 2, "mlx_lm.server refuses its options: argument --temp"),
            (["--", "--model", "other"], 2, "--model is not served"),
        ):
            code, _, errors = run("serve", out, *words)
            assert code == exit_status, errors
            assert said in errors
            assert len(errors.splitlines()) == 1
    code, _, errors = run("serve", checkpoint, "--port", "0")
    assert code == 2
    assert len(errors.splitlines()) == 1
