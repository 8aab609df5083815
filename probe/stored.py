"""Rows of a view of a site that stay on disk and are read when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from extract.reader import Run


@dataclass(frozen=True)
class StoredRows:
    """Looks like a float32 array ``[n, D]`` to every probe, but holds nothing: indexing reads.

    view: ``phrase`` or ``region``, rows in the order of the run's table.
    """

    run: Run
    site: str
    view: str

    def __len__(self) -> int:
        return self.run.count(self.site, self.view)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, D)``; reads one row."""
        return len(self), self[0:1].shape[1]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of a slice, mask or index array, float32 ``[len(rows), D]``."""
        if isinstance(rows, slice) or rows.dtype == bool:
            rows = np.arange(len(self))[rows]
        return self.run.read(self.site, self.view, rows)

    def release(self) -> None:
        """Give back the memory that reading took; nothing changes but that."""
        self.run.release()
