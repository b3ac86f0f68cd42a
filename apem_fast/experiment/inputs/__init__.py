"""The inputs of a run: networks and their weights, images and their classes, and the choice of images."""

from apem_fast.extras import require

require("experiment", "a run")
