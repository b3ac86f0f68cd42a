"""The explanation filter over photographs and over the maps of a run."""
