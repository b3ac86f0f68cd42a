"""A run: its options, its blocks of images, the tables that it keeps, and its processes."""
