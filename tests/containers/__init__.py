"""`imgfs run` and `imgfs bundle`, with crun and runc, beside podman."""
