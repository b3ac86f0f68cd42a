"""What is explained: networks and their weights, images and what they show, and which of them take part."""
