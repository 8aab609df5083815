"""Do the images of an evaluation also occur in training? By content, since names differ between benchmarks."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from grounding.benchmarks import Benchmark, benchmark_class, open_benchmark
from grounding.errors import BadInput
from grounding.examples import Example, ImageSource
from grounding.finetune.settings import stored_settings

LISTED = 10  # examples that are named
MONITORED = "dev"  # the split that fine-tuning chooses the step on


@dataclass(frozen=True)
class Overlap:
    """Images of the evaluated examples that are among those that a checkpoint was trained on.

    trained_on: benchmark and split, in words; '' where the checkpoint does not tell. images: different ones evaluated.
    shared: how many of them are training images; None where that is not known, ``reason`` says why. examples: ids (the
    first few) with a shared image. same_split: the evaluated split is the one of training. transfer: from which
    benchmark to which other, in words; '' where they are the same, or the first is not known. chosen_on: whether the
    checkpoint's step was chosen on the evaluated split.
    """

    trained_on: str
    images: int
    shared: int | None
    examples: tuple[str, ...] = ()
    same_split: bool = False
    reason: str | None = None
    transfer: str = ""
    chosen_on: bool = False

    def told(self) -> str:
        """In a sentence, beside what tells of another benchmark; what spoils a result begins with WARNING."""
        told = [self.transfer + "."] if self.transfer else []
        told += [self._shared_told()]
        told += ["The checkpoint's step was chosen on this split, which flatters it."] if self.chosen_on else []
        return " ".join(told)

    def _shared_told(self) -> str:
        if self.same_split:
            return f"WARNING: evaluated on the split that the checkpoint was trained on ({self.trained_on})."
        if self.shared is None:
            return f"Images shared with training: unknown ({self.reason})."
        warning = "WARNING: " if self.shared else ""
        named = f", in {', '.join(self.examples)}" if self.examples else ""
        note = f" ({self.reason})" if self.reason else ""
        return f"{warning}Images shared with training ({self.trained_on}): {self.shared} of {self.images}{named}{note}."


def training_overlap(
    info: Mapping[str, Any], benchmark: Benchmark, examples: Sequence[Example], root: Path | str | None = None
) -> Overlap:
    """Overlap of evaluated ``examples`` with the training split that a checkpoint's ``info`` names.

    root: of the training benchmark's files; by default the one that is stored, or the evaluated benchmark's where both
    are the same. Files are read only where a training image has the same size in bytes. Generated benchmarks are not
    generated again: each of their splits draws its own images.
    """
    settings = stored_settings(info)
    found = _overlap(settings, benchmark, examples, root)
    split = examples[0].split
    chosen_on = split == MONITORED and _is_of_training(settings, benchmark, root)
    return replace(found, transfer=_transfer(settings, benchmark, split, root), chosen_on=chosen_on)


def _transfer(settings: Mapping[str, Any], benchmark: Benchmark, split: str, root: Path | str | None) -> str:
    trained, evaluated = settings.get("benchmark"), benchmark.original(split)
    if trained == "columnar":
        try:
            trained = open_benchmark(trained, root or settings.get("root")).original(settings.get("train_split", ""))
        except BadInput:
            trained = None
    known = trained is not None and trained != evaluated
    return f"The checkpoint was fine-tuned on {trained}, evaluated on {evaluated}" if known else ""


def _overlap(
    settings: Mapping[str, Any], benchmark: Benchmark, examples: Sequence[Example], root: Path | str | None
) -> Overlap:
    split = examples[0].split
    images = len({_identity(image) for example in examples for image in example.images})
    if not {"benchmark", "train_split"} <= set(settings):
        return Overlap("", images, None, reason="the checkpoint does not name its training split")
    name, train_split = settings["benchmark"], settings["train_split"]
    trained_on = f"{name} {train_split}"
    try:
        if train_split == split and _is_of_training(settings, benchmark, root):
            return Overlap(trained_on, images, images, same_split=True)
        if not benchmark_class(name).needs_root:
            return _of_generated(trained_on, images, benchmark)
        training = _training_benchmark(settings, benchmark, root)
        trained = training.load(train_split, settings.get("limit_train"), skip_bad=True)
    except BadInput as error:
        return Overlap(trained_on, images, None, reason=str(error))
    found = shared_images(trained, examples)
    ids = tuple(example.id for example in examples if any(_identity(image) in found for image in example.images))
    return Overlap(trained_on, images, len(found), ids[:LISTED])


def _training_benchmark(settings: Mapping[str, Any], benchmark: Benchmark, root: Path | str | None) -> Benchmark:
    """What a checkpoint was trained on. Raises BadInput where it cannot be opened."""
    if missing := [name for name in ("benchmark_options", "data_seed") if settings.get(name) is None]:
        raise BadInput(f"the checkpoint does not name the {', '.join(missing)} of its training")
    name = settings["benchmark"]
    place = root or (benchmark.root if name == benchmark.name else None) or settings.get("root")
    place = place if benchmark_class(name).needs_root else None
    return open_benchmark(name, place, settings["data_seed"], **settings["benchmark_options"])


def _is_of_training(settings: Mapping[str, Any], benchmark: Benchmark, root: Path | str | None) -> bool:
    """Whether a benchmark is the one of training, with the same seed and options; not if that cannot be opened."""
    if settings.get("benchmark") != benchmark.name:
        return False
    try:
        return dict(_training_benchmark(settings, benchmark, root).identity()) == dict(benchmark.identity())
    except BadInput:
        return False


def _of_generated(trained_on: str, images: int, benchmark: Benchmark) -> Overlap:
    """Images drawn from a seed are those of no file, and of no other split; a columnar copy may be of anything."""
    if benchmark.name == "columnar":
        return Overlap(trained_on, images, None, reason="a columnar copy may hold generated images; not compared")
    return Overlap(trained_on, images, 0, reason="generated: each split draws its own")


def shared_images(trained: Iterable[Example], evaluated: Iterable[Example]) -> set[object]:
    """Which images of ``evaluated`` (as ``_identity`` has them) have the content of one of ``trained``."""
    by_size: dict[int, set[object]] = defaultdict(set)
    for image in {_identity(i): i for example in trained for i in example.images}.values():
        by_size[_size(image)].add(_identity(image))
    found: set[object] = set()
    digests: dict[int, set[str]] = {}
    for identity, image in {_identity(i): i for example in evaluated for i in example.images}.items():
        size = _size(image)
        if identity in by_size.get(size, ()):
            found.add(identity)
        elif isinstance(image, (str, Path)) and size in by_size:
            if size not in digests:
                digests[size] = {_digest(other) for other in by_size[size] if isinstance(other, Path)}
            if _digest(Path(image)) in digests[size]:
                found.add(identity)
    return found


def _identity(image: ImageSource) -> object:
    """Equal only for equal content: a file's resolved path, an array's hash, what is drawn itself, in any colours."""
    if isinstance(image, (str, Path)):
        return Path(image).resolve()
    if isinstance(image, np.ndarray):
        return hashlib.sha256(f"{image.shape} {image.dtype}".encode() + image.tobytes()).hexdigest()
    try:
        hash(image)
    except TypeError:
        return _identity(image.render())
    return getattr(image, "drawing", image)


def _size(image: ImageSource) -> int:
    """Bytes of a file (-1 where there is none); -2 for all others."""
    if not isinstance(image, (str, Path)):
        return -2
    path = Path(image)
    return path.stat().st_size if path.is_file() else -1


def _digest(path: Path) -> str:
    if not path.is_file():
        return f"missing {path}"
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
