"""Annotation files that others wrote: reading them, and naming the file and the place where one is broken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

from grounding.errors import BadInput


class MissingFile(BadInput):
    """An annotation file that is not there at all."""


def read_text(path: Path, accepted: str) -> str:
    """The text of an annotation file; ``accepted`` says what its folder should be.

    Raises MissingFile where there is none, BadInput naming the file where it cannot be read or is not UTF-8.
    """
    try:
        return _read_bytes(path, accepted).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"annotations {path} are not UTF-8: {error.reason} at byte {error.start}") from None


def _read_bytes(path: Path, accepted: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingFile(f"root {str(path.parent)!r} has no {path.name}; accepted: {accepted}") from None
    except OSError as error:
        raise BadInput(f"annotations {path} cannot be read: {error.strerror}") from None


def read_json(path: Path, accepted: str) -> Any:
    """The content of a JSON file; as ``read_text``, and BadInput where it is not JSON (half-written, say)."""
    try:
        return json.loads(read_text(path, accepted))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"annotations {path} are not JSON: {error}") from None


def read_json_lines(path: Path, accepted: str) -> Iterator[tuple[int, Any]]:
    """Line number (from 1) and content of every line of a file that has one JSON value a line; blank ones are left out.

    Raises as ``read_json``, naming the line, when it is reached.
    """
    for number, line in enumerate(read_text(path, accepted).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise BadInput(f"annotations {path}, line {number}, are not JSON: {error}") from None


def read_xml(path: Path, accepted: str) -> ElementTree.Element:
    """The root element of an XML file; as ``read_text``, and BadInput where it is not XML or declares a DOCTYPE."""
    content = _read_bytes(path, accepted)
    try:
        return parse_xml(content)
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an encoding nobody knows
        raise BadInput(f"annotations {path} are not XML: {error}") from None
    except BadInput as error:
        raise BadInput(f"annotations {path}: {error}") from None


def parse_xml(content: bytes) -> ElementTree.Element:
    """The root element. Raises BadInput at a DOCTYPE, else what ElementTree raises."""
    return ElementTree.fromstring(content, ElementTree.XMLParser(target=_RefuseDoctype()))


class _RefuseDoctype(ElementTree.TreeBuilder):
    """Builds the tree, but stops at a document type declaration, where entities would be declared."""

    def doctype(self, name: str, public_id: str | None, system: str | None) -> None:
        raise BadInput("has a DOCTYPE; accepted: XML without document type and entities")


def field(record: object, key: str, kind: type | tuple[type, ...], where: object) -> Any:
    """A field of a JSON object, of the type that the format has there. Raises BadInput, beginning with ``where``."""
    if not isinstance(record, dict) or not isinstance(record.get(key), kind) or isinstance(record[key], bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise BadInput(f"{where}: {key!r} is missing or is no {' or '.join(k.__name__ for k in kinds)}")
    return record[key]


def inside(folder: Path, name: str, where: object) -> Path:
    """The path of a file that annotations name. Raises BadInput for a name that leads out of the folder."""
    path = PureWindowsPath(name)  # which knows both kinds of slashes
    if path.anchor or ".." in path.parts or not path.parts or "\0" in name:
        raise BadInput(f"{where}: file name {name!r} leads out of its folder; accepted: a name inside {folder}")
    return folder / name


def content_hash(paths: Iterable[Path]) -> str:
    """sha256 of the names and the content of files, in that order; a file that is absent counts as such."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"\n{path.name}\n".encode())
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            digest.update(b"missing")
    return digest.hexdigest()
