"""A small study for tests, and its file."""

from __future__ import annotations

from pathlib import Path

import yaml
from finetune_runs import SIZES

CONTENT = {
    "models": {"vilt-aligner": {"model": "vilt-aligner", "benchmark": "mini-game", "config": SIZES["vilt-aligner"]}},
    "fractions": [0, 1],
    "seeds": [0],
    "settings": {"steps": 2, "batch_size": 4, "limit_train": 8, "limit_dev": 4, "evaluate_every": 1},
    "evaluate": {"split": "dev", "limit": 12},
    "extract": {"split": "dev", "limit": 30, "views": ["phrase", "region", "tokens"]},
    "sweep": {"questions": ["alignment", "localisation"], "probes": ["linear"], "controls": []},
    "intervene": {"method": "knockout", "limit": 6, "draws": 1},
}


def write(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump({**CONTENT, **changes}))
    return path
