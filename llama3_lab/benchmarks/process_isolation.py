"""wall_off(), guard(): what a child process gives up before it runs a stranger's program.

Limits and an audit hook hold everywhere; namespaces (own user, network, processes, files) where the kernel
allows them. Every step says whether it took, so that a verdict can name the isolation that was in force.

What they are not: the audit hook alone is no wall against a program written to break it, and nothing here
filters system calls. Standard library only: the child starts without site-packages.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOBODY = 65534
_NEW_MOUNTS, _NEW_USER, _NEW_NETWORK = 0x00020000, 0x10000000, 0x40000000
_NEW_PROCESSES, _NEW_IPC, _NEW_NAMES = 0x20000000, 0x08000000, 0x04000000
_READ_ONLY, _NO_SUID, _NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH, _DEATH_SIGNAL, _SET_DUMPABLE, _NO_NEW_PRIVILEGES, _KILL = 2, 1, 4, 38, 9
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DEVICES = ("/dev/null", "/dev/urandom")
_FORBIDDEN = (
    "socket.", "subprocess.", "ctypes.", "shutil.", "pty.", "fcntl.", "webbrowser.", "winreg.", "resource.",
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "os.remove", "os.rename", "os.rmdir",
    "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.chflags", "os.truncate", "os.utime", "os.setxattr",
    "os.removexattr", "os.startfile", "os.putenv", "os.unsetenv", "os.chdir", "os.fwalk", "os.walk", "signal.pthread_",
    "sys.addaudithook", "sys.settrace", "sys.setprofile",
)  # fmt: skip


def limit(seconds: float, memory: int, file_bytes: int, new_processes: bool) -> list[str]:
    """Set the limits of this process on processor time (s), memory (bytes), file size and number of processes.

    Return the names of those that this system accepts.
    """
    whole = max(1, int(seconds + 0.999))
    wanted = {"processor time": ("RLIMIT_CPU", whole), "memory": ("RLIMIT_AS", memory),
              "file size": ("RLIMIT_FSIZE", file_bytes), "open files": ("RLIMIT_NOFILE", 32),
              "core files": ("RLIMIT_CORE", 0)}  # fmt: skip
    if not new_processes:
        wanted["processes"] = ("RLIMIT_NPROC", 0)
    took = []
    for name, (constant, value) in wanted.items():
        try:
            resource.setrlimit(getattr(resource, constant), (value, value))
            took.append(name)
        except (AttributeError, ValueError, OSError):
            continue
    return took


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends (Linux)."""
    _control(_DEATH_SIGNAL, _KILL)


def close_to_tracing() -> None:
    """Hide this process's memory from others of the same user, and give up any later gain of rights (Linux)."""
    _control(_SET_DUMPABLE, 0)
    _control(_NO_NEW_PRIVILEGES, 1)


def separate() -> list[str]:
    """Move this process to namespaces of its own; its next child is the first process of the new one.

    Return the names of what is now its own, of "user", "mounts", "network" and "processes". root needs no user
    namespace for this step; others get one.
    """
    if not sys.platform.startswith("linux"):
        return []
    own, user, group = [], os.geteuid(), os.getegid()
    if user != 0:
        if not own_user():
            return []
        own.append("user")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            try:
                Path(f"/proc/self/{name}").write_text(text)
            except OSError:
                return own
    wanted = {"mounts": _NEW_MOUNTS, "network": _NEW_NETWORK, "processes": _NEW_PROCESSES, "": _NEW_IPC | _NEW_NAMES}
    return own + [name for name, flag in wanted.items() if _call("unshare", flag) and name]


def own_user() -> bool:
    """Move this process to a user namespace of its own, which takes its rights over its siblings' memory."""
    return sys.platform.startswith("linux") and _call("unshare", _NEW_USER)


