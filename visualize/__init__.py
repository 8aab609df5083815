"""From tables and arrays to figures, galleries and pages.

Nothing here computes a metric or holds a live model: it draws what the other packages have written.
"""
