"""Checkpoints by their name on the Hugging Face hub: ``owner/name``."""

from __future__ import annotations

import re
from pathlib import Path

from grounding.errors import BadInput
from grounding.released.sharded import INDEX

NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "model*.safetensors",
    INDEX,
    "tokenizer*.json",
    "vocab.*",
    "merges.txt",
)


def may_be_on_the_hub(source: str | Path) -> bool:
    """Whether something that is no path here has the form of a name there; ``runs/x`` beside a folder runs has not."""
    text = str(source)
    return NAME.fullmatch(text) is not None and not text.startswith(".") and not Path(text).parent.exists()


def download(name: str, revision: str | None = None) -> Path:
    """The folder of a repository's configuration, safetensors weights and tokenizer, from the cache or the network.

    revision: branch, tag or commit; None takes the newest.
    Nothing else is fetched, pickles least of all. Raises BadInput in one line: no such name, no network, no weights.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:  # what the hub raises is one of the two
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"checkpoint {name!r} is neither a path here nor to be had from the Hugging Face hub ({reason}); accepted: "
            "a file or folder, a bundled name, or owner/name where there is a network or a cached copy"
        ) from None
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise BadInput(
            f"checkpoint {name!r} on the Hugging Face hub lacks config.json or safetensors weights; accepted: a "
            "repository with both, or a downloaded file"
        )
    return folder
