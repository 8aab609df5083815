"""All relevance views of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from extract.plan import Plan
from extract.relevance.attributions import attributions
from extract.relevance.gradients import Key, gradient_relevance
from extract.relevance.kinds import AT_ONE_SITE, is_relevance, method_of
from grounding.models.base import Batch, GroundingModel


def relevance(
    model: GroundingModel, batch: Batch, plan: Plan, site_views: Mapping[str, Sequence[str]]
) -> tuple[dict[Key, Tensor], dict[Key, Tensor]]:
    """Relevance of image cells by (site, view), fp32 ``[B, K, cells, C]``, and what stands beside a view, ``[P, 2]``.

    batch and plan: on the model's device. site_views: site -> views, of which those that are no relevance are left out.
    Nothing where the batch has no phrases. Raises BadInput as ``gradient_relevance`` does.
    """
    if not batch.phrase_ids:
        return {}, {}
    wanted = {site: [view for view in views if is_relevance(view)] for site, views in site_views.items()}
    passed = {site: [v for v in views if method_of(v) not in AT_ONE_SITE] for site, views in wanted.items()}
    values = gradient_relevance(model, batch, plan, passed) if any(passed.values()) else {}
    more, changes = attributions(model, batch, plan, wanted)
    return values | more, changes
