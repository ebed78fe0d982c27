"""Configuration from environment variables.

The functions take the environment as a mapping, so that a test can pass its own; `Environment.read()` reads
the process's once, at the start. Every path is absolute from then on: daemons leave the caller's directory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from imgfs.variables import absolute, account, config_home, home, store_directory, variables

_SYSTEM_CONFIG = Path("/etc")
_SYSTEM_CACHE = Path("/var/cache")
_ROOTS_RUNTIME = Path("/run/containers/0")  # of podman and skopeo, for root in a service, a job or `su`


class RegistriesConf(NamedTuple):
    """A registries.conf and the directories whose files add to it; `named` by the user, it has to exist.

    `aliases` are the files in which podman keeps the registries chosen for short names.
    """

    path: Path
    added: tuple[Path, ...] = ()
    named: bool = False
    aliases: tuple[Path, ...] = ()


class AuthText(NamedTuple):
    """Credentials in an environment variable, `name`, in the format of a credentials file.

    It counts before docker's file, or, as docker has it in GitLab's jobs, `last`.
    """

    name: str
    text: str
    last: bool = False

    def __repr__(self) -> str:
        """Return what may be seen of it."""
        return f"AuthText({self.name!r})"


class CredentialProviders(NamedTuple):
    """kubelet's credential providers: their configuration, and the directory that their programs are in."""

    config: Path
    directory: Path


AuthSource = Path | AuthText | CredentialProviders


class RegistryFiles(NamedTuple):
    """The configuration files of registries, in order of precedence; none of them need exist.

    `hosts` are containerd's directories `certs.d` with a hosts.toml for a registry, `registries` containers'
    registries.conf, of which the first that exists counts, `certificates` the `certs.d` of containers and
    docker, which all count.
    """

    hosts: tuple[Path, ...] = ()
    registries: tuple[RegistriesConf, ...] = ()
    certificates: tuple[Path, ...] = ()


class SignaturePlaces(NamedTuple):
    """Where registries.d may be, of which the first that is there counts; and the `lookaside` store that
    counts where it names none."""

    directories: tuple[Path, ...] = ()
    lookaside: Path = Path("/var/lib/containers/sigstore")


class Peers(NamedTuple):
    """Other machines' imgfs that may have layers: URLs, and PEM files of TLS.

    `ca_file` has the authorities of their certificates, `certificate` and `key` are this machine's own.
    """

    urls: tuple[str, ...] = ()
    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class Environment(NamedTuple):
    """Paths and settings of this user. `ca_bundle` is a file of PEM certificates, None for the usual ones;
    `source_date` is the creation time of new images, in seconds since the epoch."""

    store_root: Path
    auth_files: tuple[Path, ...]
    ca_bundle: Path | None
    source_date: int | None = None
    registry_files: RegistryFiles = RegistryFiles()
    auth_text: AuthText | None = None
    providers: CredentialProviders | None = None
    signature_places: SignaturePlaces = SignaturePlaces()
    peers: Peers = Peers()

    @property
    def auth_sources(self) -> tuple[AuthSource, ...]:
        """Return the sources of credentials, in order of precedence: programs, files, $DOCKER_AUTH_CONFIG."""
        programs = (self.providers,) if self.providers else ()
        return (*programs, *self._kept_sources())

    def _kept_sources(self) -> tuple[AuthSource, ...]:
        if self.auth_text is None:
            return self.auth_files
        before = len(self.auth_files) - (not self.auth_text.last)  # docker's own file is the last
        return (*self.auth_files[:before], self.auth_text, *self.auth_files[before:])

    @classmethod
    def read(cls) -> Environment:
        """Read this process's environment."""
        environ = variables()
        euid = account(environ, os.geteuid())
        store = store_root(environ, euid)
        return cls(
            store,
            auth_files(environ, euid),
            ca_bundle(environ),
            source_date(environ),
            registry_files(environ, euid),
            auth_text(environ),
            credential_providers(environ),
            signature_places(environ, euid),
            peers(environ),
        )


