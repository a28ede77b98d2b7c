"""The presentation of results: tables, plots, a page per run. It decides nothing.

Stands on the rooms whose results it shows; ``cli`` alone uses it.
"""

from plastic_export.reporting.plots.plan_plot import plan_frontier

__all__ = ["plan_frontier"]
