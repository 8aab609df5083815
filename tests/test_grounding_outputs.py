"""Where results are to go."""

from __future__ import annotations

import pytest

from grounding.errors import BadInput
from grounding.outputs import check_file, check_folder


def test_places_that_are_free_are_fine(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (None, tmp_path, tmp_path / "new" / "deep"):
        check_folder(path)
    for path in (None, tmp_path / "file", tmp_path / "new" / "deep.json"):
        check_file(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("check", "path", "message"),
    [
        (check_folder, "file", "out '.*file' is not a folder; accepted: a folder"),
        (check_folder, "file/new", "out '.*file/new' lies below .*file, which is not a folder"),
        (check_file, "", "export '.*' is a folder; accepted: a file"),
        (check_file, "file/new.json", "export '.*' lies below .*file, which is not a folder"),
    ],
)
def test_other_places_are_refused_by_name(tmp_path, check, path, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=message):
        check(tmp_path / path, message.split()[0])


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(BadInput, match=f"cannot be written: no permission in {tmp_path}"):
        check_folder(tmp_path / "new")