def auth_files(environ: Mapping[str, str], euid: int) -> tuple[Path, ...]:
    """Return the credentials files, in order of precedence (containers-auth.json(5); docker login).

    The files need not exist. Where no session has been begun for it, $XDG_RUNTIME_DIR is not set for root.
    """
    explicit, docker = environ.get("REGISTRY_AUTH_FILE"), environ.get("DOCKER_CONFIG")
    runtime = _absolute(environ, "XDG_RUNTIME_DIR")
    config = _config_home(environ)
    found = [
        Path(explicit).absolute() if explicit else None,
        runtime / "containers/auth.json" if runtime else _ROOTS_RUNTIME / "auth.json" if euid == 0 else None,
        config / "containers/auth.json",
        Path(docker).absolute() / "config.json" if docker else _home(environ) / ".docker/config.json",
    ]
    return tuple(path for path in found if path)


def auth_text(environ: Mapping[str, str]) -> AuthText | None:
    """$DOCKER_AUTH_CONFIG, a credentials file's text (docker's CLI); GitLab sets it for its own runner."""
    text = environ.get("DOCKER_AUTH_CONFIG", "")
    last = environ.get("GITLAB_CI", "").lower() == "true"
    return AuthText("$DOCKER_AUTH_CONFIG", text, last) if text.strip() else None


def credential_providers(environ: Mapping[str, str]) -> CredentialProviders | None:
    """$IMGFS_CREDENTIAL_PROVIDER_CONFIG and …_BIN_DIR, as kubelet's --image-credential-provider-… say it.

    If no directory is given, the programs are beside the configuration's file, or files.
    """
    config = environ.get("IMGFS_CREDENTIAL_PROVIDER_CONFIG")
    if not config:
        return None
    path = Path(config).absolute()
    programs = environ.get("IMGFS_CREDENTIAL_PROVIDER_BIN_DIR")
    beside = path if path.is_dir() else path.parent
    return CredentialProviders(path, Path(programs).absolute() if programs else beside)


def registry_files(environ: Mapping[str, str], euid: int = 1) -> RegistryFiles:
    """Return where mirrors, short names and certificates are configured: the user's files, the system's.

    $IMGFS_ETC is where the system's are, /etc if it is not set. The names are those of containerd's hosts.md,
    containers-registries.conf(5) and .conf.d(5), containers-certs.d(5), and of rootless docker and nerdctl.
    """
    user, system = _config_home(environ), _absolute(environ, "IMGFS_ETC") or _SYSTEM_CONFIG
    both = (user, system)
    return RegistryFiles(
        hosts=(user / "imgfs/certs.d", *(etc / "containerd/certs.d" for etc in both)),
        registries=tuple(
            conf._replace(aliases=_aliases(environ, euid))
            for conf in _registries(environ.get("CONTAINERS_REGISTRIES_CONF"), user, system)
        ),
        certificates=tuple(place / name / "certs.d" for name in ("containers", "docker") for place in both),
    )


def peers(environ: Mapping[str, str]) -> Peers:
    """$IMGFS_PEERS, URLs with spaces between, and the files that $IMGFS_PEER_CA, …_CERT and …_KEY name."""
    names = ("IMGFS_PEER_CA", "IMGFS_PEER_CERT", "IMGFS_PEER_KEY")
    files = [Path(environ[name]).absolute() if environ.get(name) else None for name in names]
    return Peers(tuple(environ.get("IMGFS_PEERS", "").split()), *files)


def _registries(named: str | None, user: Path, system: Path) -> tuple[RegistriesConf, ...]:
    """Return the candidates for registries.conf; drop-ins of the system's do not go with the user's."""
    users, systems = (place / "containers/registries.conf" for place in (user, system))
    added = tuple(path.with_name("registries.conf.d") for path in (systems, users))
    if named:
        return (RegistriesConf(Path(named).absolute(), added, named=True),)
    return (RegistriesConf(users, added[1:]), RegistriesConf(systems, added))


def _aliases(environ: Mapping[str, str], euid: int) -> tuple[Path, ...]:
    """Return where podman keeps what was chosen for short names, root's in the system's cache."""
    users = _absolute(environ, "XDG_CACHE_HOME") or _home(environ) / ".cache"
    places = (_SYSTEM_CACHE, users) if euid == 0 else (users,)
    return tuple(place / "containers/short-name-aliases.conf" for place in places)


