"""The model behind mlx-lm's server, turned to the size that a batch of requests asks for."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from threading import Event
from typing import Any

import mlx.core as mx
from mlx_lm import server
from plastic_runtime import Dial

from plastic_export.model.load import load_model
from plastic_export.model.tokenizer import load_tokenizer
from plastic_export.serving.first_run import FirstRun, first_run
from plastic_export.serving.memory_policy import MemoryPolicy
from plastic_export.serving.metrics import ServingMetrics
from plastic_export.serving.requests.size_names import ListedSize, SizeNames

LISTED = 9
"""Sizes that ``/v1/models`` lists."""


class DialProvider(server.ModelProvider):  # type: ignore[misc]  # mlx-lm publishes no types
    """What gives mlx-lm's server the one model of a folder, at the size that a name asks for.

    mlx-lm calls `load` before each batch, from the thread that generates, and keeps KV caches by
    ``model_key``. So the size is a part of the key, and no cache of one size serves another.

    Args:
        settings: The settings of the installed ``mlx_lm.server``, without a model.
        folder: The compressed folder.
        metrics: What is counted.
        policy: What follows from the limit of memory; None where there is none.
        prompt_cache: mlx-lm's cache of prompts, which gives way to the weights.

    Attributes:
        sizes: The sizes and their names. These and what follows are known once it is open.
        listed: The sizes that are listed.
        first_keep: The size that it begins with, the largest that may be loaded.
        priced_in: The unit of their prices.
        shown: What the model shows of itself.
        nbytes: Bytes of the weights now.
    """

    sizes: SizeNames
    listed: list[ListedSize]
    first_keep: float
    priced_in: str
    shown: FirstRun

    def __init__(
        self,
        settings: Namespace,
        folder: Path,
        metrics: ServingMetrics,
        policy: MemoryPolicy | None,
        prompt_cache: Any,
    ) -> None:
        super().__init__(settings)
        self._folder, self._metrics, self.policy = folder, metrics, policy
        self._prompt_cache = prompt_cache
        self._most_cached: int | None = settings.prompt_cache_bytes
        self._dial: Dial | None = None
        self._opened = Event()
        self._failure: BaseException | None = None

    def open(self) -> bool:
        """Load the model, in the thread that will run it; tell whether that went well."""
        try:
            self._open()
        except BaseException as error:
            self._failure = error
        self._opened.set()
        return self._failure is None

    def wait(self) -> None:
        """Wait until the other thread has loaded the model; raise what it raised."""
        self._opened.wait()
        if self._failure is not None:
            raise self._failure

    def load(self, model_path: str, *_: Any) -> tuple[Any, Any]:
        """Turn the model to the size that its name asks for; called by mlx-lm's server.

        Raises:
            FormatError: If the folder has changed; the model is as it was.
        """
        keep = self.sizes.asked(model_path, None) or 1.0
        if self.model_key != self._key(keep):
            self._turn(keep)
        return self.model, self.tokenizer

    def load_default(self) -> None:
        """Do nothing: it is loaded already."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights now."""
        return 0 if self._dial is None else self._dial.nbytes

    def close(self) -> None:
        """Close the files of the folder."""
        if self._dial is not None:
            self._dial.close()

    def _open(self) -> None:
        self.model, self.tokenizer = load_model(self._folder), load_tokenizer(self._folder)
        self._apply_template_settings()
        dial = self._dial = Dial(self.model, self._folder)
        name, path = self._folder.resolve().name, str(self._folder)
        others = (path, str(self._folder.resolve()))
        self.sizes = SizeNames(name, others, dial.least, dial.largest)
        self.listed = self.sizes.listed(dial.curve(LISTED))
        self.priced_in = dial.priced_in
        self.first_keep = self._first_keep()
        self._turn(self.first_keep)
        self.shown = first_run(self.model)
        cache = server.make_prompt_cache(self.model)
        self.is_batchable = all(hasattr(c, "merge") for c in cache)

    def _first_keep(self) -> float:
        """Return the largest size that may be loaded."""
        if self.policy is None:
            return 1.0
        self.policy.check(self.sizes.nbytes(self.sizes.least_keep))
        return max(s.keep for s in self.listed if s.nbytes <= self.policy.room)

    def _apply_template_settings(self) -> None:
        settings = self.cli_args
        if settings.chat_template:
            self.tokenizer.chat_template = settings.chat_template
        if settings.use_default_chat_template and self.tokenizer.chat_template is None:
            self.tokenizer.chat_template = self.tokenizer.default_chat_template

    def _key(self, keep: float) -> tuple[str, float]:
        return str(self._folder), keep

    def _turn(self, keep: float) -> None:
        assert self._dial is not None
        started = time.perf_counter()
        if self.policy is not None:
            self._make_room(self.policy.room - self.sizes.nbytes(keep))
        self._dial.to(bytes=self.sizes.nbytes(keep))
        mx.clear_cache()  # what was turned away is the system's again
        self.model_key = self._key(keep)
        seconds = time.perf_counter() - started
        self._metrics.turns.labels(self.sizes.called(keep)).observe(seconds)

    def _make_room(self, left: int) -> None:
        """Let cached prompts take no more than is left, now and while this size is served."""
        most = left if self._most_cached is None else min(left, self._most_cached)
        self.cli_args.prompt_cache_bytes = most
        self._prompt_cache.trim_to(n_bytes=most)
