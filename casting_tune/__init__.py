"""casting_tune: sweeps over networks, augmentations and batch sizes for the visual inspection of castings."""
