"""Files are written whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from functools import partial

import pytest

from dtrl.errors import InputError
from dtrl.files import check_writable, held, write_atomically


def full_disk(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_holds_what_was_written(tmp_path):
    write_atomically(tmp_path / "file", b"new")
    write_atomically(str(tmp_path / "text"), b"")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "text").read_bytes() == b""
    assert names(tmp_path) == ["file", "text"]


def test_the_content_may_be_a_function_that_writes(tmp_path):
    write_atomically(tmp_path / "file", lambda stream: (stream.write(b"one "), stream.write(b"two")))
    assert (tmp_path / "file").read_bytes() == b"one two"


def test_a_missing_folder_is_made(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "file", b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(InputError, match=rf"{path} cannot be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_writer_that_fails_half_way_keeps_the_old_content(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(stream):
        stream.write(b"half of the new")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    write_atomically(tmp_path / "file", b"new")
    assert done == ["fsync", "replace", "fsync"]  # the last one is the folder's


def test_a_reader_sees_the_old_content_or_the_new_and_never_a_part(tmp_path):
    path, contents = tmp_path / "file", {b"a" * 200_000, b"b" * 300_000}
    path.write_bytes(b"a" * 200_000)
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for content in contents:
            write_atomically(path, content)
    stop.set()
    reader.join()
    assert seen
    assert seen <= contents


def test_two_threads_may_write_the_same_file(tmp_path):
    path, contents, errors = tmp_path / "file", [b"a" * 200_000, b"b" * 300_000], []

    def write(content):
        try:
            for _ in range(20):
                write_atomically(path, content)
                assert path.read_bytes() in contents
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert names(tmp_path) == ["file"]


def test_the_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "file", b"new")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "file")]
    assert modes[0] == modes[1]


def test_a_link_stays_a_link_to_the_file_that_is_written(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_pipe_is_written_as_it_is(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"through")
    reader.join(timeout=10)
    assert received == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("where", ["file/below", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for attempt in (partial(write_atomically, content=b"new"), check_writable):
        with pytest.raises(InputError, match=f"{tmp_path / where} cannot be written .*choose another place"):
            attempt(tmp_path / where)
    assert names(tmp_path) == ["file", "folder"]


def test_a_place_is_looked_at_before_the_work_and_left_as_it_is(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "new", "a/new/one"):
        check_writable(tmp_path / place)
    check_writable("/dev/stdout")
    assert names(tmp_path) == ["file"]


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path):
    folder = tmp_path / "new" / "run"
    code = f"from pathlib import Path; from dtrl.files import held\nwith held(Path({str(folder)!r}), ''): print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"\n"
        with pytest.raises(InputError, match="taken"), held(folder, "taken"):
            raise AssertionError("two hold it")
        assert folder.is_dir()
        other.send_signal(signal.SIGKILL)
    with held(folder, "taken"):
        (folder / "file").touch()
    assert names(folder) == ["file"]


def test_a_held_folder_in_which_nothing_was_written_is_removed(tmp_path):
    with held(tmp_path / "empty", "taken"):
        assert (tmp_path / "empty").is_dir()
    assert names(tmp_path) == []


def test_a_folder_that_its_holder_has_removed_is_refused_and_can_be_held_again(tmp_path, monkeypatch):
    folder, open_folder = tmp_path / "run", os.open

    def open_and_lose(*arguments):
        handle = open_folder(*arguments)
        folder.rmdir()
        return handle

    monkeypatch.setattr(os, "open", open_and_lose)
    with pytest.raises(InputError, match="taken"), held(folder, "taken"):
        raise AssertionError("held what is gone")
    monkeypatch.undo()
    with held(folder, "taken"):
        assert folder.is_dir()


def test_a_file_system_without_locks_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", full_disk)
    with held(tmp_path / "run", "taken"), held(tmp_path / "run", "taken"):
        (tmp_path / "run" / "file").touch()
    assert names(tmp_path / "run") == ["file"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{tmp_path / 'file' / 'run'} cannot be written"), held(tmp_path / "file" / "run", "taken"):  # fmt: skip
        raise AssertionError("made in a file")
