"""Sites with planted signals and labels in parts, for tests of measures."""

from __future__ import annotations

import numpy as np
from fake_run import FakeRun

from probe.features import PairFeatures
from probe.measures import LabelledSites
from probe.pairs import alignment_pairs
from probe.splits import split_examples


def labelled(run: FakeRun, label: np.ndarray | None = None) -> LabelledSites:
    """The alignment question at every site of a run, split by image; label: other labels for its pairs."""
    pairs = alignment_pairs(run)
    features = [
        PairFeatures(
            *(run.read(site.name, view) for view in ("phrase", "region")), pairs.phrase, pairs.region, pairs.example
        )
        for site in run.sites
    ]
    image = run.examples["group_image"].to_numpy()[pairs.example]
    part = split_examples(run.examples)[pairs.example]
    names = [site.name for site in run.sites]
    return LabelledSites(names, features, pairs.label if label is None else label, pairs.phrase, image, part)
