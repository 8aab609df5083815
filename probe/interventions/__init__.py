"""Is what a probe reads also used? Changes to the live model at its sites, and what becomes of task and grounding.

Erasing a concept, patching states from one example into another, cutting attention from phrases to their regions.
"""
