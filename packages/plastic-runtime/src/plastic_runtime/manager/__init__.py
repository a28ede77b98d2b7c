"""The decisions when and where a rank changes: ``PlasticityManager`` and its policy.

Stands on ``surgery``, ``sleep``, ``measure`` and ``log``.
"""
