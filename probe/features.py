"""What a probe reads: phrase rows, region rows, and which pairs of them to judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from grounding.errors import BadInput
from probe.stored import StoredRows

_CHUNK = 65_536  # rows or pairs at hand at once

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo


@dataclass(frozen=True)
class PairFeatures:
    """Features of n pairs without writing out their concatenation.

    phrase: float32 ``[P, Dp]``. region: float32 ``[R, Dr]``; both arrays, or both StoredRows. phrase_row, region_row:
    int64 ``[n]``, the rows that pair i joins. block: int64 ``[n]``, pairs with equal values share phrases and regions
    (an example); by default each phrase is a block of its own. Blocks change the speed of fitting, never its result.
    """

    phrase: np.ndarray | StoredRows
    region: np.ndarray | StoredRows
    phrase_row: np.ndarray
    region_row: np.ndarray
    block: np.ndarray | None = None

    @classmethod
    def from_array(cls, array: np.ndarray) -> PairFeatures:
        """Pairs written out as rows ``[n, D]``: the first D // 2 columns are the phrase's, the others the region's."""
        count, width = array.shape
        if width < 2:
            raise BadInput(f"X has {width} feature(s); accepted: 2 or more (phrase, then region), or PairFeatures")
        rows = np.arange(count)
        return cls(array[:, : width // 2], array[:, width // 2 :], rows, rows)

    def __len__(self) -> int:
        return len(self.phrase_row)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, Dp + Dr)``, as if the pairs were written out."""
        return len(self), self.phrase.shape[1] + self.region.shape[1]

    def __getitem__(self, chosen: np.ndarray) -> PairFeatures:
        """The pairs of a boolean mask or index array; the feature rows are shared, not copied."""
        block = None if self.block is None else self.block[chosen]
        return replace(self, phrase_row=self.phrase_row[chosen], region_row=self.region_row[chosen], block=block)

    def __iter__(self) -> Iterator[None]:
        raise TypeError("PairFeatures is not a sequence of rows; index it with a mask")

    def in_memory(self) -> Iterator[PairFeatures]:
        """The pairs in order with only the rows that they need: all at once, or, of rows on disk, some at a time."""
        size = max(len(self), 1) if isinstance(self.phrase, np.ndarray) else _CHUNK
        for begin in range(0, max(len(self), 1), size):
            part = self[np.arange(begin, min(begin + size, len(self)))]
            phrases, phrase_row = used_rows(part.phrase_row)
            regions, region_row = used_rows(part.region_row)
            yield PairFeatures(self.phrase[phrases], self.region[regions], phrase_row, region_row, part.block)

    def require_finite(self, where: str = "X") -> None:
        """Raise BadInput, with the number of rows, if a row in use holds NaN or infinity."""
        for view, rows, used in (
            ("phrase", self.phrase, self.phrase_row),
            ("region", self.region, self.region_row),
        ):
            parts = (rows[begin : begin + _CHUNK] for begin in range(0, max(1, len(rows)), _CHUNK))
            broken = np.concatenate([~np.isfinite(part).all(axis=1) for part in parts])
            if broken.any() and broken[used].any():
                raise BadInput(
                    f"{where}: {int(broken.sum())} of {len(rows)} {view} rows are not finite (NaN or infinity); "
                    "leave the site out, or extract it again in float32 or bfloat16"
                )


def used_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers that occur, in order, and the place of each of ``rows`` among them: as ``np.unique`` with its
    inverse, without sorting, for numbers not much larger than there are rows.

    >>> used_rows(np.array([5, 2, 5]))
    (array([2, 5]), array([1, 0, 1]))
    """
    occurs = np.zeros(rows.max(initial=-1) + 1, dtype=bool)
    occurs[rows] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[rows]


def read_rows(run: Run, site: str, view: str) -> np.ndarray:
    """All rows of a view (``phrase`` or ``region``) of a site or of its partner, float32 ``[rows, D]``.

    Raises BadInput where the site does not hold one row for every phrase or region.
    """
    expected = len(getattr(run, f"{view}s"))
    rows = np.asarray(run.read(site, view), dtype=np.float32)
    if rows.ndim != 2 or len(rows) != expected:
        raise BadInput(
            f"site {site!r} holds {len(rows)} {view} rows for {expected} {view}s: some shards lack it; "
            "run extract again with the same arguments to fill them, or leave the site out"
        )
    return rows


def require_finite(rows: np.ndarray, site: str) -> None:
    """Raise BadInput, with the number of rows, if one holds NaN or infinity."""
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        raise BadInput(
            f"site {site!r}: {int(broken.sum())} of {len(rows)} rows are not finite (NaN or infinity); "
            "leave the site out, or extract it again in float32 or bfloat16"
        )


def sites_with(run: Run, views: Sequence[str]) -> list[SiteInfo]:
    """The sites with rows of those views (``phrase``, ``region``). Raises BadInput for a run that has none."""
    usable = [site for site in run.sites if all(_has(run, site, view) for view in views)]
    if not usable:
        streams = " and ".join(sorted({stream for site in run.sites for stream in site.streams})) or "no known tokens"
        raise BadInput(
            f"no site of the run, whose sites hold {streams}, has {' and '.join(views)} rows; extract sites with text "
            f"and sites with image or query tokens, with --views {','.join(views)}"
        )
    return usable


def _has(run: Run, site: SiteInfo, view: str) -> bool:
    """Whether rows of a view are stored for a site, or for the partner that stands in for it."""
    partner = getattr(site, f"{view}_partner")
    return view in site.views or any(other.name == partner and view in other.views for other in run.sites)
