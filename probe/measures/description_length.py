"""Description length by online coding: how many bits the labels cost a probe that learns while they arrive.

Online coding of Voita and Titov 2020 (arXiv 2003.12298, section 2.2). The labels of a growing portion of the train part
are known; a probe fitted on them encodes the labels of the next portion:

    L = t_1 log2 K - sum_i log2 p_i(y of portion i + 1 | x),    compression = n log2 K / L.

A probe that needs few examples has a short code; one that memorises pays for every label first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from grounding.errors import BadInput
from grounding.metrics.intervals import Statistic, bootstrap
from probe.estimators import PairProbe
from probe.measures.sites import LabelledSites, Measured, nested_portions
from probe.scores import RESAMPLES

# Percent of the train part at which Voita and Titov fit a probe anew, as shares.
FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


def description_length(
    data: LabelledSites,
    prototype: PairProbe,
    strengths: Sequence[float],
    fractions: Sequence[float] = FRACTIONS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measured:
    """The online code of the train part's labels at each site, and how it grew.

    Table, a row a site: ``bits`` of the whole code, ``bits_per_label``, ``uniform_bits`` (one bit a label, K = 2),
    ``value`` (compression) with its 95 % interval ``low`` to ``high`` over the images sent, given how the probes were
    fitted. Details, a row a (site, portion): ``images`` and ``labels`` sent so far and their ``bits``. Images are
    never split between portions. Strengths are chosen on the validation part, which sender and receiver both have.
    Raises BadInput where there are not two portions, and for a first one of one class.
    """
    train = data.part == "train"
    portions = nested_portions(data.image, train, fractions, seed)
    if len(portions) < 2:
        raise BadInput(
            f"fractions {list(fractions)} of {len(np.unique(data.image[train]))} train images give {len(portions)} "
            "portion; description length needs two or more"
        )
    bits = np.where(portions[0], 1.0, np.nan)[None].repeat(len(data.names), 0)  # [sites, n]
    for known, grown in pairwise(portions):
        sent = grown & ~known
        for site, chosen in enumerate(data.fit(prototype, strengths, known)):
            bits[site, sent] = data.bits(site, chosen.probe, sent)
    sites, steps = [], []
    coded = portions[-1]
    for name, code in zip(data.names, bits, strict=True):
        compression = Statistic.of_sums(
            lambda sums: sums[:, 0] / sums[:, 1], np.stack([np.ones(coded.sum()), code[coded]], 1), data.image[coded]
        )
        found = bootstrap({"": compression}, resamples, seed)[""]
        total, labels = float(code[coded].sum()), int(coded.sum())
        sites.append(
            {
                **{"site": name, "value": found.value, "low": found.low, "high": found.high},
                **{"bits": total, "bits_per_label": total / labels, "uniform_bits": float(labels)},
                **{"n_labels": labels, "n_images": found.groups},
            }
        )
        for sent in portions:
            sizes = {"images": len(np.unique(data.image[sent])), "labels": int(sent.sum())}
            steps.append({"site": name, **sizes, "bits": float(code[sent].sum())})
    return Measured(pd.DataFrame(sites), pd.DataFrame(steps))
