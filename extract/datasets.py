"""A run as a torch ``Dataset``: phrases, regions or pairs of them, read when they are asked for.

data = RunDataset(run, ["block.7"], phrase=pairs.phrase, region=pairs.region)
for batch in DataLoader(data, batch_size=256, shuffle=True, num_workers=2):
    batch["phrase"]["block.7"], batch["region"]["block.7"]      # float32 [256, D] each
    batch["phrase_row"]["text"], batch["region_row"]["kind"]    # 256 of what the tables say
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from extract.reader import Run
from grounding.errors import BadInput

Item = dict[str, dict[str, Any]]


class RunDataset(Dataset[Item]):
    """Item i is a phrase, a region, or a pair of both, at some sites of a run.

    phrase, region: row numbers ``[n]`` of ``run.phrases`` and ``run.regions``; one of them, or both for pairs. Under
    ``phrase`` an item holds site -> float32 ``[D]``, under ``phrase_row`` the table's row, its number as ``row``;
    the same for regions. A ``DataLoader`` fetches a batch with one read a site, in workers too, and its usual collation
    stacks the items.
    Raises BadInput without sites or rows, for row numbers out of range, unequal lengths, or a view that is not stored.
    """

    def __init__(
        self,
        run: Run,
        sites: Sequence[str],
        *,
        phrase: Sequence[int] | np.ndarray | None = None,
        region: Sequence[int] | np.ndarray | None = None,
    ):
        given = {"phrase": phrase, "region": region}
        self.run, self.sites = run, tuple(sites)
        self.rows = {view: np.asarray(rows, dtype=np.int64) for view, rows in given.items() if rows is not None}
        lengths = {view: len(rows) for view, rows in self.rows.items()}
        if len(set(lengths.values())) != 1:
            raise BadInput(f"rows of {lengths or 'nothing'}; accepted: phrase, region, or both of one length")
        if not self.sites or isinstance(sites, str):
            raise BadInput(f"sites {sites!r}; accepted: a list of one or more names")
        for view, rows in self.rows.items():
            self._check(view, rows)

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """The items of a batch, with one read a site and view."""
        items: list[Item] = [{} for _ in indices]
        for view, chosen in self.rows.items():
            rows = chosen[np.asarray(indices, dtype=np.int64)]
            states = {site: torch.from_numpy(self.run.read(site, view, rows)) for site in self.sites}
            for place, record in enumerate(_records(self._table(view), rows)):
                items[place][view] = {site: batch[place] for site, batch in states.items()}
                items[place][f"{view}_row"] = record
        return items

    def _table(self, view: str) -> pd.DataFrame:
        return self.run.phrases if view == "phrase" else self.run.regions

    def _check(self, view: str, rows: np.ndarray) -> None:
        count = len(self._table(view))
        if len(rows) and (rows.min() < 0 or rows.max() >= count):
            raise BadInput(f"{view} rows {rows.min()} to {rows.max()}; accepted: 0 to {count - 1}")
        for site in self.sites:
            self.run.read(site, view, [])


def _records(table: pd.DataFrame, rows: np.ndarray) -> list[dict[str, Any]]:
    """Rows of a table as plain values, each with its number."""
    return [{"row": int(row), **record} for row, record in zip(rows, table.iloc[rows].to_dict("records"), strict=True)]
