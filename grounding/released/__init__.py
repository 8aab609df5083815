"""Checkpoints that others made: the study's, MDETR's, ViLT's and Hugging Face's, read strictly and never executed.

``formats`` finds the weights in a file or folder, ``names`` gives them our names, ``sizes`` reads a configuration
off their shapes, ``strict`` puts them into a model and reports what became of every one.
"""

from __future__ import annotations

from grounding.released.formats import ACCEPTED, Stored, open_released
from grounding.released.strict import LoadReport, load_strictly

__all__ = ["ACCEPTED", "LoadReport", "Stored", "load_strictly", "open_released"]