def store_root(environ: Mapping[str, str], euid: int) -> Path:
    """Return the cache directory, of this user (`variables.store_directory`)."""
    return Path(store_directory(environ, euid))


def policy_files(environ: Mapping[str, str]) -> tuple[Path, Path]:
    """Return where a policy.json may be, the first that is there counts (containers-policy.json(5))."""
    system = _absolute(environ, "IMGFS_ETC") or _SYSTEM_CONFIG
    return _config_home(environ) / "containers/policy.json", system / "containers/policy.json"


def signature_places(environ: Mapping[str, str], euid: int) -> SignaturePlaces:
    """Return where signatures are looked for (containers-registries.d(5)): XDG's variables do not count."""
    system = _absolute(environ, "IMGFS_ETC") or _SYSTEM_CONFIG
    directories = (_home(environ) / ".config/containers/registries.d", system / "containers/registries.d")
    if account(environ, euid) == 0:
        return SignaturePlaces(directories)
    return SignaturePlaces(directories, _home(environ) / ".local/share/containers/sigstore")


def podman_storage(environ: Mapping[str, str], euid: int) -> tuple[tuple[Path, ...], Path]:
    """Return the files that may say where podman's store is, the first there counts, and where it is else.

    As containers-storage.conf(5) has it.
    """
    explicit = environ.get("CONTAINERS_STORAGE_CONF")
    if account(environ, euid) == 0:
        files = [Path("/etc/containers/storage.conf"), Path("/usr/share/containers/storage.conf")]
        root = Path("/var/lib/containers/storage")
    else:
        files = [_config_home(environ) / "containers/storage.conf"]
        data = _absolute(environ, "XDG_DATA_HOME") or _home(environ) / ".local/share"
        root = data / "containers/storage"
    return (Path(explicit).absolute(),) if explicit else tuple(files), root


def podman_images(environ: Mapping[str, str], euid: int) -> Path:
    """Return where images for podman are mounted: for root, or the user who ran `podman unshare`."""
    if account(environ, euid) == 0:
        return Path("/var/lib/imgfs/podman")
    return (_absolute(environ, "XDG_DATA_HOME") or _home(environ) / ".local/share") / "imgfs/podman"


def docker_sockets(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return where docker may listen: $DOCKER_HOST, else the system's socket and a rootless docker's."""
    if explicit := environ.get("DOCKER_HOST"):
        return (explicit,)
    runtime = _absolute(environ, "XDG_RUNTIME_DIR")
    sockets = (Path("/var/run/docker.sock"), *([runtime / "docker.sock"] if runtime else []))
    return tuple(f"unix://{socket}" for socket in sockets)


def containerd_place(environ: Mapping[str, str]) -> tuple[Path, str]:
    """Return containerd's socket and the namespace that is meant without one, as ctr finds them."""
    address = environ.get("CONTAINERD_ADDRESS") or "/run/containerd/containerd.sock"
    return Path(address.removeprefix("unix://")).absolute(), environ.get("CONTAINERD_NAMESPACE") or "default"


def csi_endpoint(environ: Mapping[str, str]) -> str | None:
    """Return where a driver of CSI is to answer, as drivers of Kubernetes are told."""
    return environ.get("CSI_ENDPOINT") or None


def ca_bundle(environ: Mapping[str, str]) -> Path | None:
    """Return the certificates to trust instead of the usual: $SSL_CERT_FILE, else $REQUESTS_CA_BUNDLE."""
    named = environ.get("SSL_CERT_FILE") or environ.get("REQUESTS_CA_BUNDLE")
    return Path(named).absolute() if named else None


def source_date(environ: Mapping[str, str]) -> int | None:
    """$SOURCE_DATE_EPOCH, for reproducible builds; what is no number does not count."""
    text = environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isdecimal() and len(text) < 12 else None


def _absolute(environ: Mapping[str, str], name: str) -> Path | None:
    """$name if it is an absolute path."""
    path = absolute(environ, name)
    return Path(path) if path else None


def _config_home(environ: Mapping[str, str]) -> Path:
    return Path(config_home(environ))


def _home(environ: Mapping[str, str]) -> Path:
    return Path(home(environ))
