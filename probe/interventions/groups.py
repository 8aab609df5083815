"""Which tokens of a site an intervention changes: those of phrases, of regions, and the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from extract.views import candidate_grid
from grounding.errors import BadInput, unknown_choice
from grounding.examples import Box
from grounding.models.base import Batch, Site

GROUPS = ("phrase", "other-text", "region", "other-patches", "queries")
STREAM_OF = {"phrase": "text", "other-text": "text", "region": "image", "other-patches": "image", "queries": "query"}
_TOUCHED = 1e-6  # share of a cell that a box covers, at least, for the cell to be the box's

Place = tuple[int, Box]  # candidate image, and a box in it


def token_groups(site: Site, batch: Batch, tokens: int, phrase: Tensor, region: Tensor) -> dict[str, Tensor]:
    """The groups that a site holds, each as bool ``[B, tokens]``; together they are its real tokens.

    phrase: bool ``[B, T]``, the caption's tokens that count as the phrase's. region: bool ``[B, cells]``, likewise.
    """
    layout, seen = site.layout(batch), real_cells(batch)
    parts = {
        "phrase": (layout.text, phrase & batch.text_mask),
        "other-text": (layout.text, ~phrase & batch.text_mask),
        "region": (layout.image, region & seen),
        "other-patches": (layout.image, ~region & seen),
        "queries": (layout.query, None),
    }
    groups = {}
    for name, (place, which) in parts.items():
        if place is not None:
            groups[name] = torch.zeros(len(batch), tokens, dtype=torch.bool, device=batch.text_mask.device)
            groups[name][:, place] = True if which is None else which
    return groups


def phrase_tokens(batch: Batch, phrases: Sequence[str] | None = None) -> Tensor:
    """Tokens that belong to any phrase of each example, or to those with the ids given: bool ``[B, T]``."""
    found = torch.zeros_like(batch.text_mask)
    for number, (name, example) in enumerate(zip(batch.phrase_ids, batch.phrase_example.tolist(), strict=True)):
        if phrases is None or name in phrases:
            found[example] |= batch.phrase_tokens[number]
    return found


def phrase_cells(batch: Batch) -> Tensor:
    """Image tokens of the regions of each of the batch's phrases: bool ``[P, cells]``."""
    known = [{phrase.id: phrase for phrase in example.phrases} for example in batch.examples]
    owners = batch.phrase_example.tolist()
    found = torch.zeros(len(owners), batch.grid[0] * batch.grid[1], dtype=torch.bool, device=batch.text_mask.device)
    for number, (name, example) in enumerate(zip(batch.phrase_ids, owners, strict=True)):
        phrase = known[example][name]
        found[number] = cells_of(batch, example, [(phrase.image_index, region.box) for region in phrase.regions])
    return found


def cells_of(batch: Batch, example: int, places: Sequence[Place]) -> Tensor:
    """Image tokens of an example that boxes touch: bool ``[cells]``.

    places: candidate image and box (xyxy, relative to it) of each.
    """
    grid = torch.zeros(batch.grid, dtype=torch.bool)
    rows, columns = candidate_grid(batch, example)
    for image, (x1, y1, x2, y2) in places:
        down = _covered((image + y1) * rows, (image + y2) * rows, batch.grid[0])
        across = _covered(x1 * columns, x2 * columns, batch.grid[1])
        grid |= down[:, None] * across > _TOUCHED
    return grid.flatten().to(batch.text_mask.device)


def image_cells(batch: Batch, example: int, image: int) -> Tensor:
    """Image tokens of one candidate of an example: bool ``[cells]``."""
    return cells_of(batch, example, [(image, (0.0, 0.0, 1.0, 1.0))])


def real_cells(batch: Batch) -> Tensor:
    """Image tokens that hold real pixels: bool ``[B, cells]``."""
    found = []
    for example, one in enumerate(batch.examples):
        whole = (0.0, 0.0, 1.0, 1.0)
        found.append(cells_of(batch, example, [(image, whole) for image in range(len(one.images))]))
    return torch.stack(found)


def require_stream(site: Site, stream: str, what: str) -> None:
    """Raise BadInput unless a site holds a stream, which ``what`` needs."""
    if stream not in site.streams:
        raise BadInput(f"site {site.name!r} holds {', '.join(site.streams)} tokens; {what} needs {stream} tokens")


def check_choices(name: str, given: Sequence[str], accepted: Sequence[str] | Mapping[str, object]) -> None:
    """Raise BadInput for the first of ``given`` that is not accepted."""
    for value in given:
        if value not in accepted:
            raise unknown_choice(name, value, list(accepted))


def _covered(begin: float, end: float, cells: int) -> Tensor:
    """Share of each of so many cells in a row that lies between two places: ``[cells]``."""
    edges = torch.arange(cells + 1, dtype=torch.float64)
    return (edges[1:].clamp(max=end) - edges[:-1].clamp(min=begin)).clamp(min=0.0)
