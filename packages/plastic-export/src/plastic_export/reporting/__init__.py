"""What results look like: tables, plots, a page per run. Decides nothing.

Stands on the rooms whose results it shows; ``cli`` alone uses it.
"""

from plastic_export.reporting.plan_plot import plan_frontier

__all__ = ["plan_frontier"]
