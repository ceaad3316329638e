"""Locks where the kernel's are those of one host: mounts are known, and the file itself is the lock."""

import json
import os
import socket

import pytest

from bench.system import locks, mounts
from bench.system.locks import is_stale, sole_writer
from tests.support.refusals import refusal

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 22 0:40 / /scratch rw,relatime shared:2 - lustre 10.0.0.1@tcp:/l rw,{lustre}lazystatfs
31 22 0:41 / /home rw,relatime shared:3 - nfs4 server:/home rw,vers=4.2,hard,local_lock={nfs}
32 22 0:42 / /two\\040words rw - nfs server:/x rw,vers=3,nolock,local_lock=all
33 22 0:43 / /cloud rw,nosuid - fuse.sshfs me@host:/ rw,user_id=0
34 30 8:2 / /scratch/disk rw - xfs /dev/sdb rw
damaged line
"""


@pytest.mark.parametrize(
    ("lustre", "nfs", "spanning"),
    [("flock,", "none", {"/scratch/a", "/home/me/runs"}), ("localflock,", "flock", set()), ("", "all", set())],
)
def test_where_flock_is_kept_to_one_host_is_read_from_the_list_of_mounts(tmp_path, monkeypatch, lustre, nfs, spanning):
    listed = tmp_path / "mountinfo"
    listed.write_text(MOUNTS.format(lustre=lustre, nfs=nfs))
    monkeypatch.setattr(mounts, "MOUNTS", listed)
    always = {"/", "/var/x", "/scratch/disk/runs"}
    places = {*always, "/scratch/a", "/home/me/runs", "/two words/runs", "/cloud/runs"}
    found = {place for place in places if mounts.flock_spans_hosts(mounts.Path(place))}
    assert found == always | spanning
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "none")
    assert mounts.flock_spans_hosts(tmp_path)


@pytest.fixture(params=["links", "no links"])
def of_one_host(request, monkeypatch):
    """flock succeeds on every host at once, as if nobody else held it."""
    monkeypatch.setattr(locks, "flock_spans_hosts", lambda path: False)
    monkeypatch.setattr(locks.fcntl, "flock", lambda *arguments: None)
    if request.param == "no links":

        def link(*arguments):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)


def test_the_file_is_the_lock_where_flock_lies(tmp_path, monkeypatch, of_one_host):
    here = socket.gethostname()

    def enter():
        with sole_writer(tmp_path):
            pass

    with sole_writer(tmp_path):
        owner = json.loads((tmp_path / ".lock").read_text())
        assert (owner["pid"], owner["host"]) == (os.getpid(), here)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        monkeypatch.setenv("BENCH_ONE_JOB", "1")  # such a job's own lock is not seen elsewhere either
        monkeypatch.setattr(socket, "gethostname", lambda: "another host")
        refusal(enter, f"in use by process {os.getpid()} on {here}")
        monkeypatch.setattr(socket, "gethostname", lambda: here)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".lock").touch()  # by somebody who has not signed it yet
    refusal(enter, "in use by process unknown")
    (tmp_path / ".lock").write_text(json.dumps({"pid": 2**22 + 5, "host": here}))
    assert is_stale(tmp_path / ".lock")
    enter()
    assert list(tmp_path.iterdir()) == []
