"""Environment variables, which this module alone reads, and what every start asks of them."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    from collections.abc import Mapping

_SYSTEM_CONFIG = "/etc"
_SYSTEM_STORE = "/var/cache/imgfs"
_ROOTS_SERVER = "/run/imgfs/serve.sock"
SERVER = "IMGFS_SERVE"  # the name of the variable that names the socket of `imgfs serve`
_NONE = "none"  # in the place of a socket's path
_OF_A_START = {
    *("_", "COLUMNS", "LINES", "OLDPWD", "PWD", "SHLVL", "TERM"),  # by a shell, in a terminal
    *("INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID"),  # by systemd.exec(5)
    *("MAINPID", "MANAGERPID", "NOTIFY_SOCKET", "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC"),
}


def variables() -> Mapping[str, str]:
    """Return all of this process's variables."""
    return os.environ


def set_variables(entries: Mapping[str, str]) -> None:
    """Replace all of this process's variables, in what its children inherit, too."""
    os.environ.clear()
    os.environ.update(entries)


def server_socket(environ: Mapping[str, str], euid: int) -> str | None:
    """Return where `imgfs serve` answers this user; None if the user wants none, or has no place for it.

    $IMGFS_SERVE names the socket, or is `none`. Else it is below $XDG_RUNTIME_DIR, for root below /run.
    """
    explicit = environ.get(SERVER)
    if explicit:
        return None if explicit == _NONE else os.path.abspath(explicit)
    if euid == 0:  # $XDG_RUNTIME_DIR may be that of the user who has become root
        return _ROOTS_SERVER
    return f"{absolute(environ, 'XDG_RUNTIME_DIR') or f'/run/user/{euid}'}/imgfs/serve.sock"


def pool_socket(environ: Mapping[str, str], euid: int) -> str | None:
    """Return where the processes of that server answer that serve many mounts each."""
    server = server_socket(environ, euid)
    return f"{server}.pool" if server else None


def lasting_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say more of a process than how it was started."""
    return {name: value for name, value in environ.items() if name not in _OF_A_START}


def notify_socket(environ: Mapping[str, str]) -> str | None:
    """Return where systemd hears that a service is ready (sd_notify(3)); `@` begins the name of no file."""
    return environ.get("NOTIFY_SOCKET") or None


def has_listening_socket(environ: Mapping[str, str], pid: int) -> bool:
    """Return True if systemd has given this process one socket, as descriptor 3 (sd_listen_fds(3))."""
    return environ.get("LISTEN_PID") == str(pid) and environ.get("LISTEN_FDS") == "1"


def config_files(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return imgfs's configuration files, which need not exist: the system's, then the user's."""
    system = absolute(environ, "IMGFS_ETC") or _SYSTEM_CONFIG
    return f"{system}/imgfs/config.toml", f"{config_home(environ)}/imgfs/config.toml"


def account(environ: Mapping[str, str], euid: int) -> int:
    """Return whose files count: inside `podman unshare`, or rootlesskit, root is the user who began that."""
    for name in ("_CONTAINERS_ROOTLESS_UID", "ROOTLESSKIT_PARENT_EUID"):
        began = environ.get(name, "")
        if euid == 0 and began.isascii() and began.isdecimal() and len(began) < 11:
            return int(began)
    return euid


def store_directory(environ: Mapping[str, str], euid: int) -> str:
    """Return the cache directory: $IMGFS_STORE, else root's /var/cache/imgfs, or $XDG_CACHE_HOME/imgfs."""
    if explicit := environ.get("IMGFS_STORE"):
        return explicit if explicit.startswith("/") else os.path.join(os.getcwd(), explicit)
    if euid == 0:
        return _SYSTEM_STORE
    return f"{absolute(environ, 'XDG_CACHE_HOME') or os.path.join(home(environ), '.cache')}/imgfs"


def own_store() -> str:
    """Return the cache directory of this process's user, where no option names another."""
    environ = variables()
    return store_directory(environ, account(environ, os.geteuid()))


def config_home(environ: Mapping[str, str]) -> str:
    """Return where the user's configuration files are (XDG base directories)."""
    return absolute(environ, "XDG_CONFIG_HOME") or os.path.join(home(environ), ".config")


def home(environ: Mapping[str, str]) -> str:
    """Return the user's home directory, / for a user who has no account."""
    if found := environ.get("HOME"):
        return found
    import pwd  # here: nearly all have the variable

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a container's user without an account
        return "/"


def absolute(environ: Mapping[str, str], name: str) -> str | None:
    """Return $name if it is an absolute path: XDG's "should be considered invalid" otherwise."""
    path = environ.get(name, "")
    return path if path.startswith("/") else None
