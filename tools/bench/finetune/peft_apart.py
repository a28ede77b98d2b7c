"""Train an adapter by PEFT, in an environment where this project is not installed.

    python peft_apart.py FOLDER    ``task.json`` and ``windows.npz`` of `finetune.peft_peers`

Prints the figures of the run as the last line, JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peft import AdaLoraConfig, HiraConfig, MissConfig, get_peft_model
from transformers import AutoModelForCausalLM

PROJECTIONS = r".*\.layers\..*_proj"
WARM, SETTLE, EVERY = 0.1, 0.4, 5  # of AdaLoRA: shares of the steps, steps between two cuts


def peft_config(task: dict[str, Any], steps: int, rank: int) -> Any:
    """Return the peft_config of a method; what is not named is PEFT's default."""
    if task["method"] == "miss":
        return MissConfig(r=rank, target_modules=PROJECTIONS)
    if task["method"] == "hira":
        return HiraConfig(r=rank, target_modules=PROJECTIONS)
    begun = 3 * rank // 2
    return AdaLoraConfig(
        init_r=begun,
        target_r=rank,
        lora_alpha=task["scale"] * begun,
        tinit=round(WARM * steps),
        tfinal=round(SETTLE * steps),
        deltaT=EVERY,
        total_step=steps,
        target_modules=PROJECTIONS,
    )


def base(task: dict[str, Any]) -> Any:
    """Return the model in float32."""
    return AutoModelForCausalLM.from_pretrained(task["source"], dtype=torch.float32)


def weighed(model: Any) -> int:
    """Return the bytes of the file of an adapter."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return (Path(folder) / "adapter_model.safetensors").stat().st_size


def rank_within(task: dict[str, Any], steps: int) -> int:
    """Return the even rank of MiSS that fills the ceiling; that of LoRA for the others."""
    if task["method"] != "miss":
        return int(task["rank"])
    two, four = (weighed(get_peft_model(base(task), peft_config(task, steps, r))) for r in (2, 4))
    return int(2 + 2 * ((task["ceiling"] - two) // (four - two)))


def split(batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and labels; a complement is read and not learnt."""
    rows = torch.tensor(batch, dtype=torch.long)
    return torch.where(rows < 0, ~rows, rows), torch.where(rows < 0, -100, rows)


def learnt_loss(model: Any, windows: np.ndarray) -> float:
    """Return the mean cross entropy over the tokens that are to be learnt, in nats."""
    total, count = 0.0, 0
    for i in range(0, len(windows), 8):
        tokens, labels = split(windows[i : i + 8])
        with torch.inference_mode():
            logits = model(input_ids=tokens).logits[:, :-1].flatten(0, 1)
        wanted = labels[:, 1:].flatten()
        total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        count += int((wanted >= 0).sum())
    return total / count


def main() -> None:
    """Train, measure, print."""
    place = Path(sys.argv[1])
    task = json.loads((place / "task.json").read_text(encoding="utf-8"))
    windows = np.load(place / "windows.npz")
    torch.set_num_threads(1)
    steps = len(windows["train"])
    rank = rank_within(task, steps)
    torch.manual_seed(task["seed"])
    model = get_peft_model(base(task), peft_config(task, steps, rank))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    seconds = []
    model.train()
    for step, (batch, rate) in enumerate(zip(windows["train"], task["rates"], strict=True)):
        start = time.perf_counter()
        tokens, labels = split(batch)
        optimizer.param_groups[0]["lr"] = rate
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        if task["method"] == "adalora":
            model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    model.eval()
    old = [learnt_loss(model, windows[f"old{i}"]) for i in range(len(windows) - 2)]
    figures = {
        "nbytes": weighed(model),
        "loss": learnt_loss(model, windows["valid"]),
        "old": old,
        "own_rank": rank,
        "step": median(seconds),
        "seconds": sum(seconds),
        "versions": {name: version(name) for name in ("peft", "torch", "transformers")},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
