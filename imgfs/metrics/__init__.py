"""A mount's status, for Prometheus.

exposition  makes the text of a status
endpoint    parses an address, and serves the text there
"""
