"""Maps of phrases over images, as bytes: the model's heatmaps, attention, relevance, and those of probes.

A map is a grid over the stacked candidates. It is stored as bytes in parts of its own largest value, which stands
beside it; values below zero, which attributions have, count as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from extract.reader import MAPS
from visualize.maps import PROBE
from visualize.report.pack import packed

if TYPE_CHECKING:
    from extract.reader import Run
    from visualize.report.subject import Subject

MODEL = "model"  # stands in for view and site where the map is the model's own heatmap
STEPS = 255
NAMES = {
    MODEL: "the model's own heatmap",
    "attention": "attention",
    "attention.back": "attention back from image cells",
    PROBE: "the linear probe’s probability",
    "relevance.rollout": "attention rollout",
    "relevance.gradient": "relevance by gradients",
    "relevance.gradient-attention": "attention × gradient",
    "relevance.integrated-gradients": "integrated gradients",
    "relevance.grad-cam": "Grad-CAM",
    "relevance.occlusion": "occlusion",
}


@dataclass(frozen=True)
class Unit:
    """One map a phrase: of a view at a site; head None is the mean over heads, or the only map."""

    view: str
    site: str
    head: int | None = None


@dataclass(frozen=True)
class Maps:
    """Maps of P phrases for U units.

    cells: uint8 ``[U, cells of all phrases]``. peaks: float32 ``[U, P]``, the value that 255 stands for. means: float32
    ``[U, P]``, before rounding to bytes, which makes nothing of small values. grids: rows and columns of each phrase's
    maps, int64 ``[P, 2]``.
    """

    cells: np.ndarray
    peaks: np.ndarray
    means: np.ndarray
    grids: np.ndarray

    def record(self) -> dict[str, Any]:
        """The maps as a chunk holds them."""
        arrays = {"peaks": self.peaks, "means": self.means, "cells": self.cells}
        return {"grids": self.grids.tolist()} | {name: packed(array) for name, array in arrays.items()}


def view_name(view: str) -> str:
    """A view in words.

    >>> view_name("relevance.grad-cam-task")
    "Grad-CAM (of the task's score)"
    """
    name = view.removesuffix("-task")
    return NAMES.get(name, name.replace("-", " ")) + (" (of the task's score)" if name != view else "")


def units_of(subject: Subject, views: Sequence[str] | None = None) -> list[Unit]:
    """Every unit that there are maps for: the model's own, then views, their sites in order, mean and heads; probes.

    views: those wanted beside the model's own; None for all.
    """
    run, units = subject.run, []
    if (run.phrases["heatmap_rows"] > 0).any():
        units.append(Unit(MODEL, MODEL))
    for view in MAPS:
        for site in run.sites:
            if view in site.views:
                heads = range(_channels(run, site.name, view))
                units += [Unit(view, site.name), *(Unit(view, site.name, head) for head in heads if len(heads) > 1)]
    if subject.probed is not None:
        units += [Unit(PROBE, site) for site in subject.probed.sites]
    return [unit for unit in units if views is None or unit.view in (MODEL, *views)]


def _channels(run: Run, site: str, view: str) -> int:
    """How many maps a phrase has of that view at that site."""
    return run.read(site, view, rows=[0]).shape[1] if run.count(site, view) else 1


def read_maps(subject: Subject, view: str, phrase_rows: np.ndarray, units: Sequence[Unit]) -> Maps:
    """Maps of some phrases for units of one view."""
    if view == MODEL:
        return _own_maps(subject, phrase_rows)
    table = subject.columns
    example = table["phrases"]["example"][phrase_rows]
    grids = np.stack([table["examples"]["grid_rows"][example], table["examples"]["grid_columns"][example]], 1)
    if view == PROBE and subject.probed is not None:
        return quantised(np.stack([subject.probed.read(unit.site, phrase_rows) for unit in units]), grids)
    run, offsets = subject.run, subject.run.cell_offsets
    ranges = [np.arange(offsets[row], offsets[row + 1]) for row in phrase_rows]
    rows = np.concatenate([*ranges, np.empty(0, dtype=np.int64)]).astype(np.int64)
    values: dict[str, np.ndarray] = {}  # site -> [cells, channels]
    layers = []
    for unit in units:
        if unit.site not in values:
            values = {unit.site: run.read(unit.site, view, rows)}  # one site at a time: memory stays small
        found = values[unit.site]
        layers.append(found.mean(axis=1) if unit.head is None else found[:, unit.head])
    return quantised(np.stack(layers), grids)


def quantised(values: np.ndarray, grids: np.ndarray) -> Maps:
    """Maps from values ``[U, cells of all phrases]``; grids ``[P, 2]`` say where phrases begin."""
    values = np.maximum(np.nan_to_num(values.astype(np.float32)), 0)
    lengths = grids.prod(axis=1)
    if not len(grids):
        none = np.zeros((len(values), 0), np.float32)
        return Maps(values.astype(np.uint8), none, none, grids)
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    peaks = np.maximum.reduceat(values, begins, axis=1)
    scale = np.where(peaks > 0, STEPS / np.where(peaks > 0, peaks, 1), 0)
    cells = np.rint(values * np.repeat(scale, lengths, axis=1)).astype(np.uint8)
    means = np.add.reduceat(values, begins, axis=1, dtype=np.float64) / lengths
    return Maps(cells, peaks.astype(np.float32), means.astype(np.float32), grids)


def _own_maps(subject: Subject, phrase_rows: np.ndarray) -> Maps:
    """The model's heatmaps ``[N, h, w]`` as grids of N · h rows; a phrase without one has none."""
    found = [subject.run.heatmap(int(row)) for row in phrase_rows]
    maps = [np.zeros((0, 0, 0), np.float32) if heatmap is None else heatmap for heatmap in found]
    grids = np.array([(m.shape[0] * m.shape[1], m.shape[2]) for m in maps], dtype=np.int64).reshape(-1, 2)
    kept = grids.prod(axis=1) > 0
    values = np.concatenate([*(m.ravel() for m in maps), np.empty(0, np.float32)])[None]
    whole = quantised(values, grids[kept])
    peaks, means = np.zeros((2, 1, len(grids)), np.float32)
    peaks[:, kept], means[:, kept] = whole.peaks, whole.means
    return Maps(whole.cells, peaks, means, grids)
