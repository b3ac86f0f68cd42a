"""Bounds of everything that a model computes on whole segments of a ray, by running its own code once on them.

A segment is a straight line of inputs, x + slope * t with t in [-1, 1]. Every value v of the network is kept as three:

    |v(t) - offset - slope * t| <= error    for each t in [-1, 1]

Sums of products apply to offset and slope directly; a ReLU or a maximum that may switch within the segment adds to the
error. v(t) is the result of any float64 computation, in any order of additions: each operation widens the error by the
rounding that any order can cause, in v and in these three numbers. Convolutions by Fourier transforms or Winograd's
method would round differently, but no float64 convolution on a CPU uses these.

`OnSegments` is the tensor that carries the three. A model runs on it as on any other tensor, with its own `forward`,
loops and functions. Each operation of torch that it calls has a rule here, and one without a rule is refused. So
nothing is guessed from the structure of a model.
"""

from apem_fast.running.segments import bends, moving, products  # noqa: F401  (they register their rules)
from apem_fast.running.segments.margins import least_margins
from apem_fast.running.segments.values import UNIT, NotBounded, OnSegments

__all__ = ["UNIT", "NotBounded", "OnSegments", "least_margins"]
