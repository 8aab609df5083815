"""Usable information: how many bits a probe gains of the labels by being given its input.

Xu et al. 2020 (arXiv 2002.10689), definitions 2 and 3: with predictive family V, I_V(X -> Y) = H_V(Y) - H_V(Y | X),
where H_V is the lowest expected log loss that the family reaches without or with the input. Ethayarajh et al. 2022
(arXiv 2110.08420): pointwise, PVI(x -> y) = -log2 g_0(y) + log2 g(y | x). Both are estimated on the test part by
probes fitted on train.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from grounding.metrics.intervals import bootstrap_mean
from probe.estimators import MajorityProbe, PairProbe
from probe.measures.sites import LabelledSites, Measured
from probe.scores import RESAMPLES


def usable_information(
    data: LabelledSites,
    prototype: PairProbe,
    strengths: Sequence[float],
    without: PairProbe | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Measured:
    """Bits that each site's probe gains about which candidates belong to a phrase, on average and for each phrase.

    The bits of a phrase are the sum over its candidates. without: the probe that is not given the input, default
    ``MajorityProbe``; any other, say ``RegionOnlyProbe``, makes it the information beyond what that probe reads
    (conditional usable information: Hewitt et al. 2021, arXiv 2109.09234).

    Table, a row a site: ``value`` (bits a phrase) with its 95 % interval ``low`` to ``high`` over test images,
    ``entropy_without`` and ``entropy_given`` (bits a phrase), ``validation_loss`` (nats a pair), ``n_phrases``,
    ``n_pairs``, ``n_images``. Details, a row a (site, phrase): ``bits``, negative where the input misleads the probe.
    A negative value says that the probe does worse on test than without its input: it found nothing that lasts.
    """
    asked = data.part == "test"
    phrases, first, phrase = np.unique(data.phrase[asked], return_index=True, return_inverse=True)
    image = data.image[asked][first]
    blind = data.fit(MajorityProbe() if without is None else without, strengths)
    given = data.fit(prototype, strengths)
    sites, points = [], []
    for number, name in enumerate(data.names):
        before, after = (
            np.bincount(phrase, data.bits(number, chosen[number].probe, asked)) for chosen in (blind, given)
        )
        found = bootstrap_mean(before - after, image, resamples=resamples, seed=seed)
        sites.append(
            {
                **{"site": name, "value": found.value, "low": found.low, "high": found.high},
                **{"entropy_without": before.mean(), "entropy_given": after.mean()},
                **{"validation_loss": given[number].validation_loss},
                **{"n_phrases": len(phrases), "n_pairs": int(asked.sum()), "n_images": found.groups},
            }
        )
        points.append(pd.DataFrame({"site": name, "phrase": phrases, "image": image, "bits": before - after}))
    return Measured(pd.DataFrame(sites), pd.concat(points, ignore_index=True))
