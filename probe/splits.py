"""Train, validation and test parts that keep what belongs together in one part, and a check that they do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from grounding.errors import BadInput, unknown_choice

PARTS = ("train", "validation", "test")
GROUPS = ("image", "caption", "annotation", "tangram")


def split_examples(examples: pd.DataFrame, by: str = "image", folds: int = 5, seed: int = 0) -> np.ndarray:
    """Part of each example: ``[n]`` strings of PARTS; one fold of groups is test, one validation, the rest train.

    examples: the run's table (or rows of it) with a column ``group_<by>``. Groups are dealt to folds in a seeded
    random order. Whatever ``by`` is, images stay whole too: a leak raises BadInput, as do unknown or empty
    groups and fewer groups than folds.
    """
    if by not in GROUPS:
        raise unknown_choice("group", by, GROUPS)
    if folds < 3:
        raise BadInput(f"folds {folds} is too small; accepted: 3 or more (train, validation and test)")
    groups = examples[f"group_{by}"].astype(str).to_numpy()
    if (groups == "").any():
        raise BadInput(f"group {by!r}: {int((groups == '').sum())} of {len(groups)} examples have none; use image")
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < folds:
        raise BadInput(f"the run has {len(names)} {by} group(s), fewer than {folds} folds; extract more examples")
    fold_of_group = np.empty(len(names), dtype=np.int64)
    fold_of_group[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    fold = fold_of_group[codes]
    parts = np.where(fold == 0, "test", np.where(fold == 1, "validation", "train"))
    check_leaks(examples, parts, ("image", by))
    return parts


def check_leaks(examples: pd.DataFrame, parts: np.ndarray, groups: Sequence[str] = ("image",)) -> None:
    """Raise BadInput, naming one of them, if an image (caption, tangram, …) is in two parts.

    examples: table with columns ``group_<name>``; parts: ``[n]`` strings. Examples without such a group ('')
    cannot leak.
    """
    for name in dict.fromkeys(groups):
        values = examples[f"group_{name}"].astype(str).to_numpy()
        known = values != ""
        count = pd.Series(parts[known]).groupby(values[known]).nunique()
        leaked = count[count > 1]
        if len(leaked):
            where = sorted(set(parts[known & (values == leaked.index[0])]))
            raise BadInput(
                f"split leaks: {len(leaked)} {name} group(s) are in more than one part, "
                f"for example {leaked.index[0]!r} in {' and '.join(where)}; split by {name}"
            )
