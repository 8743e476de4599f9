"""From paths to arrays and back: files, their formats and geometry, label maps and what their values mean."""
