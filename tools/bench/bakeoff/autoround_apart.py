"""AutoRound of a folder, in the environment of `autoround`, where this project is not installed.

    python autoround_apart.py TASK OUT    a JSON object of `autoround.tuned`; a folder to write

Prints the versions of what it computed with as the last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

NAME = "windows"  # of the data set of token windows


class NoTokenizer:
    """Stands where one is asked for: the windows are tokens, the files are copied elsewhere."""

    bos_token_id = eos_token_id = pad_token_id = None

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing."""


def main() -> None:
    """Tune the roundings and write what mlx-lm loads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    task = json.loads(options.task.read_text(encoding="utf-8"))
    os.environ["AR_DISABLE_DATASET_SUBPROCESS"] = "1"  # where the data set is registered
    os.environ["AR_ALLOW_W8_ASYM"] = "1"  # mlx-lm runs it

    from auto_round import AutoRound, AutoScheme
    from auto_round.calib_dataset import CALIB_DATASETS
    from auto_round.schemes import QuantizationScheme
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    windows = task["windows"]
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows]
    CALIB_DATASETS[NAME] = lambda *args, **kwargs: Dataset.from_list(rows)
    model = AutoModelForCausalLM.from_pretrained(task["source"], dtype="auto")
    schemes = [
        QuantizationScheme(bits=bits, group_size=task["group_size"], sym=False, data_type="int")
        for bits in task["bits"]
    ]
    mixed = AutoScheme(task["average"], schemes, ignore_scale_zp_bits=True, dataset=NAME)
    rounding = AutoRound(
        model,
        NoTokenizer(),
        scheme=schemes[0] if len(schemes) == 1 else mixed,
        layer_config={name: {"bits": 16} for name in task["left"]},
        quant_lm_head=task["head"],
        iters=task["steps"],
        dataset=NAME,
        nsamples=len(windows),
        seqlen=len(windows[0]),
        seed=task["seed"],
        device_map="cpu",
    )
    rounding.quantize_and_save(str(options.out), format="mlx")
    print(json.dumps({name: version(name) for name in ("auto-round", "torch", "transformers")}))


if __name__ == "__main__":
    main()
