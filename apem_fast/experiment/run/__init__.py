"""A run: its options, blocks of images, rows that are kept, and many processes at work on them."""
