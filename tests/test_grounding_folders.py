"""Where results can be written, told before anything is computed."""

from __future__ import annotations

import pytest

from grounding.errors import BadInput
from grounding.folders import check_file, check_folder, make_folder


def test_a_folder_is_made_where_one_can_be(tmp_path):
    check_folder(None)
    check_folder(tmp_path / "new" / "inner")
    assert not (tmp_path / "new").exists()
    assert make_folder(tmp_path / "new" / "inner").is_dir()
    assert make_folder(tmp_path / "new" / "inner").is_dir()


@pytest.mark.parametrize("check", [check_folder, make_folder])
def test_a_file_in_the_way_is_named(tmp_path, check):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match=r"^out '.*file' is not a folder; accepted: one, or a path that is free for it$"):
        check(tmp_path / "file")
    with pytest.raises(BadInput, match=r"^out '.*inner' is not a folder: '.*file' is a file; accepted: "):
        check(tmp_path / "file" / "more" / "inner")


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(BadInput, match=f"new' cannot be written: no permission in '{tmp_path}'"):
        check_folder(tmp_path / "new")


def test_a_file_is_written_where_no_folder_is(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_file(None)
    check_file(tmp_path / "file")
    check_file(tmp_path / "new" / "file")
    with pytest.raises(BadInput, match=r"^export '.*' is a folder; accepted: a file$"):
        check_file(tmp_path, "export")
    with pytest.raises(BadInput, match=r"^folder of export '.*file' is not a folder; "):
        check_file(tmp_path / "file" / "inner", "export")
