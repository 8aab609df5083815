"""What a probe's score leaves open: how much effort, data and capacity it took, and how many bits it is worth.

Each measure takes sites with labels (``LabelledSites``), an unfitted probe and strengths to try; it gives ``Measured``.
"""

from collections.abc import Callable

from probe.measures.description_length import description_length
from probe.measures.frontier import frontier
from probe.measures.learning_curve import learning_curve
from probe.measures.sites import LabelledSites, Measured
from probe.measures.usable_information import usable_information

MEASURES: dict[str, Callable[..., Measured]] = {
    "description-length": description_length,
    "usable-information": usable_information,
    "learning-curve": learning_curve,
    "frontier": frontier,
}

__all__ = [
    "MEASURES",
    "LabelledSites",
    "Measured",
    "description_length",
    "frontier",
    "learning_curve",
    "usable_information",
]
