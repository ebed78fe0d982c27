"""Linux system calls that Python's `os` lacks, called through ctypes.

    files       openat2(2), renameat2(2), syncfs(2), utimensat(2) of the access time alone, fallocate(2),
                statx(2) of the time of birth
    mounts      fsopen(2), fsconfig(2), fsmount(2), move_mount(2), mount(2), umount2(2)
    processes   unshare(2), setns(2) by a pidfd, pidfd_getfd(2), prctl(2), ioprio_get(2), ioprio_set(2)

Each raises OSError with the kernel's errno, as `os` does. Constants have the kernel's names.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Mapping, Sequence

AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100  # fcntl.h
_STATX_BTIME = 0x800  # linux/stat.h, with the next
_STATX = struct.Struct("=I76xqI164x")  # struct statx: what it has (STATX_*), the time of birth
UTIME_OMIT = (1 << 30) - 2  # sys/stat.h: in place of the nanoseconds
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4  # linux/fs.h
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000  # linux/sched.h
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2  # linux/falloc.h
RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 0x04, 0x10  # linux/openat2.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 1 << 19  # linux/mount.h, as everything below
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOSYMFOLLOW = 1, 2, 4, 8, 0x20, 0x100
MS_NOATIME, MS_NODIRATIME, MS_RELATIME, MS_STRICTATIME = 0x400, 0x800, 1 << 21, 1 << 24
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOATIME, MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_NODIRATIME = 0x10, 0x20, 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 4, 0x40
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = 1, 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = (
    429,
    430,
    431,
    432,
)  # the same on every architecture

_SYS_OPENAT2, _SYS_PIDFD_GETFD = 437, 438
_SYS_IOPRIO_SET = {  # by uname(2)'s name of the architecture; that of ioprio_get is the next
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "ppc64le": 273,
    "s390x": 282,
    "armv7l": 314,
}
_IOPRIO_WHO_PROCESS = 1  # linux/ioprio.h

MountParameters = Sequence[tuple[str, str | None]]  # of fsconfig(2); a flag has no value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (  # glibc 2.28
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


class _OpenHow(ctypes.Structure):  # linux/openat2.h
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


def renameat2(source_fd: int, source: bytes, target_fd: int, target: bytes, flags: int = 0) -> None:
    """Rename `source` in one open directory to `target` in another; `flags` are RENAME_*."""
    _check(_libc.renameat2(source_fd, source, target_fd, target, flags), source)


def rewrite_atime(path: bytes) -> None:
    """Set a file's access time to the one it has: a write to its inode that changes nothing visible."""
    seconds, nanoseconds = divmod(os.lstat(path).st_atime_ns, 1_000_000_000)
    times = (_Timespec * 2)(_Timespec(seconds, nanoseconds), _Timespec(0, UTIME_OMIT))
    _check(_libc.utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW), path)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate a range of an open file, or by `mode` (FALLOC_FL_*) punch a hole there or zero it."""
    _check(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def birth_time(directory: int | None, path: bytes, *, follow: bool) -> int | None:
    """Return when a file was made, in nanoseconds; None where its file system does not know."""
    found = ctypes.create_string_buffer(_STATX.size)
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    at = AT_FDCWD if directory is None else directory
    _check(_libc.statx(at, path, flags, _STATX_BTIME, found), path)
    mask, seconds, nanoseconds = _STATX.unpack(found)
    return seconds * 1_000_000_000 + nanoseconds if mask & _STATX_BTIME else None


def syncfs(fd: int) -> None:
    """Write out what is dirty of the file system that an open file is on."""
    _check(_libc.syncfs(fd))


def unshare(flags: int) -> None:
    """Move this process into new namespaces; `flags` are CLONE_NEW*."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kinds: int) -> None:
    """Move this process, of one thread, into namespaces of the process of a pidfd; `kinds` are CLONE_NEW*."""
    _check(_libc.setns(fd, kinds), "setns")


def copy_descriptor(process: int, fd: int) -> int:
    """Return a descriptor, close-on-exec, of what the process of a pidfd has open as `fd`."""
    return _syscall(_SYS_PIDFD_GETFD, process, fd, 0)


def open_in_root(top: int, path: str, flags: int) -> int:
    """Open a path as a process chrooted to the open directory `top` would; it leads nowhere out of it."""
    return _openat2(top, path, _OpenHow(flags, 0, RESOLVE_IN_ROOT))


def open_without_links(path: str, flags: int) -> int:
    """Open a path on which no part is a symbolic link; ELOOP if any is."""
    return _openat2(AT_FDCWD, path, _OpenHow(flags, 0, RESOLVE_NO_SYMLINKS))


