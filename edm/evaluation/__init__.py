"""Distances between sets of images, and the feature networks that they are taken on."""
