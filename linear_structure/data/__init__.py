"""Where images come from: known names, archives, folders, zips and arrays."""
