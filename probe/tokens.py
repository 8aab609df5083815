"""Rows of the view ``tokens`` that belong to one stream of a site, over all examples of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grounding.errors import BadInput

if TYPE_CHECKING:
    from extract.reader import Run, SiteInfo


def token_counts(run: Run, site: SiteInfo) -> dict[str, np.ndarray]:
    """How many tokens of each stream a site holds, int64 ``[examples]`` each, in their order in the view."""
    examples = run.examples
    counts = {}
    if "text" in site.streams:
        counts["text"] = examples["text_tokens"].to_numpy(np.int64)
    if "image" in site.streams:
        counts["image"] = (examples["grid_rows"] * examples["grid_columns"]).to_numpy(np.int64)
    if "query" in site.streams:
        others = sum((int(count[0]) for count in counts.values()), 0)
        queries = len(run.tokens(site.name, 0)) - others  # the same number in every example
        counts["query"] = np.full(len(examples), queries, dtype=np.int64)
    return counts


def read_tokens(run: Run, site: SiteInfo, stream: str, examples: np.ndarray | None = None) -> np.ndarray:
    """States of a stream's tokens of all examples (or of these rows), one below the other, float32 ``[n, D]``.

    Raises BadInput where the site does not hold the tokens of every example.
    """
    counts = token_counts(run, site)
    lengths = np.sum(list(counts.values()), axis=0)
    if (stored := run.count(site.name, "tokens")) != lengths.sum():
        raise BadInput(
            f"site {site.name!r} holds {stored} tokens rows for {lengths.sum()} tokens: some shards lack it; "
            "run extract again with the same arguments to fill them, or leave the site out"
        )
    before = np.zeros(len(lengths), dtype=np.int64)
    for name, count in counts.items():
        if name == stream:
            break
        before += count
    first, count = np.cumsum(lengths) - lengths + before, counts[stream]
    if examples is not None:
        first, count = first[examples], count[examples]
    return np.asarray(run.read(site.name, "tokens", rows=ranges(first, count)), dtype=np.float32)


def sites_with_tokens(run: Run, stream: str, question: str) -> list[SiteInfo]:
    """The sites whose tokens of a stream are stored. Raises BadInput, saying what stores them, where there are none."""
    found = [site for site in run.sites if stream in site.streams and "tokens" in site.views]
    if not found:
        if not any(stream in site.streams for site in run.sites):
            raise BadInput(
                f"question {question!r} needs sites with {stream} tokens; the run {str(run.path)!r} has none"
            )
        raise BadInput(
            f"question {question!r} needs the view 'tokens'; the run lacks it, to add it: "
            f"probe extract --out {run.path} --add-view tokens"
        )
    return found


def ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``first[i]``, ``first[i] + 1``, ... (``counts[i]`` of them) for every i in turn: int64 ``[sum of counts]``.

    >>> ranges(np.array([3, 10]), np.array([2, 3])).tolist()
    [3, 4, 10, 11, 12]
    """
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(first - starts, counts)
