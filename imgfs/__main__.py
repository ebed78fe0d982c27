"""What `imgfs` and `python -m imgfs` run: the command line, with Ctrl-C understood while it is being loaded.

Once a command runs, it says "interrupted". Before that SIGINT ends the process with the same exit code, and
without a word. So nothing is imported here that takes time.
"""

_INTERRUPTED = 130  # exit code, as of a shell


def main() -> int:
    """Run `imgfs` with the words of its process; return its exit code, if it has not ended with it."""
    return _run("main")


def mount_helper() -> int:
    """Run as mount(8) calls its helper."""
    return _run("mount_helper")


def umount_helper() -> int:
    """Run as umount(8) calls its helper."""
    return _run("umount_helper")


def _run(name: str) -> int:
    try:
        import imgfs.cli

        return int(getattr(imgfs.cli, name)())
    except KeyboardInterrupt:
        import os

        os._exit(_INTERRUPTED)  # what is loaded in part may not be taken apart without a traceback


if __name__ == "__main__":
    raise SystemExit(main())
