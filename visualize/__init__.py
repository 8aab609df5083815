"""From tables and arrays to figures, galleries and pages; ``explore`` shows a run in a notebook.

Nothing here computes a metric or holds a live model: it draws what the other packages have written.
"""

from visualize.exploring import explore

__all__ = ["explore"]
