"""Tiny random checkpoints of every model type of the installed mlx-lm, through every command.

``dense``, ``experts``, ``latent``, ``recurrent`` and ``vision`` hold the configurations, and what
turns a checkpoint of mlx-lm into the form in which Hugging Face publishes it, in steps of
``forms``; ``sources`` adds packed forms; ``building`` writes folders, ``chain`` runs the commands
on one of them, ``table`` prints what came of all.
"""
