"""Which spans a workload reads: kept by image and name, and found again for the next mount."""

from __future__ import annotations

from imgfs.content.content import Content
from imgfs.content.profile import Profile, origin_of
from imgfs.errors import InvalidImage
from imgfs.image.resolve import Resolved
from imgfs.image.trust import Trust
from imgfs.oci.policy import Policy
from imgfs.oci.reference import parse_reference
from imgfs.store.store import Store

BY_ITSELF = "auto"  # the profile that every mount records unless it is told another name
DEFAULT = "default"  # the one that is replayed rather than that, if there is one
NONE = "none"  # no profile: what somebody says who wants none


def profile_for(resolved: Resolved, store: Store, name: str | None) -> Profile | None:
    """The profile to replay: `name`, else the one for everybody, else what the last mounts have read.

    None if there is none, or if the one there is cannot be read. What another repository than the reference's
    says of the image does not count.
    """
    ours = ("", Trust.of(parse_reference(resolved.reference), Policy.ANY).origin)
    for one in [name] if name else [DEFAULT, BY_ITSELF]:
        body = store.profile(resolved.digest, one)
        if body is not None and origin_of(body) in ours:
            try:
                return Profile.from_json(body)
            except InvalidImage:
                return None
    return None


def keep_recorded(content: Content, resolved: Resolved, store: Store, name: str | None) -> None:
    """Keep what readers have touched, as `name`, or, as BY_ITSELF, before what earlier mounts have read.

    A short look at an image so does not make it forget what is usually done with it.
    """
    recorded = content.recorded()
    if not recorded.touches:
        return
    if name is None:
        earlier = profile_for(resolved, store, BY_ITSELF)
        if earlier:
            known = earlier.resolve(recorded.layers)
            recorded = recorded._replace(touches=tuple(dict.fromkeys([*recorded.touches, *known])))
    store.put_profile(resolved.digest, name or BY_ITSELF, recorded.to_json())
