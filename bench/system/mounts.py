"""Where the kernel's file locks are those of one host alone: as file systems are mounted, in Linux's own list."""

from contextlib import suppress
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
_LOCAL = {
    "nfs": {"nolock", "local_lock=flock", "local_lock=all"},
    "nfs4": {"nolock", "local_lock=flock", "local_lock=all"},
    "cifs": {"nobrl"},
    "smb3": {"nobrl"},
}
"""Options with which flock succeeds on every host at once, by kind of file system."""


def flock_spans_hosts(path: Path) -> bool:
    """False where a lock on a file there is held on this host alone, and others may hold it too.

    So it is with Lustre but for its option flock, with the options in `_LOCAL`, and with file systems of programs
    (FUSE), which need not pass locks on. The locks of a host's own disk span all hosts that see it.
    """
    place, found = path.absolute(), (Path("/"), True)
    with suppress(OSError):
        place = place.resolve()
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            mount = _mount(line)
            if mount and place.is_relative_to(mount[0]) and len(mount[0].parts) >= len(found[0].parts):
                found = mount
    return found[1]


def _mount(line: str) -> tuple[Path, bool] | None:
    """Where a line says that something is mounted, and whether its locks span hosts."""
    before, _, after = line.partition(" - ")
    fields, about = before.split(" "), after.split(" ")
    if len(fields) < 6 or len(about) < 3:
        return None
    where = fields[4].replace("\\040", " ")
    options = {*fields[5].split(","), *about[2].split(",")}
    if about[0] == "lustre":
        return Path(where), "flock" in options
    return Path(where), not about[0].startswith("fuse.") and options.isdisjoint(_LOCAL.get(about[0], set()))
