"""A folder served at three sizes at once, to the client of OpenAI and to those that misbehave."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from mlx_lm import stream_generate
from plastic_export import (
    Calibration,
    Choices,
    SizeServer,
    execute_plan,
    load_model,
    load_tokenizer,
    plan_checkpoint,
)
from plastic_export.format import FORMATS
from plastic_runtime import Dial
from prometheus_client.parser import text_string_to_metric_families

PROMPTS = ("def main(", "import os", "class Path", "    return self", "for name in", "if not ")
TOKENS = 24
REQUESTS = 64


@pytest.fixture(scope="module")
def out(checkpoint: Path, calibration: Path, once: Callable[..., Path]) -> Path:
    """The shipped checkpoint in 4 bits per weight, on backbones of 2 and 3 bits."""

    def make(folder: Path) -> Path:
        own = FORMATS["corrected"].choices or Choices()
        plan_checkpoint(
            checkpoint,
            folder / "plan.json",
            calibration=Calibration(calibration, window=64, windows=32),
            budgets=[4.0],
            choices=Choices((2, 3), factor_bits=own.factor_bits, bare=True),
            format="corrected",
        )
        return execute_plan(checkpoint, folder / "served", folder / "plan.json").out

    return once("serve", make)


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
        with urllib.request.urlopen(urllib.request.Request(url + place, data), timeout=60) as got:
            return got.status, json.load(got)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def metrics(url: str) -> dict[str, float]:
    """Every sample, by its name and its label."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as got:
        assert got.headers["Content-Type"].startswith("text/plain")
        families = text_string_to_metric_families(got.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return {" ".join((s.name, *s.labels.values())): s.value for s in samples}


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

    before = metrics(server.url)
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = list(pool.map(ask, range(REQUESTS)))
    assert len(answers) == REQUESTS
    wrong = [(k, p, t) for k, p, t, _ in answers if t != expected[k][p]]
    assert not wrong
    after = metrics(server.url)
    key = "plastic_requests_total answered"
    assert after[key] - before.get(key, 0) == REQUESTS
    turns = sum(after[k] - before.get(k, 0) for k in after if "turn_seconds_count" in k)
    assert turns <= 9, "requests of one size go together"
    assert after["plastic_requests_at_hand"] == 0
    assert all(after[f"plastic_tokens_total {name}"] > 0 for *_, name in answers)
