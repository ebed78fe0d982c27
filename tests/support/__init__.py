"""What the tests share: servers, images, mounts, oracles and pytest plugins."""
