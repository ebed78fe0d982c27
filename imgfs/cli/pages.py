"""Man pages and shell completions, generated from the parsers: `python -m imgfs.cli.pages DIRECTORY`.

    share/man/man1/imgfs.1, imgfs-COMMAND.1     share/man/man8/mount.fuse.imgfs.8
    share/bash-completion/completions/imgfs     share/zsh/site-functions/_imgfs
    share/fish/vendor_completions.d/imgfs.fish

The wheel carries them as data files, so that pip puts them below its prefix (`cli.build`). Needs
argparse-manpage and shtab: both are wanted when imgfs is built, neither when it runs.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from imgfs import __version__
from imgfs.cli.commands import COMMANDS, HEADINGS
from imgfs.cli.complete import KINDS
from imgfs.cli.parser import describe
from imgfs.config import Environment

_SHELLS = {
    "bash": "share/bash-completion/completions/imgfs",
    "zsh": "share/zsh/site-functions/_imgfs",
    "fish": "share/fish/vendor_completions.d/imgfs.fish",
}
_IMAGES = {
    "bash": '_imgfs_images() { imgfs complete images "$1" 2>/dev/null; }',
    "zsh": """\
_imgfs_images() {
  local -a found=(${(f)"$(imgfs complete images "$PREFIX" 2>/dev/null)"})
  [[ ${#found} -gt 1 && $found[1] != $PREFIX* ]] && compstate[insert]=menu
  compadd -U -a found
}""",
}
# Bash splits words at colons, which names of images have, and takes what is offered for the last part.
_JOINING = """\
_imgfs_joined() {{
  local rest=$COMP_LINE word last=${{COMP_WORDS[COMP_CWORD]}} at=-1 number=0 current=0 before
  local -a words=() offered=()
  for word in "${{COMP_WORDS[@]}}"; do
    if [[ $at -ge 0 && $rest == [![:space:]]* && ( $word == :* || ${{words[at]}} == *: ) ]]; then
      words[at]+=$word
    else
      rest=${{rest#"${{rest%%[![:space:]]*}}"}}
      words[++at]=$word
    fi
    rest=${{rest#"$word"}}
    if (( number++ == COMP_CWORD )); then current=$at; fi
  done
  local -a COMP_WORDS=("${{words[@]}}")
  local COMP_CWORD=$current
  {function}
  [[ $last == : ]] && last=
  before=${{words[current]%"$last"}}
  for word in "${{COMPREPLY[@]}}"; do
    if [[ $word == "$before"* ]]; then offered+=("${{word#"$before"}}"); fi
  done
  COMPREPLY=("${{offered[@]}}")
}}
"""
_MOUNT_HELPER = """\
.TH MOUNT.FUSE.IMGFS 8 "{date}" "imgfs {version}" "System administration"
.SH NAME
mount.fuse.imgfs \\- mount a container image by mount(8) and /etc/fstab
.SH SYNOPSIS
.B mount \\-t fuse.imgfs
.I IMAGE MOUNTPOINT
.RB [ \\-o
.IR OPTIONS ]
.SH DESCRIPTION
mount(8) calls this helper for the type
.BR fuse.imgfs .
It turns the options into those of
.BR imgfs\\-mount (1):
.I NAME=VALUE
becomes
.IR \\-\\-NAME=VALUE ,
with hyphens for underscores; a bare
.B scratch
means
.BR \\-\\-rw .
Any other option goes to FUSE.
.SH EXAMPLES
.nf
mount \\-t fuse.imgfs debian:12 /mnt \\-o platform=linux/arm64
registry.example.com/team/app:v2 /srv/app fuse.imgfs ro,squash_owner,_netdev 0 0
.fi
.SH SEE ALSO
.BR imgfs (1),
.BR imgfs\\-mount (1),
.BR fstab (5),
.BR mount (8)
"""


def pages() -> Iterator[tuple[str, str]]:
    """Yield (path below the prefix, text) of every man page and completion."""
    from argparse_manpage.manpage import Manpage

    date = _date()
    parser = describe(COMMANDS)
    parser.man_short_description = "mount container images straight from their registry"  # type: ignore[attr-defined]
    for name, command in {"imgfs": parser, **_subcommands(parser)}.items():
        command.prog = name.replace("imgfs-", "imgfs ")
        page = Manpage(command)
        yield f"share/man/man1/{name}.1", _mended(str(page), name, date)
    yield "share/man/man8/mount.fuse.imgfs.8", _MOUNT_HELPER.format(date=date, version=__version__)
    yield from _completions()


def _mended(page: str, name: str, date: str) -> str:
    """Return a page with the title that man-pages(7) wants, and with its examples as they were typed."""
    title = f'.TH {name.upper()} 1 "{date}" "imgfs {__version__}" "User commands"'
    hyphened = name.replace("-", "\\-")
    page = re.sub(r"^\.TH .*$", lambda _: title, page, count=1, flags=re.MULTILINE)
    page = re.sub(r"^imgfs ?[a-z0-9]* \\- ", lambda _: f"{hyphened} \\- ", page, count=1, flags=re.MULTILINE)
    return re.sub(r"(?:^ {2,}.*\n)+", lambda block: f".nf\n{block[0]}.fi\n", page, flags=re.MULTILINE)


def _subcommands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the parser of each command by the name of its man page."""
    (actions,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    summaries = {choice.dest: choice.help for choice in actions._choices_actions}
    found = {}
    for name, command in actions.choices.items():
        command.man_short_description = summaries[name]
        found[f"imgfs-{name}"] = command
    return found


def _completions() -> Iterator[tuple[str, str]]:
    import shtab

    for shell, path in _SHELLS.items():
        parser = describe(COMMANDS)
        functions = {kind: _function(shell, kind) for kind in KINDS}
        _mark(parser, shell, functions)
        preamble = "\n".join(body for _, body in functions.values())
        script = shtab.complete(parser, shell, preamble=preamble)
        if shell == "bash":
            script = re.sub(r"^complete .*-F (\S+) imgfs$", _join_words, script, flags=re.MULTILINE)
        yield path, re.sub(r" -s (\w\w)", r" -o \1", script) if shell == "fish" else script  # as find's -name


def _join_words(registered: re.Match[str]) -> str:
    """Return the function that joins words before shtab's sees them, and how bash is told of it: names of
    files are what is left, as for directories to mount on."""
    told = registered[0].replace(registered[1], "_imgfs_joined").replace("-F", "-o default -F")
    return _JOINING.format(function=registered[1]) + told


def _function(shell: str, kind: str) -> tuple[str, str]:
    """Return a shell function's name, or fish's expression, and its text: it asks `imgfs complete KIND`."""
    name, ask = f"_imgfs_{kind}", f"imgfs complete {kind} 2>/dev/null"
    if kind == "images" and shell != "fish":  # which finds what is in the middle of a word by itself
        return name, _IMAGES[shell]
    if shell == "bash":
        return name, f'{name}() {{ compgen -W "$({ask})" -- "$1"; }}'
    if shell == "zsh":
        return name, f'{name}() {{ local -a found; found=(${{(f)"$({ask})"}}); compadd -a found; }}'
    return f"({ask})", ""


def _mark(parser: argparse.ArgumentParser, shell: str, functions: Mapping[str, tuple[str, str]]) -> None:
    """Say of each argument whose values imgfs knows how they are completed, and what commands are for."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help for choice in action._choices_actions}
            if action.choices.keys() == COMMANDS.keys():
                summaries |= _under_headings()
            for name, command in action.choices.items():
                command.description = summaries.get(name)  # which shells show: a line each
                _mark(command, shell, functions)
            continue
        for kind, metavars in KINDS.items():
            if action.metavar in metavars:
                action.complete = {shell: functions[kind][0]}  # type: ignore[attr-defined]


def _under_headings() -> dict[str, str]:
    """Return the summary of each command, behind its heading: shells list commands by their names alone."""
    return {
        name: f"{heading}: {command.summary}"
        for heading, commands in HEADINGS.items()
        for name, command in commands.items()
    }


def _date() -> str:
    """Return the pages' date: $SOURCE_DATE_EPOCH's, so that builds can be repeated, else today's."""
    return time.strftime("%Y-%m-%d", time.gmtime(Environment.read().source_date))


def write(prefix: Path) -> list[Path]:
    """Write all pages and completions below `prefix`; returns their paths relative to it."""
    written = []
    for path, text in pages():
        file = prefix / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.append(Path(path))
    return written


if __name__ == "__main__":
    write(Path(sys.argv[1]))
