"""The experiments: presets, the sweep over skipped steps, scores compared, tables, plots."""