def set_parent_death_signal(number: int, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent ends, or has, if that was `parent`."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0), "prctl")
    if parent is not None and os.getppid() != parent:  # before the kernel was told
        os.kill(os.getpid(), number)


def io_priority(pid: int) -> int:
    """Return the priority of reads and writes of a process, of this one for 0; 0 is the usual one."""
    number = _SYS_IOPRIO_SET.get(os.uname().machine)
    return _syscall(number + 1, _IOPRIO_WHO_PROCESS, pid) if number else 0


def set_io_priority(pid: int, priority: int) -> None:
    """Give a process, this one for 0, a priority that another one has."""
    _syscall(_SYS_IOPRIO_SET[os.uname().machine], _IOPRIO_WHO_PROCESS, pid, priority)


def show_words(words: Sequence[str]) -> None:
    """Show other words as those that this process was started with, to ps(1) and in /proc.

    They are written over its own, as far as there is room; nothing may use those any more.
    """
    start, end, _, _ = _start_region()
    _overwrite(start, end, words)


def show_variables(variables: Mapping[str, str]) -> None:
    """Show other variables in /proc than this process was started with, as `show_words` does words."""
    _, _, start, end = _start_region()
    _overwrite(start, end, [f"{name}={value}" for name, value in variables.items()])


def _start_region() -> list[int]:
    """Return where this process's words begin and end, and its variables."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return list(map(int, fields[45:49]))  # arg_start, arg_end, env_start, env_end (proc(5))


def _overwrite(start: int, end: int, texts: Sequence[str]) -> None:
    body = b"".join(os.fsencode(text) + b"\0" for text in texts)[: max(0, end - start - 1)]
    ctypes.memmove(start, body.ljust(end - start, b"\0"), end - start)


def make_mounts_slave() -> None:
    """Propagate no mount out of this mount namespace; mounts made outside still come in."""
    _check(_libc.mount(b"", b"/", None, MS_REC | MS_SLAVE, None), "/")


def cover_with_tmpfs(path: str) -> None:
    """Mount an empty tmpfs, which takes no files, on a directory."""
    _check(_libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, b"size=4k,mode=0555"), path)


def bind_mount(source: str, target: str) -> None:
    """Show a file or directory at another."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None), target)


def remount(path: str, flags: int) -> None:
    """Give the topmost mount at `path`, as the kernel lists it, these flags (MS_*) and no others.

    Its superblock gets them, too, without MS_BIND; a file system's options stay. No symbolic link on the path
    is followed, as by `unmount`.
    """
    fd = open_without_links(path, os.O_PATH | os.O_CLOEXEC)
    try:
        at = f"/proc/self/fd/{fd}"
        _check(_libc.mount(None, os.fsencode(at), None, MS_REMOUNT | flags, None), path)
    finally:
        os.close(fd)


def unmount(path: str, flags: int = 0) -> None:
    """Unmount the topmost mount at `path` as the kernel lists it (proc(5), mountinfo); `flags` are MNT_*.

    With MNT_DETACH it ends once no process uses it. With MNT_FORCE, of a FUSE file system, what waits for its
    server fails first, even if it then is in use (EBUSY). No symbolic link on the path is followed: it may
    lead to a mount of the machine's by now, if another user owns a directory of it.
    """
    above, _, name = path.rpartition("/")
    parent = open_without_links(above or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        at = f"/proc/self/fd/{parent}/{name}"
        _check(_libc.umount2(os.fsencode(at), flags | UMOUNT_NOFOLLOW), path)
    finally:
        os.close(parent)


def detach_mount(path: str) -> None:
    """Unmount the topmost mount at `path` lazily: it ends once no process uses it.

    For a path that is this process's own: a symbolic link is followed, but as its last part.
    """
    _check(_libc.umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW), path)


def can_mount(filesystem: str) -> bool:
    """Return True if the kernel has this type of file system and lets this process mount one."""
    try:
        os.close(_syscall(_SYS_FSOPEN, filesystem.encode(), FSOPEN_CLOEXEC))
    except OSError:
        return False
    return True


def is_in_user_namespace() -> bool:
    """Return True if this process is in a user namespace of its own (user_namespaces(7), uid_map)."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def new_mount(filesystem: str, parameters: MountParameters, attributes: int) -> int:
    """Make a mount that is attached nowhere and return its descriptor; `attributes` are MOUNT_ATTR_*.

    It lives as long as that descriptor, or a mount or process that uses it. The OSError has the kernel's own
    messages as well.
    """
    context = _syscall(_SYS_FSOPEN, filesystem.encode(), FSOPEN_CLOEXEC)
    try:
        for key, value in parameters:
            if value is None:
                _syscall(_SYS_FSCONFIG, context, FSCONFIG_SET_FLAG, key.encode(), None, 0)
            else:
                _syscall(_SYS_FSCONFIG, context, FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0)
        _syscall(_SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(_SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        messages = _context_messages(context)
        if error.errno is None or not messages:
            raise
        raise OSError(error.errno, f"{error.strerror}: {messages}") from error
    finally:
        os.close(context)


def attach_mount(mount: int, directory: int) -> None:
    """Attach a mount made by `new_mount` at an open directory."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _syscall(_SYS_MOVE_MOUNT, mount, b"", directory, b"", flags)


def _context_messages(context: int) -> str:
    """Return the kernel's messages about a file system that it did not make; lines like `e erofs: …`."""
    lines: list[str] = []
    with contextlib.suppress(OSError):  # ENODATA: there are no more
        while len(lines) < 8:
            lines.append(os.read(context, 1024).decode(errors="replace").strip().partition(" ")[2])
    return "; ".join(lines)


def _openat2(directory: int, path: str, how: _OpenHow) -> int:
    arguments = directory, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    fd: int = _libc.syscall(ctypes.c_long(_SYS_OPENAT2), *arguments)
    _check(min(fd, 0), path)
    return fd


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    passed = [ctypes.c_long(part) if isinstance(part, int) else part for part in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *passed)
    _check(min(result, 0))
    return result


def _check(result: int, *filename: str | bytes) -> None:
    """Raise OSError unless a call has returned 0."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *filename)
