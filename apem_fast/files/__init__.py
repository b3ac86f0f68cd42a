"""Files that are whole, say when they are damaged, and do not fill the memory; pictures inside a page."""
