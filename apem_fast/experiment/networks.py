"""The documented import path of `Network`, which your own function returns to bring a network to a run."""

from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.networks import load_network

__all__ = ["Network", "load_network"]
