"""Files appear whole or not at all, whoever else writes them."""

import pytest

from jaxdiff.io import files
from jaxdiff.io.errors import ConfigError


def test_two_writers_of_one_file_do_not_share_a_draft(tmp_path):
    path = tmp_path / "cache" / "features.npz"
    with files.atomic_write(path) as slow:
        slow.write_text("the whole of the first")
        with files.atomic_write(path) as quick:
            quick.write_text("second")
            assert not path.exists()
        assert path.read_text() == "second"
        assert slow.read_text() == "the whole of the first"
    assert path.read_text() == "the whole of the first"
    assert list(path.parent.iterdir()) == [path]


def write_half(path):
    with files.atomic_write(path) as draft:
        draft.write_text("half")
        raise RuntimeError("stop")


def test_a_failed_block_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "table.md"
    files.write_text(path, "before")
    with pytest.raises(RuntimeError, match="stop"):
        write_half(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_whether_a_file_can_be_written_is_told_without_a_trace(tmp_path):
    path = tmp_path / "deep" / "page.html"
    files.check_writable(path, "--out")
    files.write_text(path, "before")
    files.check_writable(path, "--out")
    assert path.read_text() == "before"
    assert list(path.parent.iterdir()) == [path]
    for wrong, reason in ((path.parent, "it is a directory"), (path / "below.html", "File exists")):
        with pytest.raises(ConfigError, match=rf"{wrong} cannot be written \({reason}\); choose another --out"):
            files.check_writable(wrong, "--out")
