"""What is explained: networks and their weights, images and what they show, and which of them take part."""

from apem_fast.extras import require

require("experiment", "a run")
