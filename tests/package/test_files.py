"""Files written in one step: links, pipes, devices, open files; and what cannot be written, found before any work."""

import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from poh_ext._files import is_replaced, why_not_writable, write_atomically

posix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system with FIFOs and descriptors as files")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, relative):
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "a", tmp_path / "link", tmp_path / "second"
    target.write_text("old")
    target.chmod(0o640)
    inode = target.stat().st_ino
    link.symlink_to("far/a" if relative else target)
    second.symlink_to("link")
    assert why_not_writable(second) == "" and write_atomically(second, b"new") == second
    assert link.is_symlink() and second.is_symlink() and target.read_text() == "new"
    assert target.stat().st_ino != inode, "in one step: another file"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert names(tmp_path) == ["far", "link", "second"] and names(tmp_path / "far") == ["a"]


def test_a_link_to_nothing_gets_its_target(tmp_path):
    (tmp_path / "link").symlink_to("new")
    assert why_not_writable(tmp_path / "link") == ""
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "new").read_bytes() == b"x" and (tmp_path / "link").is_symlink()


@posix
@pytest.mark.parametrize("data", [b"whole", lambda file: (file.write(b"halt"), file.seek(0), file.write(b"whole"))])
def test_a_pipe_is_written_through(tmp_path, data):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    assert not is_replaced(pipe) and why_not_writable(pipe) == ""  # nobody reads it yet: to open it would wait
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, data)
    reader.join(60)
    assert got == [b"whole"] and stat.S_ISFIFO(pipe.stat().st_mode) and names(tmp_path) == ["pipe"]


@posix
def test_a_character_device_is_written_through_also_by_a_link(tmp_path):
    master, slave = os.openpty()
    name = os.ttyname(slave)
    (tmp_path / "link").symlink_to(name)
    for path in (name, tmp_path / "link"):
        assert why_not_writable(path) == ""
        write_atomically(path, b"whole")
        assert os.read(master, 100) == b"whole"
        assert stat.S_ISCHR(os.stat(path).st_mode)
    assert (tmp_path / "link").is_symlink()
    os.close(slave)
    os.close(master)


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_standard_output_goes_on_after_it(tmp_path, name):
    """In a file, too, which a second descriptor with a place of its own would overwrite."""
    code = f"""
from poh_ext._files import why_not_writable, write_atomically
print("before")
assert why_not_writable({name!r}) == ""
write_atomically({name!r}, b"middle\\n")
print("after")
"""
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text().split() == ["before", "middle", "after"] and names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("folder", "it is a folder"),
        ("link to folder", "it is a folder"),
        ("no/such/a", "its folder does not exist"),
        ("loop", "Too many levels of symbolic links"),
        ("file/a", "Not a directory"),
        ("x" * 250, "File name too long"),  # only what is written first, under a longer name, is too long
        ("socket", "it is neither a file, a pipe nor a character device"),
    ],
)
def test_what_cannot_be_written_is_found_before(tmp_path, name, reason, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to folder").symlink_to("folder")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        server.bind("socket")
        before = names(tmp_path)
        assert why_not_writable(tmp_path / name) == reason
        if name != "no/such/a":  # which is made
            with pytest.raises(OSError) as raised:
                write_atomically(tmp_path / name, lambda file: pytest.fail("work before the check"))
            assert raised.value.filename == str(tmp_path / name) and reason in str(raised.value)
    assert names(tmp_path) == before


def test_a_file_or_folder_without_permission_is_found_before(tmp_path):
    (tmp_path / "a").write_text("")
    (tmp_path / "a").chmod(0o400)
    (tmp_path / "folder").mkdir(mode=0o500)
    if os.access(tmp_path / "a", os.W_OK):
        pytest.skip("this user may write everything")
    assert why_not_writable(tmp_path / "a") == "Permission denied"
    assert why_not_writable(tmp_path / "folder" / "a") == "Permission denied"
    assert (tmp_path / "folder").chmod(0o700) is None and names(tmp_path / "folder") == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux")
def test_a_file_system_that_takes_no_files_is_found_before():
    assert why_not_writable("/proc/poh.json") != ""


def test_an_error_of_what_writes_is_its_own(tmp_path):
    def read_another(file):
        (tmp_path / "not there").read_bytes()

    with pytest.raises(FileNotFoundError) as raised:
        write_atomically(tmp_path / "a", read_another)
    assert str(raised.value.filename) == str(tmp_path / "not there") and names(tmp_path) == []
