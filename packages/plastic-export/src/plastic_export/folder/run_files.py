"""The names of what the folder of a training run holds beside its adapters."""

EVENTS = "events.jsonl"
LOSSES = "losses.jsonl"
GENERATIONS = "generations"
BEST = "best"
