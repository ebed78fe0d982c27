"""What a mount says of itself, for Prometheus.

`exposition` makes text of a status, `endpoint` serves it, `address` says where.
"""
