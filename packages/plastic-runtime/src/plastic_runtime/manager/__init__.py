"""When and where a rank changes: ``PlasticityManager`` and the policy behind it.

Stands on ``surgery``, ``sleep``, ``measure`` and ``log``.
"""
