"""How commands connect to a registry: by their options, the environment and the configuration files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.config import Environment
from imgfs.oci.reference import Reference, RegistryReference
from imgfs.transport.connect import open_source
from imgfs.transport.source import Source

if TYPE_CHECKING:
    import argparse  # only: a process that connects for another has no parser

    from imgfs.registry.config.resolver import Resolver
    from imgfs.registry.retry import Timeouts

_STEPS = 3  # that may fail one after the other before a read does
_HURRY = 3.0  # seconds for each step of asking a registry that something can stand in for


class Connection(NamedTuple):
    """What a command's options say of how to connect to a registry."""

    plain_http: bool
    insecure: bool
    tls_ca: str | None
    read_timeout: float | None
    peers: tuple[str, ...]

    @classmethod
    def of(cls, options: argparse.Namespace, registry: str) -> Connection:
        """Return it for a registry, of which configuration files may say more."""
        said = options_for(options, registry)
        peers = tuple(getattr(said, "peers", ()))
        return cls(said.plain_http, said.insecure, said.tls_ca, said.read_timeout, peers)


def connect_to(
    reference: Reference, options: argparse.Namespace, environment: Environment, *, hurried: bool = False
) -> Source:
    """Open the source of an image as the options of its command say; `hurried`: for one short attempt."""
    if not isinstance(reference, RegistryReference):
        from imgfs.cli.options import open_store

        return open_source(reference, open_store=partial(open_store, options, environment))
    how = Connection.of(options, reference.registry)
    return connect_to_registry(reference, how, environment, hurried=hurried)


def connect_to_registry(
    reference: RegistryReference, how: Connection, environment: Environment, *, hurried: bool = False
) -> Source:
    """Open the source of an image in a registry; `hurried`: for one short attempt."""
    return open_source(
        reference,
        resolver=resolver_of(how, environment),
        auth_files=environment.auth_sources,
        timeouts=timeouts_of(how.read_timeout, hurried=hurried),
        ca_bundle=environment.ca_bundle,
        peers=environment.peers._replace(urls=(*environment.peers.urls, *how.peers)),
    )


def options_for(options: argparse.Namespace, registry: str) -> argparse.Namespace:
    """Return the options with what the configuration files say of connections to one registry."""
    import argparse

    said = getattr(options, "registries", {}).get(registry, {})
    return argparse.Namespace(**{**vars(options), **said}) if said else options


def resolver_of(options: argparse.Namespace | Connection, environment: Environment) -> Resolver:
    """Return the resolver of registries' endpoints, by the options and the configuration files."""
    from imgfs.registry.config.resolver import Resolver, TlsOptions

    ca_file = Path(options.tls_ca).absolute() if options.tls_ca else None
    asked = TlsOptions(plain_http=options.plain_http or None, insecure=options.insecure, ca_file=ca_file)
    return Resolver(environment.registry_files, asked)


def timeouts_of(seconds: float | None, *, hurried: bool = False) -> Timeouts:
    """Return the timeouts for --read-timeout: no step takes longer than the whole."""
    from imgfs.registry.retry import Timeouts

    usual = Timeouts()
    if hurried:
        wait = min(_HURRY, seconds or _HURRY)
        return Timeouts(connect=wait, read=wait, deadline=wait, tries=1)
    if seconds is None:
        return usual
    connect, read = min(usual.connect, seconds), min(usual.read, seconds / _STEPS)
    return usual._replace(connect=connect, read=read, deadline=seconds, helper=min(usual.helper, seconds))
