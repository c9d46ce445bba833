"""What a first training step imports, for seconds: Ray's workers do it at their start, while the driver goes on."""

import ray.tune  # noqa: F401

from casting_tune.models import registry

registry.timm_networks()
