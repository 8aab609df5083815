"""An example and its minimal change: the same but for one thing, which decides, for patching one into the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from grounding.errors import BadInput, unknown_choice
from grounding.examples import Box, Example


@dataclass(frozen=True)
class MinimalPair:
    """Two reference games of as many candidates, whose phrases have the same ids.

    kind: what was changed. phrase_ids: the phrases that the change is about. places: where in the images it is about
    (candidate, box). other_index: the candidate that the target is compared with; None for all the others together.
    target_index: the target of ``clean``, which is the one compared in both.
    """

    kind: str
    clean: Example
    corrupted: Example
    phrase_ids: tuple[str, ...]
    places: tuple[tuple[int, Box], ...]
    other_index: int | None = None

    @property
    def target_index(self) -> int:
        """The candidate that the clean caption describes."""
        return self.clean.target_index


def chosen_kinds(kinds: Iterable[str] | None, accepted: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds asked for, all for None. Raises BadInput for an unknown one."""
    chosen = accepted if kinds is None else tuple(kinds)
    for kind in chosen:
        if kind not in accepted:
            raise unknown_choice("pairs", kind, accepted)
    return chosen


def require_pairs(pairs: list[MinimalPair], kinds: tuple[str, ...], games: int) -> list[MinimalPair]:
    """The pairs. Raises BadInput where there are none."""
    if not pairs:
        raise BadInput(f"none of {games} games has a minimal change of kind {', '.join(kinds)}; take more games")
    return pairs
