"""The table of commands. It has their summaries, so `imgfs --help` imports no command."""

from __future__ import annotations

from collections import namedtuple

Command = namedtuple("Command", ("module", "summary"))
"""The module of `imgfs.cli` whose function add_COMMAND describes a command, and the command's summary."""

HEADINGS = {
    "mounts": {
        "mount": Command("mount", "mount an image"),
        "umount": Command("umount", "unmount"),
        "ps": Command("ps", "list the mounts and the containers"),
        "status": Command("status", "show what a mount has fetched and served"),
        "upgrade": Command("upgrade", "hand mounts over to this version of imgfs, while they are in use"),
    },
    "containers": {
        "run": Command("container_options", "run a container of an image"),
        "bundle": Command("bundle", "make an OCI runtime bundle of an image, for another engine"),
        "exec": Command("exec", "run a command in a container that runs"),
        "logs": Command("logs", "show the output of a detached container"),
        "stop": Command("stop", "stop containers by their stop signal"),
        "kill": Command("stop", "send a signal to containers"),
        "wait": Command("stop", "wait for the end of containers, and show their exit codes"),
        "rm": Command("stop", "remove containers"),
        "container": Command("container_group", "list and inspect containers"),
        "volume": Command("volume", "list, make and remove volumes with names"),
    },
    "look inside an image": {
        "ls": Command("look", "list files of an image without mounting it"),
        "cat": Command("look", "write files of an image to standard output"),
        "tree": Command("tree", "show the files of an image as a tree"),
        "browse": Command("browse", "browse an image, or how two images differ, on the terminal"),
        "stat": Command("stat", "show the metadata of files of an image"),
        "find": Command("find", "find files of an image"),
        "du": Command("du", "sum the sizes of files of an image"),
        "grep": Command("grep", "search files of an image for lines"),
        "sha256": Command("sha256", "show digests of files of an image"),
        "cp": Command("cp", "copy files out of an image"),
        "export": Command("export", "write the files of an image as one tar"),
    },
    "compare and account": {
        "inspect": Command("inspect", "show digest, platform, config, layers and history of an image"),
        "history": Command("history", "show the steps that made an image, and their layers"),
        "which": Command("which", "show which layers brought, changed and deleted a file"),
        "diff": Command("diff", "list what a scratch has changed, or how two images differ"),
        "shared": Command("shared", "show what images have in common"),
        "waste": Command("waste", "show what the layers of an image store for nothing"),
        "report": Command("report", "write a page of HTML about an image or a mount"),
        "packages": Command("packages", "list the packages that are installed in an image"),
        "sbom": Command("sbom", "show the bill of materials that is attached to an image"),
        "verify": Command("verify", "check an image against its digests, a policy and its signatures"),
    },
    "make and move images": {
        "scratch": Command("scratch", "list, reset or remove scratches"),
        "commit": Command("commit", "make an image of what a scratch shows"),
        "copy": Command("copy", "copy an image to a registry, an OCI layout or an archive"),
        "push": Command("copy", "copy an image to a registry"),
        "pull": Command("pull", "fetch an image whole, to use it offline"),
        "index": Command("index", "index images, and publish the indexes beside them"),
    },
    "registries": {
        "platforms": Command("platforms", "list the platforms of an image"),
        "tags": Command("tags", "list the tags of a repository, a layout or an archive"),
        "catalog": Command("catalog", "list the repositories of a registry, if it allows that"),
        "login": Command("login", "keep a user name and password for a registry"),
        "logout": Command("login", "forget what is kept for a registry"),
    },
    "engines": {
        "snapshotter": Command("snapshotter", "serve images to containerd and Kubernetes, lazily"),
        "cri": Command("cri", "learn kubelet's image pull credentials, for the snapshotter"),
        "csi": Command("csi", "serve images to Kubernetes as volumes (CSI)"),
        "podman": Command("podman", "serve images to podman, buildah and CRI-O, lazily"),
    },
    "imgfs itself": {
        "store": Command("store", "show, limit, prune or check what is kept in the cache directory"),
        "serve": Command(
            "serve", "keep imgfs loaded, so that mounts and containers begin at once and share memory"
        ),
        "help": Command("help", "show the manual"),
        "version": Command("version", "show imgfs's version and the machine's FUSE"),
    },
}  # in the order of the help

COMMANDS = {name: command for commands in HEADINGS.values() for name, command in commands.items()}
