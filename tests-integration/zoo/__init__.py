"""Tiny random checkpoints of every model type of the installed mlx-lm, through every command.

``dense``, ``experts``, ``recurrent`` and ``vision`` hold the configurations and the functions that
turn a checkpoint of mlx-lm into the form in which Hugging Face publishes it; ``building`` writes
folders, ``chain`` runs the commands on one of them, ``table`` prints what came of all.
"""
