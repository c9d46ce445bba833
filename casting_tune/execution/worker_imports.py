"""Imports of a first training step, which take seconds: Ray's workers do them at their start."""

import ray.tune  # noqa: F401

from casting_tune.models import registry

registry.timm_networks()
