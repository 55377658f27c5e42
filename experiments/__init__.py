"""The experiments: presets, the sweep over skipped steps, comparisons of scores, and their plots."""
