"""Signatures of images: cosign's, found beside an image and verified by a key; and containers' policy.json.

`attached` finds what is attached to a manifest; `simple_signing` and `dsse` read what was signed, `keys`
verifies it; `cosign` puts these together. `policy` reads a policy.json(5), `identity` compares names, and
`evaluate` decides. A signature counts for the digest in what was signed, never for a name it was found under.
"""
