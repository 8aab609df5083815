"""Which maps go into a report of limited size: those worth most first, as far as a sample says that they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from visualize.maps import PROBE
from visualize.report.maps import MODEL, Unit, read_maps, units_of, view_name
from visualize.report.pack import deflated

if TYPE_CHECKING:
    from visualize.report.subject import Subject

PER_THOUSAND = 30e6  # bytes for 1,000 examples, unless another budget is given
LEAST = 5e6  # bytes of the smallest default
MARGIN = 0.04  # of a budget, for what a sample does not tell
BASE64 = 4 / 3
CHUNK_BYTES = 400_000  # of maps that are loaded at once: a moment's work for a browser
MOST_EXAMPLES = 64  # a chunk


@dataclass(frozen=True)
class Held:
    """Units of one view of one run that go in. chunk: examples whose maps lie in one file."""

    view: str
    units: tuple[Unit, ...]
    chunk: int


@dataclass(frozen=True)
class Choice:
    """What goes in of one run, by view, and in words what was left out, and why."""

    held: tuple[Held, ...]
    left_out: tuple[str, ...]


def default_budget(examples: int) -> float:
    """Bytes that a report of so many examples may take."""
    return max(LEAST, PER_THOUSAND * examples / 1000)


def choose(
    subjects: Sequence[Subject],
    rows: Sequence[np.ndarray],
    examples: int,
    budget: float,
    fixed: float,
    views: Sequence[str] | None = None,
) -> list[Choice]:
    """Which maps of each run go in.

    rows: of each run, example rows of a sample. examples: how many the report has. budget: bytes in all. fixed: bytes
    that images, records and pages take. views: those that may go in beside the model's own, None for all. First come
    the model's own maps, then means over heads and maps of probes, maps without heads, and single heads: those that
    ``probe heads`` scored best first, without it the last layers first.
    """
    sizes = [_sizes(subject, sample, examples, views) for subject, sample in zip(subjects, rows, strict=True)]
    ranked = sorted(
        (
            (rank, number, unit)
            for number, subject in enumerate(subjects)
            for unit, rank in _ranks(subject, list(sizes[number])).items()
        ),
        key=lambda entry: entry[:2],
    )
    room = budget * (1 - MARGIN) - fixed
    kept: list[set[Unit]] = [set() for _ in subjects]
    full: set[tuple[int, str]] = set()  # views of which one unit had no room: none that is worth less comes instead
    for _, number, unit in ranked:
        if sizes[number][unit] > room:
            full.add((number, unit.view))
        elif (number, unit.view) not in full:
            room -= sizes[number][unit]
            kept[number].add(unit)
    needed = (fixed + sum(sum(each.values()) for each in sizes)) / (1 - MARGIN)
    return [_chosen(size, keep, examples, budget, needed) for size, keep in zip(sizes, kept, strict=True)]


def _sizes(subject: Subject, sample: np.ndarray, examples: int, views: Sequence[str] | None) -> dict[Unit, float]:
    """Bytes that each unit would take for all examples, by those of the sample."""
    phrase_rows = np.concatenate([*subject.phrase_rows(sample), np.empty(0, np.int64)]).astype(np.int64)
    units = units_of(subject, views)
    found: dict[Unit, float] = {}
    for view in dict.fromkeys(unit.view for unit in units):
        own = [unit for unit in units if unit.view == view]
        maps = read_maps(subject, view, phrase_rows, own)
        for unit, cells in zip(own, maps.cells, strict=True):
            taken = len(deflated(cells)) + 8 * maps.peaks.shape[1]
            found[unit] = BASE64 * taken * examples / max(len(sample), 1)
    return found


def _ranks(subject: Subject, units: Sequence[Unit]) -> dict[Unit, tuple[float, ...]]:
    """How early each unit's turn comes: lower is earlier."""
    layers = {site.name: number for number, site in enumerate(subject.run.sites)} | {MODEL: 0}
    scores = _scores(subject)
    headed = {(unit.view, unit.site) for unit in units if unit.head is not None}

    def rank(unit: Unit) -> tuple[float, ...]:
        if unit.head is not None:
            tier = 3 if unit.view == "attention" else 4
        elif unit.view == MODEL:
            tier = 0
        else:
            tier = 1 if unit.view == PROBE or (unit.view, unit.site) in headed else 2
        score = scores.get((unit.view, unit.site, unit.head), -1.0)
        return (tier, -score, -layers[unit.site], -1 if unit.head is None else unit.head)

    return {unit: rank(unit) for unit in units}


def _scores(subject: Subject) -> Mapping[tuple[str, str, int | None], float]:
    """Pointing on the canvas of each head that ``probe heads`` scored."""
    if subject.heads is None:
        return {}
    views = {"raw": "attention", "gradient-attention": "relevance.gradient-attention"}
    table = subject.heads
    table = table[(table["scope"] == "canvas") & (table["measure"] == "pointing") & table["kind"].isin(list(views))]
    return {
        (views[kind], site, int(head)): float(value)
        for kind, site, head, value in zip(table["kind"], table["site"], table["head"], table["value"], strict=True)
        if str(head).isdigit()
    }


def _chosen(sizes: Mapping[Unit, float], kept: set[Unit], examples: int, budget: float, needed: float) -> Choice:
    held, left_out = [], []
    for view in dict.fromkeys(unit.view for unit in sizes):
        own = [unit for unit in sizes if unit.view == view]
        units = tuple(unit for unit in own if unit in kept)
        missing = [unit for unit in own if unit not in kept]
        if units:
            each = sum(sizes[unit] for unit in units) / max(examples, 1)
            held.append(Held(view, units, int(np.clip(CHUNK_BYTES // max(each, 1), 1, MOST_EXAMPLES))))
        if missing:
            told = "all of it" if not units else _told(missing, any(unit.head is not None for unit in own))
            left_out.append(f"{view_name(view)}: {told}")
    if left_out:
        why = f"for the budget of {budget / 1e6:.0f} MB; with --budget-mb {needed / 1e6 + 1:.0f} everything goes in"
        left_out = [f"{line} ({why})" for line in left_out]
    return Choice(tuple(held), tuple(left_out))


def _told(missing: Sequence[Unit], headed: bool) -> str:
    """Sites in words, and heads where the view has any."""
    if not headed:
        return ", ".join(unit.site for unit in missing)
    by_site: dict[str, list[str]] = {}
    for unit in missing:
        by_site.setdefault(unit.site, []).append("mean" if unit.head is None else str(unit.head))
    alike: dict[str, list[str]] = {}
    for site, heads in by_site.items():
        alike.setdefault(", ".join(heads), []).append(site)
    return "; ".join(f"head {heads} of {', '.join(sites)}" for heads, sites in alike.items())
