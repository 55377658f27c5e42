"""Training: losses, augmentation, the average of weights, steps, runs that continue."""
