"""Bounds of all that a model computes on whole segments of a ray, by running the model's own code once on them.

A segment is a straight line of inputs, x + slope * t with t in [-1, 1]. Every value v of the network is kept as three:

    |v(t) - offset - slope * t| <= error    for each t in [-1, 1]

Sums of products pass offset and slope on as they are; a ReLU or a maximum that may change its mind within the segment
adds to the error. v(t) is what any float64 computation says, in whichever order it adds: each operation widens the
error by what rounding can do in any order, both to v and to these three numbers themselves. Convolutions by Fourier
transforms or Winograd's method, which no float64 convolution on a CPU is, would round otherwise.

`OnSegments` is the tensor that carries the three. A model runs on it as on any other, its own `forward`, loops and
functions included; each operation of torch that it comes to has a rule here, and one without a rule is refused. So
nothing is guessed about a model from its structure.
"""

from apem_fast.running.segments import bends, moving, products  # noqa: F401  (they register their rules)
from apem_fast.running.segments.margins import least_margins
from apem_fast.running.segments.values import UNIT, NotBounded, OnSegments

__all__ = ["UNIT", "NotBounded", "OnSegments", "least_margins"]
