"""The names of what the folder of a training run holds beside its adapters."""

EVENTS = "events.jsonl"
LOSSES = "losses.jsonl"
DIAL = "dial.json"
GENERATIONS = "generations"
BEST = "best"
