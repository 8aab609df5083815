"""Activation patching between an example and its minimal change, site by site and group of tokens by group.

The corrupted example runs with the clean one's states at some tokens of a site. Heimersheim and Nanda (2024,
arXiv 2404.15255): that is denoising, and the effect is the normalised logit difference, 0 where the answer is that of
the corrupted example, 1 where it is that of the clean one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grounding.benchmarks.minimal_pairs import MinimalPair
from grounding.errors import BadInput
from grounding.metrics.intervals import Statistic, bootstrap
from grounding.models.base import Batch, GroundingModel, Site
from probe.interventions.groups import GROUPS, cells_of, phrase_tokens, token_groups
from probe.interventions.live import Edit, Live, edit_states, states_of
from probe.interventions.measure import effect_row

EVERYTHING = "everything"
TARGETS = (*GROUPS, EVERYTHING)


@dataclass(frozen=True)
class PairBatch:
    """Pairs whose captions have equally many tokens, so that every state of one has its place in the other."""

    pairs: tuple[MinimalPair, ...]
    clean: Batch
    corrupted: Batch


def pair_batches(model: GroundingModel, pairs: Sequence[MinimalPair], size: int) -> list[PairBatch]:
    """Batches of at most ``size`` pairs on the model's device; a pair whose tokens do not match is left out."""
    found = []
    for begin in range(0, len(pairs), size):
        chosen = tuple(pairs[begin : begin + size])
        batches = _prepared(model, chosen)
        kept = tuple(pair for row, pair in enumerate(chosen) if _match(*batches, row))
        if kept:
            found.append(PairBatch(kept, *(batches if kept == chosen else _prepared(model, kept))))
    if not found:
        raise BadInput(f"none of {len(pairs)} pairs has as many tokens in both captions; take more games")
    return found


def _prepared(model: GroundingModel, pairs: Sequence[MinimalPair]) -> tuple[Batch, Batch]:
    clean, corrupted = ([getattr(pair, name) for pair in pairs] for name in ("clean", "corrupted"))
    return model.prepare(clean).to(model.device), model.prepare(corrupted).to(model.device)


def _match(clean: Batch, corrupted: Batch, row: int) -> bool:
    """Whether an example and its change have the same tokens of the same phrases."""

    def tokens(batch: Batch) -> list[Any]:
        phrases = batch.phrase_tokens[batch.phrase_example == row]
        return [mask.nonzero().tolist() for mask in (batch.text_mask[row], *phrases)]

    return tokens(clean) == tokens(corrupted)


def patch(
    live: Live,
    sites: Sequence[Site],
    batches: Sequence[PairBatch],
    targets: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of effects, a kind of pair, a site and a group of tokens each; and how many pairs of each kind count.

    Pairs count whose logit difference is higher in the clean example than in the corrupted one. The effect is the mean
    change of the patched logit difference over the mean change of the clean one.
    """
    kinds = np.array([pair.kind for batch in batches for pair in batch.pairs])
    images = np.array([pair.clean.groups["image"] for batch in batches for pair in batch.pairs])
    clean, corrupted, patched = _differences(live, sites, batches, targets, progress)
    rows, counts = [], {}
    for kind in dict.fromkeys(kinds):
        moved = (kinds == kind) & (clean > corrupted)
        counts[str(kind)] = int(moved.sum())
        if not moved.any():
            continue
        for (site, target), found in patched.items():
            columns = np.stack([found - corrupted, clean - corrupted], axis=1)[moved]
            ratio = Statistic.of_sums(lambda sums: sums[:, 0] / sums[:, 1], columns, images[moved])
            common = {"site": site.name, "stage": site.stage, "layer": site.layer, "target": target, "pairs": kind}
            figures = corrupted[moved].mean(), found[moved].mean(), bootstrap({"": ratio}, seed=seed)[""]
            rows.append(common | effect_row("intervention", "logit_difference", *figures))
    if not rows:
        raise BadInput("no pair has a higher logit difference clean than corrupted: the model does not see the changes")
    return rows, counts


def _differences(
    live: Live,
    sites: Sequence[Site],
    batches: Sequence[PairBatch],
    targets: Sequence[str] | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray, dict[tuple[Site, str], np.ndarray]]:
    """Logit differences of all pairs, float64 ``[pairs]``: clean, corrupted, and patched by site and target."""
    clean, corrupted = [], []
    patched: dict[tuple[Site, str], list[np.ndarray]] = {}
    for done, batch in enumerate(batches):
        states: dict[str, Tensor] = {}
        output = live.run(batch.clean, [keep_states(live.model, site, states) for site in sites])
        clean.append(logit_differences(live.model, batch.clean, output, batch.pairs))
        corrupted.append(logit_differences(live.model, batch.corrupted, live.run(batch.corrupted), batch.pairs))
        for k, site in enumerate(sites):
            groups = pair_groups(site, batch, states[site.name].shape[2])
            for target in groups if targets is None else [name for name in targets if name in groups]:
                edit = patching(live.model, site, states[site.name], groups[target])
                found = logit_differences(live.model, batch.corrupted, live.run(batch.corrupted, [edit]), batch.pairs)
                patched.setdefault((site, target), []).append(found)
            if progress is not None:
                progress(done * len(sites) + k + 1, len(batches) * len(sites))
    joined = {key: np.concatenate(parts) for key, parts in patched.items()}
    return np.concatenate(clean), np.concatenate(corrupted), joined


def logit_differences(model: GroundingModel, batch: Batch, output: Any, pairs: Sequence[MinimalPair]) -> np.ndarray:
    """Score of each pair's target minus that of the other candidate, or minus the mean of all others: ``[pairs]``."""
    scores = model.candidate_scores(batch, output).double().cpu().numpy()
    found = []
    for row, pair in enumerate(pairs):
        own = scores[row, : len(pair.clean.images)]
        others = np.delete(own, pair.target_index) if pair.other_index is None else own[pair.other_index]
        found.append(own[pair.target_index] - np.mean(others))
    return np.array(found)


def pair_groups(site: Site, batch: PairBatch, tokens: int) -> dict[str, Tensor]:
    """The groups of tokens of a site for a batch of pairs (``groups.token_groups``), and all of them together."""
    named = [name for pair in batch.pairs for name in pair.phrase_ids]
    region = torch.stack([cells_of(batch.clean, row, pair.places) for row, pair in enumerate(batch.pairs)])
    groups = token_groups(site, batch.clean, tokens, phrase_tokens(batch.clean, named), region)
    whole = torch.ones(len(batch.pairs), tokens, dtype=torch.bool, device=region.device)
    return groups | {EVERYTHING: whole}


def patching(model: GroundingModel, site: Site, donor: Tensor, mask: Tensor) -> Edit:
    """At the tokens ``mask [B, N]`` of a site, states of ``donor [passes, B, N, D]`` take the place of the model's."""
    return edit_states(model, site, lambda states: torch.where(mask[None, :, :, None], donor, states))


def keep_states(model: GroundingModel, site: Site, states: dict[str, Tensor]) -> Edit:
    """Changes nothing; puts the site's states ``[passes, B, N, D]`` into ``states`` under its name."""

    def keep(output: Any) -> Any:
        states[site.name] = states_of(model, site, output)
        return output

    return Edit(site.module_path, keep)
