"""Data sets of image files into bags: each importer says which files are which frame, `frames` writes them."""
