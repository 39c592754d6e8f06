"""Files are written whole or not at all, and nothing is put in the place of what is no plain file."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from ntkscope.files import check_distinct, check_writable, make_folder, write_text, write_whole


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Plain files.


def test_a_new_file_has_the_permissions_of_the_mask(here: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(Path("out.json"), "é")
    finally:
        os.umask(old)
    assert Path("out.json").read_bytes() == "é".encode()
    assert stat.S_IMODE(Path("out.json").stat().st_mode) == 0o640


def test_an_old_file_keeps_its_permissions(here: Path) -> None:
    path = here / "out.json"
    path.write_text("old")
    path.chmod(0o600)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_fails_halfway_leaves_nothing(here: Path) -> None:
    def fail(target: Path) -> None:
        target.write_text("half")
        raise RuntimeError("stop")

    for old in (None, "old"):
        if old is not None:
            (here / "out.json").write_text(old)
        with pytest.raises(RuntimeError, match="stop"):
            write_whole(here / "out.json", fail)
        assert [path.read_text() for path in here.iterdir()] == ([] if old is None else [old])


def test_the_temporary_file_ends_as_the_path_does(here: Path) -> None:
    names: list[str] = []
    long = "x" * 240 + ".png"
    write_whole(here / long, lambda target: (names.append(target.suffix), target.write_text("")))
    assert names == [".png"]
    assert [path.name for path in here.iterdir()] == [long]


# Symbolic links are followed.


def test_a_link_stays_a_link(here: Path) -> None:
    (here / "real.json").write_text("old")
    (here / "link.json").symlink_to("real.json")
    check_writable(here / "link.json")
    write_text(here / "link.json", "new")
    assert (here / "link.json").is_symlink()
    assert (here / "real.json").read_text() == "new"


def test_a_link_of_a_link_into_another_folder(here: Path) -> None:
    (here / "far").mkdir()
    (here / "one").symlink_to("two")
    (here / "two").symlink_to("far/real.json")
    check_writable(here / "one")
    write_text(here / "one", "new")
    assert (here / "far" / "real.json").read_text() == "new"
    assert (here / "one").is_symlink()
    assert (here / "two").is_symlink()
    assert sorted(path.name for path in here.iterdir()) == ["far", "one", "two"]


def test_a_link_to_nowhere_and_in_a_circle(here: Path) -> None:
    (here / "dead").symlink_to("none/real.json")
    with pytest.raises(ValueError, match=r"cannot write dead: there is no folder .*none"):
        check_writable(Path("dead"))
    (here / "a").symlink_to("b")
    (here / "b").symlink_to("a")
    for refuse in (check_writable, lambda path: write_text(path, "")):
        with pytest.raises(ValueError, match="cannot write a: its symbolic links lead in a circle"):
            refuse(Path("a"))


def test_a_link_to_a_folder_is_a_folder(here: Path) -> None:
    (here / "folder").mkdir()
    (here / "link").symlink_to("folder")
    with pytest.raises(ValueError, match="cannot write link: it is a folder"):
        check_writable(Path("link"))


# What is no regular file is written into.


@pytest.fixture
def pipe(here: Path) -> Path:
    os.mkfifo(here / "pipe")
    return here / "pipe"


def _read(path: Path, found: list[str]) -> threading.Thread:
    reader = threading.Thread(target=lambda: found.append(path.read_text()))
    reader.start()
    return reader


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_stays_a_pipe(pipe: Path, link: bool) -> None:
    path = pipe.with_name("link") if link else pipe
    if link:
        path.symlink_to("pipe")
    found: list[str] = []
    check_writable(path)
    reader = _read(path, found)
    write_text(path, "numbers")
    reader.join(timeout=60)
    assert found == ["numbers"]
    assert pipe.is_fifo()
    assert path.is_symlink() == link


def test_the_null_device_stays_a_device(here: Path) -> None:
    # By a link of our own, so that a mistake would not break the machine.
    (here / "null.json").symlink_to("/dev/null")
    check_writable(here / "null.json")
    write_text(here / "null.json", "numbers")
    assert (here / "null.json").is_char_device()
    assert (here / "null.json").is_symlink()
    assert Path("/dev/null").is_char_device()


def test_nothing_is_sent_before_it_is_whole(pipe: Path) -> None:
    def fail(target: Path) -> None:
        target.write_text("half")
        raise RuntimeError("stop")

    # Opening the pipe would wait for a reader, and there is none.
    with pytest.raises(RuntimeError, match="stop"):
        write_whole(pipe, fail)
    assert pipe.is_fifo()


def test_a_socket_is_refused() -> None:
    # A socket's path is short.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        path = Path(folder) / "socket"
        server.bind(str(path))
        with pytest.raises(ValueError, match="it is a socket"):
            check_writable(path)


# What is read-only.


@pytest.fixture
def read_only(here: Path) -> Path:
    path = here / "kept.json"
    path.write_text("kept")
    path.chmod(0o444)
    return path


READ_ONLY = "cannot write .*: it is read-only; make it writable or name another file"


def test_a_read_only_file_is_refused_before_computing(read_only: Path) -> None:
    with pytest.raises(ValueError, match=READ_ONLY):
        check_writable(read_only)


def test_a_read_only_file_is_not_written_over(read_only: Path) -> None:
    with pytest.raises(ValueError, match=READ_ONLY):
        write_text(read_only, "new")
    assert read_only.read_text() == "kept"
    assert [path.name for path in read_only.parent.iterdir()] == ["kept.json"]


def test_a_link_to_a_read_only_file_is_refused(read_only: Path) -> None:
    link = read_only.with_name("link.json")
    link.symlink_to(read_only)
    for refuse in (check_writable, lambda path: write_text(path, "new")):
        with pytest.raises(ValueError, match=READ_ONLY):
            refuse(link)
    assert read_only.read_text() == "kept"


def test_a_read_only_pipe_is_refused(pipe: Path) -> None:
    pipe.chmod(0o444)
    with pytest.raises(ValueError, match=READ_ONLY):
        check_writable(pipe)


# The same file twice.


@pytest.mark.parametrize("other", ["x", "./x", "folder/../x", "link", "folder/x"])
def test_one_file_by_two_names(here: Path, other: str) -> None:
    (here / "folder").mkdir()
    (here / "link").symlink_to("x")
    (here / "folder" / "x").symlink_to("../x")
    for there in (False, True):
        if there:
            (here / "x").write_text("")
        with pytest.raises(ValueError, match=r"--json and --plot are the same file .*; name another"):
            check_distinct({"--json": Path("x"), "--plot": Path(other)}, {})


def test_a_hard_link_is_the_same_file(here: Path) -> None:
    (here / "x").write_text("")
    (here / "y").hardlink_to(here / "x")
    with pytest.raises(ValueError, match="the same file"):
        check_distinct({"--json": Path("x"), "--plot": Path("y")}, {})


def test_what_is_read_is_not_written_over(here: Path) -> None:
    with pytest.raises(ValueError, match=r"--checkpoint and --json are the same file w\.pt"):
        check_distinct({"--json": Path("w.pt")}, {"--checkpoint": here / "w.pt"})


def test_different_files_and_files_that_are_read_twice(here: Path) -> None:
    check_distinct(
        {"--json": Path("x.json"), "--plot": Path("x.png")}, {"A": Path("w.pt"), "B": Path("w.pt")}
    )
    check_distinct({"--json": None, "--plot": None}, {"--inputs": None})


# Folders.


def test_folders_are_made_once(here: Path) -> None:
    make_folder(here / "a" / "b")
    make_folder(here / "a" / "b")
    assert (here / "a" / "b").is_dir()
    (here / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file: it is not a folder"):
        make_folder(here / "file")
    with pytest.raises(ValueError, match=r"cannot make the folder .*: Not a directory"):
        make_folder(here / "file" / "folder")
