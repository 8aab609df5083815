"""Finished units of a sweep on disk, so that an interrupted one continues; a folder holds one sweep only."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from extract.identity import differences
from extract.store import publish, write_json
from grounding.errors import BadInput
from probe.units import Answered, Unit

UNITS, SETTINGS = "units", "settings.json"
FORM = 2  # of what is kept of a question: 1 had no differences from baselines, and another chance of precision


class UnitStore:
    """The folder ``units`` in ``out``, made with the first unit: of each its rows (JSON), written last, and its items
    (Parquet).

    about: JSON values that the units depend on, kept in ``settings.json``. Raises BadInput where ``out`` holds a sweep
    of something else, naming what differs with both values.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]):
        self.out, self.about, self.token = out, json.loads(json.dumps(about)), uuid.uuid4().hex[:8]
        if (out / SETTINGS).is_file():
            there = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
            if found := differences(there, self.about):
                raise BadInput(f"out {str(out)!r} holds another sweep: {found[0]}; choose another folder")

    def load(self, unit: Unit) -> Answered | None:
        """What was found of a unit; None while it is not finished, and where it is kept in another form."""
        path = self._path(unit)
        if not path.is_file():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        if not unit.measure and kept.get("form") != FORM:
            return None
        return Answered(kept["rows"], pd.read_parquet(path.with_suffix(".parquet")))

    def save(self, unit: Unit, answered: Answered) -> None:
        """Keep a finished unit; one that was being written when the process died is as if it had not begun."""
        path = self._path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out / SETTINGS, self.about, self.token)
        temporary = path.with_suffix(f".parquet.tmp-{self.token}")
        answered.items.to_parquet(temporary, index=False)
        publish(temporary, path.with_suffix(".parquet"))
        write_json(path, {"unit": asdict(unit), "form": FORM, "rows": answered.rows}, self.token)

    def _path(self, unit: Unit) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(unit), sort_keys=True).encode()).hexdigest()
        return self.out / UNITS / f"{unit.question}-{unit.probe}-{unit.seed}-{digest[:16]}.json"
