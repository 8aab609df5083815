"""A run's twin: the same architecture with fresh weights on the same examples, the control of a probe's own doing.

What a probe reads off a model that has learned nothing is owed to the architecture and to what goes into it (Zhang
and Bowman 2018, arXiv 1809.10040).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from extract.from_checkpoint import extract_checkpoint, made_from
from extract.identity import manifest_there
from extract.reader import Run
from grounding.errors import BadInput

VIEWS = ("phrase", "region", "tokens")  # what probes read


def random_twin(
    run: Run,
    out: Path | str | None = None,
    *,
    seed: int = 0,
    root: Path | str | None = None,
    ckpt: str | Path | None = None,
    device: str = "cpu",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """The states of all sites of ``run`` that probes read, from its checkpoint's architecture with weights drawn anew.

    out: default ``RUN-random`` beside it (``RUN-random-1`` for seed 1, and so on). seed: of the weights. A twin that is
    there is opened, and an unfinished one goes on. Its identity is that of the run with ``fresh_weights``, the seed.
    root, ckpt: where the benchmark's files and the checkpoint are now, if they have moved. Raises BadInput as
    ``extract_checkpoint`` does, and for a run that was not made from a checkpoint by name, or is itself a twin.
    """
    manifest, name = run.manifest, run.path.resolve().name
    if not manifest.get("source"):
        raise BadInput(
            f"run {str(run.path)!r} has no twin with fresh weights: it was not made from a checkpoint by name; leave "
            "out the control 'random-model'"
        )
    if "fresh_weights" in manifest["identity"]:
        raise BadInput(f"run {str(run.path)!r} has fresh weights already; accepted: a run of a trained checkpoint")
    views = [view for view in VIEWS if view in manifest["views"]]
    if not views:
        raise BadInput(
            f"run {str(run.path)!r} has no states ({', '.join(VIEWS)}); accepted: a run that probes can read"
        )
    target = Path(out) if out is not None else run.path.resolve().with_name(f"{name}-random" + f"-{seed}" * (seed > 0))
    there = manifest_there(target)
    if there is not None and there["complete"] and _is_twin(there, manifest, seed):
        return Run.open(target)
    given = {name: value for name, value in (("ckpt", ckpt), ("root", root)) if value}
    sites = [site.name for site in run.sites if set(site.views) & set(views)]
    modules = [module for part in manifest["parts"] for module in part["modules"]]
    return extract_checkpoint(
        out=target, sites=sites, views=views, modules=modules, device=device, workers=workers, progress=progress,
        add=there is not None and there["complete"],  # sites and views that the run was given since
        **made_from(manifest) | given | {"fresh_weights": seed},
    )  # fmt: skip


def _is_twin(there: Mapping[str, Any], manifest: Mapping[str, Any], seed: int) -> bool:
    """Whether a manifest is of the twin: the same identity but for the weights, and every state of every site."""
    identity, wanted = dict(there["identity"]), {**manifest["identity"], "fresh_weights": seed}
    if "weights" in wanted["model"]:  # of a network without an adapter, whose values are part of its configuration
        identity["model"] = {**identity["model"], "weights": wanted["model"]["weights"]}
    return identity == wanted and _states(there) >= _states(manifest)


def _states(manifest: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Sites and the views of them that probes read."""
    return {(site["name"], view) for site in manifest["sites"] for view in site["views"] if view in VIEWS}
