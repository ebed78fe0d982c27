"""Signatures of images, by cosign and by GPG keys: found beside an image, verified; containers' policy.json.

`attached` finds what is attached to a manifest; `simple_signing` and `dsse` read what was signed, `keys`
verifies it; `cosign` puts these together. `stored` finds what containers/image stores beside an image, where
`registries_d` says, and `openpgp` verifies it. `policy` and `policy_keys` read a policy.json(5), `identity`
compares names, `sigstore` finds the key that a policy trusts, by `certificates` and by an entry in a log
(`rekor`), and `evaluate` decides. A signature counts for the digest in what was signed, never for a name it
was found under.
"""
