"""Files that are written whole, carry a checksum, and are not too large to open; pictures inside a page."""