def own_files(folder: Path) -> bool:
    """Leave this process a file system of its own: Python and its libraries read-only, and an empty `folder`.

    Needs "mounts" of `separate`, or it would change everybody's files. Return whether it worked; where not, the
    files stay as they are.
    """
    number = _PIVOT_ROOT.get(os.uname().machine)
    if number is None or not _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None):
        return False
    if not _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=8m,mode=755"):
        return False
    needed = [sys.base_prefix, sys.base_exec_prefix, *_LIBRARIES, *_DEVICES]
    for place in dict.fromkeys(p for p in needed if os.path.exists(p)):
        if not _show(Path(place), folder / place.lstrip("/")):
            return False
    inside, old = folder / os.fspath(folder).lstrip("/"), folder / ".old"
    inside.mkdir(parents=True, exist_ok=True)
    if not _call("mount", b"tmpfs", os.fsencode(inside), b"tmpfs", _NO_SUID | _NO_DEVICES, b"size=4m,mode=777"):
        return False
    old.mkdir()
    if not _call("syscall", number, os.fsencode(folder), os.fsencode(old)):
        return False
    os.chdir(folder)
    hidden = _call("umount2", b"/.old", _DETACH)
    return hidden and _call("mount", None, b"/", None, _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEVICES, None)


def leave_root() -> bool:
    """Become nobody where this process is root and nobody may read Python; return whether root was left."""
    if os.geteuid() != 0:
        return False
    ways = [Path(os.__file__), *Path(os.__file__).parents]
    if not all(p.stat().st_mode & 0o001 for p in ways[1:]):
        return False
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    except OSError:
        return False
    return True


def guard(folder: str, may_kill: int = 0) -> None:
    """Refuse, for good and in this whole process, to touch files outside `folder`, sockets, processes and ctypes.

    Python's own library may be read, and the process `may_kill` ended. What is refused raises PermissionError.
    """
    readable = (folder, sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__), "/usr/share/zoneinfo")
    sys.addaudithook(_hook(tuple(os.path.join(p, "") for p in readable), os.path.join(folder, ""), may_kill))


def _hook(readable: tuple[str, ...], writable: str, may_kill: int) -> Callable[[str, tuple[Any, ...]], None]:
    absolute, decode, starts, devices = os.path.abspath, os.fsdecode, str.startswith, _DEVICES
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    forbidden, closed, text, number, refuse = _FORBIDDEN, PermissionError, (str, bytes, os.PathLike), int, bool

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if starts(event, forbidden) and not (event == "os.kill" and may_kill and given[0] == may_kill):
            raise closed(f"not in the sandbox: {event}")
        if event == "open" and isinstance(given[0], text):
            path, flags = absolute(decode(given[0])), given[2] if isinstance(given[2], number) else 0
            if refuse(flags & writing) and not starts(path, writable):
                raise closed("not in the sandbox: writing files")
            if not starts(path, readable) and path not in devices:
                raise closed("not in the sandbox: reading files")
        elif event in ("os.listdir", "os.scandir") and not starts(f"{given[0] or '.'}/", readable):
            raise closed(f"not in the sandbox: {event}")

    return hook


def _show(place: Path, at: Path) -> bool:
    """Bind a folder or a device of the old files at `at`, read-only."""
    if place.is_dir():
        at.mkdir(parents=True, exist_ok=True)
    else:
        at.parent.mkdir(parents=True, exist_ok=True)
        at.touch()
    names = (os.fsencode(place.resolve()), os.fsencode(at))
    if not _call("mount", *names, None, _BIND, None):
        return False
    flags = _BIND | _REMOUNT | _READ_ONLY | _NO_SUID
    # A bind keeps flags that its source has locked: ask again with them where the first form is refused.
    return any(_call("mount", None, names[1], None, flags | more, None) for more in (0, _NO_DEVICES, 1024, 4 | 1024))


def _call(name: str, *given: Any) -> bool:
    """Call a function of the C library; return whether it succeeded."""
    try:
        return int(getattr(ctypes.CDLL(None, use_errno=True), name)(*given)) == 0
    except (AttributeError, OSError):
        return False


def _control(option: int, value: int) -> None:
    if sys.platform.startswith("linux"):
        _call("prctl", option, value, 0, 0, 0)
