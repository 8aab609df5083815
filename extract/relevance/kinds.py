"""Which views of image cells there are (attention, relevance), and which sites offer relevance. Needs no torch.

A view is called ``relevance.METHOD``; with ``-task`` behind it, the score that is explained is the task's and not the
phrase's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grounding.models.base import Site

ATTENTION, BACK = "attention", "attention.back"  # from a phrase to image cells, and from those to the phrase
ATTENDED = (ATTENTION, BACK)
PREFIX, TASK = "relevance.", "-task"
ROLLOUT, GRADIENT, GRADIENT_ATTENTION = "rollout", "gradient", "gradient-attention"
INTEGRATED_GRADIENTS, GRAD_CAM, OCCLUSION = "integrated-gradients", "grad-cam", "occlusion"
METHODS = (ROLLOUT, GRADIENT, GRADIENT_ATTENTION, INTEGRATED_GRADIENTS, GRAD_CAM, OCCLUSION)
CARRIED = (ROLLOUT, GRADIENT, GRADIENT_ATTENTION)  # they go from attention to attention
AT_ONE_SITE = (INTEGRATED_GRADIENTS, OCCLUSION)
RELEVANCE = (
    *(PREFIX + method for method in METHODS),
    *(PREFIX + method + TASK for method in METHODS if method != ROLLOUT),
)
DEFAULT = tuple(PREFIX + method for method in CARRIED)  # what ``relevance`` alone stands for


def method_of(view: str) -> str:
    """The method of a relevance view.

    >>> method_of("relevance.grad-cam-task")
    'grad-cam'
    """
    return view.removeprefix(PREFIX).removesuffix(TASK)


def is_relevance(view: str) -> bool:
    """Is a view one of these?"""
    return view.startswith(PREFIX)


def has_heads(view: str) -> bool:
    """Does the view hold a map for each head?"""
    return view in ATTENDED or method_of(view) == GRADIENT_ATTENTION


def explains_task(view: str) -> bool:
    """Is it the task's score that the view explains?"""
    return view.endswith(TASK)


def has_change(view: str) -> bool:
    """Does a completeness check stand beside the view?"""
    return method_of(view) == INTEGRATED_GRADIENTS


def expand(views: Sequence[str]) -> list[str]:
    """Views in which ``relevance`` has become those that it stands for.

    >>> expand(["phrase", "relevance"])[:2]
    ['phrase', 'relevance.rollout']
    """
    names = [name for view in views for name in (DEFAULT if view == PREFIX[:-1] else (view,))]
    return list(dict.fromkeys(names))


def carries(site: Site) -> bool:
    """Can relevance be carried through the site's attention? Among joint tokens, or from queries to joint tokens."""
    if site.attention_path is None or site.attention_layout is not None:
        return False
    return {"text", "image"} <= set(site.streams) or site.self_attention_path is not None


def offers(site: Site, view: str) -> bool:
    """Can a site give a relevance view?"""
    return carries(site) if method_of(view) in CARRIED else "image" in site.streams


def first_site(sites: Sequence[Site]) -> str | None:
    """The site of what is kept once a model: the first that joins text and image, else the first with image tokens."""
    having = [site for site in sites if "image" in site.streams]
    joint = [site for site in having if "text" in site.streams]
    return (joint or having)[0].name if having else None
