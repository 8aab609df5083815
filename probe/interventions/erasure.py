"""Erasing a concept at a site of the live model: does task or grounding suffer, and is the concept really gone?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import Tensor

from grounding.errors import BadInput
from grounding.metrics.intervals import Estimate, Statistic, bootstrap
from grounding.models.base import Batch, Site
from probe.interventions.concepts import CONCEPTS, Rows, read_states, train_part
from probe.interventions.erasers import ERASERS, Eraser, random_subspace
from probe.interventions.groups import phrase_tokens, real_cells, require_stream
from probe.interventions.live import Edit, Live, edit_states
from probe.interventions.measure import effect_rows, mean_outcome, measure

if TYPE_CHECKING:
    from extract.reader import Run


@dataclass(frozen=True)
class Erasure:
    """How concepts are erased. eraser: a name of ERASERS. draws: random subspaces that the control is the mean of."""

    eraser: str = "leace"
    draws: int = 3
    seed: int = 0


def choose_concepts(site: Site, names: Sequence[str] | None) -> list[str]:
    """The concepts to erase at a site: those named, or all that it holds the tokens of. Raises BadInput for none."""
    if names is None:
        found = [name for name, question in CONCEPTS.items() if question.stream in site.streams]
        if not found:
            raise BadInput(
                f"site {site.name!r} holds {', '.join(site.streams)} tokens; erasure needs text or image tokens"
            )
        return found
    for name in names:
        require_stream(site, CONCEPTS[name].stream, f"erasing {name!r}")
    return list(names)


def erase(
    live: Live,
    sites: Sequence[tuple[Site, Sequence[str]]],
    batches: Sequence[Batch],
    run: Run,
    threshold: float | None,
    how: Erasure,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of effects (``measure.effect_rows``), and of what a linear probe reads before and after the erasure.

    sites: each with the concepts to erase there. Erasers are fitted on the train part of ``run``, and checked on the
    rest of it; batches are of other examples.
    """
    chosen = [(site, name) for site, names in sites for name in names]
    rows_of = {name: CONCEPTS[name].rows(run) for name in dict.fromkeys(name for _, name in chosen)}
    trained = train_part(run, how.seed)
    before = measure(live, batches, threshold)
    effects: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for done, (site, name) in enumerate(chosen, start=1):
        rows = rows_of[name]
        states, train = read_states(run, site, CONCEPTS[name], rows), trained[rows.example]
        eraser = ERASERS[how.eraser](states[train], rows.concept[train])
        controls = [random_subspace(states[train], eraser.rank, how.seed + draw) for draw in range(how.draws)]
        changed, *drawn = (
            measure(live, batches, threshold, _erasing(live, site, name, one)) for one in (eraser, *controls)
        )
        removed = {"removed": eraser.removed, "removed_control": float(np.mean([one.removed for one in controls]))}
        common = {"site": site.name, "stage": site.stage, "layer": site.layer, "target": name, "rank": eraser.rank}
        effects += effect_rows(common | removed, before, changed, mean_outcome(drawn), how.seed)
        images = run.examples["group_image"].astype(str).to_numpy()[rows.example]
        checks += [common | check for check in check_erasure(states, rows, train, images, eraser, how.seed)]
        if progress is not None:
            progress(done, len(chosen))
    return effects, checks


def erasing(live: Live, site: Site, concept: str, eraser: Eraser, batch: Batch) -> Edit:
    """Erase at a site: from the tokens of every phrase (``place``), or from every real patch (``membership``)."""
    layout = site.layout(batch)
    where, mask = (layout.text, phrase_tokens(batch)) if concept == "place" else (layout.image, real_cells(batch))

    def change(states: Tensor) -> Tensor:
        changed = states.clone()
        part = changed[:, :, where]  # [passes, B, tokens, D]
        chosen = mask.expand(part.shape[:3])
        part[chosen] = eraser(part[chosen])
        return changed

    return edit_states(live.model, site, change)


def _erasing(live: Live, site: Site, concept: str, eraser: Eraser) -> Callable[[Batch], list[Edit]]:
    return lambda batch: [erasing(live, site, concept, eraser, batch)]


def check_erasure(
    states: np.ndarray, rows: Rows, train: np.ndarray, images: np.ndarray, eraser: Eraser, seed: int = 0
) -> list[dict[str, Any]]:
    """What a linear probe trained on the train part reads off the rest, with and without the concept.

    Classes: accuracy of a logistic regression; chance is the share of the commonest class, which no constant guess
    exceeds. Numbers: R2 of ridge regression over all coordinates; chance 0. Intervals over images.
    """
    erased = _standard(eraser(torch.from_numpy(states)).numpy(), states[train])
    states = _standard(states, states[train])
    found = []
    for name, labels in rows.concept.classes.items():
        chance = float(np.unique(labels[~train], return_counts=True)[1].max() / (~train).sum())
        before, after = (_accuracy(x, labels, train, images, seed) for x in (states, erased))
        found.append(_check(name, "accuracy", chance, before, after))
    for name, numbers in rows.concept.numbers.items():
        before, after = (_explained(x, numbers, train, images, seed) for x in (states, erased))
        found.append(_check(name, "r2", 0.0, before, after))
    return found


def _check(name: str, score: str, chance: float, before: Estimate, after: Estimate) -> dict[str, Any]:
    return {
        "read": name,
        "score": score,
        "chance": chance,
        **{"before": before.value, "before_low": before.low, "before_high": before.high},
        **{"after": after.value, "after_low": after.low, "after_high": after.high},
        "n": after.n,
        "n_images": after.groups,
    }


def _standard(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Rows on the scale of the columns of ``like``, so that what rounding left of an erased one stays small."""
    scale = like.std(0)
    return (x - like.mean(0)) / np.maximum(scale, 1e-6 * scale.max() or 1.0)


def _accuracy(x: np.ndarray, labels: np.ndarray, train: np.ndarray, images: np.ndarray, seed: int) -> Estimate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=500).fit(x[train], labels[train])
    right = (probe.predict(x[~train]) == labels[~train]).astype(np.float64)
    return bootstrap({"": Statistic.mean(right, images[~train])}, seed=seed)[""]


def _explained(x: np.ndarray, numbers: np.ndarray, train: np.ndarray, images: np.ndarray, seed: int) -> Estimate:
    centre, scale = numbers[train].mean(0), numbers[train].std(0)
    truth = (numbers - centre) / np.where(scale > 0, scale, 1.0)
    probe = RidgeCV(alphas=np.logspace(-3, 3, 7)).fit(x[train], truth[train])
    truth, guessed = truth[~train], probe.predict(x[~train]).reshape(len(x[~train]), -1)
    columns = np.stack([((truth - guessed) ** 2).sum(1), (truth**2).sum(1)], axis=1)
    return bootstrap(
        {"": Statistic.of_sums(lambda sums: 1 - sums[:, 0] / sums[:, 1], columns, images[~train])}, seed=seed
    )[""]
