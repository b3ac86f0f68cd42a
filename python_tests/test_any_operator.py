"""Every operator on tensors of any shape, strides, dtype and values: each backend against the reference definitions, to
the bit where nothing is summed; and these definitions against exact arithmetic, within the roundings they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch
from backends import Backend, every_backend, native_backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensors import DTYPES, moved
from torch import Tensor

from apem_fast.ops import reference
from apem_fast.ops.load import MUTATING, OPERATORS
from apem_fast.ops.reference import arithmetic_dtype

INF, NAN = math.inf, math.nan
KINDS = ("ordinary", "ties", "unit", "special", "denormal", "large")


class Drawn:
    """Draws what operators take."""

    def __init__(self, data: st.DataObject):
        self.data = data

    def of(self, *values: Any) -> Any:
        return self.data.draw(st.sampled_from(values))

    def sizes(self) -> tuple[int, int, int, int]:
        """(N, C, H, W), any of them 0 or 1; or wide enough for vectors and several tiles."""
        small = st.sampled_from([0, 1, 1, 2, 3, 5])
        n, c, h, w = (self.data.draw(small) for _ in range(4))
        return n, c, h, self.of(w, w, w, 8, 16, 37)

    def values(self, shape: tuple[int, ...], dtype: torch.dtype, kind: str | None = None) -> Tensor:
        """Contiguous values of a kind."""
        kind = kind or self.of(*KINDS)
        generator = torch.Generator().manual_seed(self.data.draw(st.integers(0, 2**31)))
        info = torch.finfo(dtype)
        if kind == "special":
            of = [0.0, -0.0, 1.0, -1.0, 0.5, INF, -INF, NAN, info.tiny, -info.tiny, info.tiny * info.eps, info.max]
            pool = torch.tensor(of, dtype=torch.float64)
            return pool[torch.randint(len(of), shape, generator=generator)].to(dtype)
        if kind == "ties":
            return (torch.randint(-3, 4, shape, generator=generator) / 4).to(dtype)
        if kind == "unit":
            return (torch.randint(0, 129, shape, generator=generator) / 128).to(dtype)
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (normal * {"ordinary": 1.0, "denormal": info.tiny, "large": 1000.0}[kind]).to(dtype)

    def laid_out(self, values: Tensor) -> Tensor:
        """The same values in any order of memory, with gaps, behind an offset, or some of them over and over."""
        order = self.data.draw(st.permutations(range(values.dim())))
        gaps = [self.of(1, 1, 2) for _ in order]
        repeated = [self.of(False, False, False, True) for _ in order]
        shape = values.shape
        for d, again in enumerate(repeated):
            values = values.narrow(d, 0, 1) if again and shape[d] > 1 else values
        room = [values.shape[d] * gaps[d] for d in order]
        offset = self.of(0, 1)
        memory = values.new_zeros(math.prod(room) + offset)[offset:].view(room)
        back = [order.index(d) for d in range(len(order))]
        view = memory.permute(back)[tuple(slice(None, None, gap) for gap in gaps)]
        return view.copy_(values).expand(shape)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, kind: str | None = None) -> Tensor:
        return self.laid_out(self.values(shape, dtype, kind))

    def whole(self, shape: tuple[int, ...], below: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.data.draw(st.integers(0, 2**31)))
        return self.laid_out(torch.randint(max(below, 1), shape, generator=generator))

    def truth(self, shape: tuple[int, ...]) -> Tensor:
        return self.laid_out(self.whole(shape, 2) > 0)

    def bounds(self) -> tuple[float | None, float | None]:
        return self.of((None, None), (None, None), (-0.5, None), (None, 0.25), (-0.5, 0.5), (0.0, 0.0), (-INF, INF))


class Images(Drawn):
    """Draws the arguments of one operator, which have sizes and a dtype in common."""

    def __init__(self, data: st.DataObject):
        super().__init__(data)
        self.dtype, (self.n, self.c, self.h, self.w) = self.of(*DTYPES), self.sizes()
        self.shape, self.channels = (self.n, self.c, self.h, self.w), self.of(1, self.c)

    def full(self, *kinds: str) -> Tensor:
        return self.tensor(self.shape, self.dtype, self.of(*kinds) if kinds else None)

    def a_map(self, count: int, *kinds: str) -> Tensor:
        shape = (count, self.channels, self.h, self.w)
        return self.tensor(shape, self.dtype, self.of(*kinds) if kinds else None)

    def signs(self) -> Tensor:
        drawn = self.of(False, True)
        return self.laid_out(self.whole(self.shape, 3).sub(1).to(torch.int8)) if drawn else self.full()

    def forces(self) -> tuple[float, float, float]:
        return tuple(self.of(0.0, 1.0, 0.3, 1e-3) for _ in range(3))

    def directed(self) -> tuple[Any, ...]:
        return self.a_map(self.n, *MODERATE), self.signs(), self.of(False, True)

    def perturbed(self, count: int) -> tuple[Any, ...]:
        steps = self.of((count,), (self.n, count))
        return self.full(), self.full(), self.tensor(steps, self.of(*DTYPES)), *self.bounds()

    def perturbed_backward(self) -> tuple[Any, ...]:
        count = self.of(0, 1, 3)
        return self.tensor((self.n, count, self.c, self.h, self.w), self.dtype), *self.perturbed(count)

    def probes(self) -> tuple[Any, ...]:
        maps, count = self.of(1, 2, 4), self.of(0, 1, 5) if self.n else 0
        norm, epsilon, level = (self.tensor((count,), torch.float64, self.of(*KINDS)) for _ in range(3))
        rows = self.whole((count,), self.n), self.whole((count,), maps), self.truth((count,))
        low = self.of(None, self.dtype, torch.float16, torch.bfloat16)
        return self.full(), self.a_map(maps), self.signs(), norm, *rows, epsilon, level, *self.bounds(), low

    def written_into(self) -> tuple[Any, ...]:
        """The tensor that is written first; it has no gaps."""
        *inputs, low = self.probes()
        out = self.values((len(inputs[3]), *self.shape[1:]), low or self.dtype)
        layout = self.of(torch.contiguous_format, torch.channels_last)
        return out.contiguous(memory_format=layout), *inputs

    def logits(self) -> tuple[Tensor, Tensor]:
        classes = self.of(2, 3, 33, 70)
        return self.tensor((self.n, classes), self.dtype), self.whole((self.n,), classes)

    def answers(self) -> tuple[Any, ...]:
        logits, labels = self.logits()
        return logits, labels, self.of(None, self.truth(tuple(logits.shape)))

    def flips(self) -> tuple[Any, ...]:
        epsilon = self.tensor(self.of((self.n, self.w), (self.w,)), self.of(torch.float32, torch.float64))
        return self.whole((self.n, self.w), 2), self.whole((self.n,), 2), epsilon

    def attribution(self) -> tuple[Any, ...]:
        percentile = self.of(None, 0.0, 50.0, 99.0, 100.0, self.data.draw(st.floats(0, 100)))
        return self.full(), self.of(None, self.a_map(self.n)), percentile, self.of("sum", "keep")

    def levels(self) -> tuple[Any, ...]:
        size = self.of((3,), (0,), (self.n, 2))
        threshold = self.tensor(size, self.of(torch.float32, torch.float64), self.of("unit", "special"))
        return self.full(*MODERATE), threshold

    def penalised(self) -> tuple[Any, ...]:
        return self.full(*MODERATE, "large"), self.full(*MODERATE, "large"), *self.forces()

    def stepped(self) -> tuple[Any, ...]:
        region = self.truth((self.of(1, self.n), self.of(1, self.c), self.h, self.w))
        zero, (rate, damping, _) = self.of(0.0, 0.0, 0.3), self.forces()
        original = self.full() if zero else self.of(None, self.full())
        previous, region = self.of(None, self.full()), self.of(None, region)
        return self.full(), self.full(), previous, region, rate, damping, *self.bounds(), original, zero


# Not of any size where something is summed: if the sum overflows, the order of summation decides whether it does.
MODERATE = ("ordinary", "ties", "unit", "denormal")

ARGUMENTS: dict[str, Callable[[Images], tuple[Any, ...]]] = {
    "directed_relevance": Images.directed,
    "directed_relevance_backward": lambda d: (d.full("ties"), *d.directed()),
    "perturb": lambda d: d.perturbed(d.of(0, 1, 3)),
    "perturb_backward": Images.perturbed_backward,
    "perturb_probes": Images.probes,
    "perturb_probes_into": Images.written_into,
    "label_margin": Images.logits,
    "label_margin_backward": lambda d: (d.tensor((d.n,), d.dtype), *d.logits()),
    "probe_answers": Images.answers,
    "first_flip": Images.flips,
    "relevance_map": Images.attribution,
    "zero_levels": Images.levels,
    "attack_penalty": Images.penalised,
    "attack_penalty_backward": lambda d: (d.tensor((d.n,), torch.float64), *d.penalised()),
    "attack_step": Images.stepped,
    "saliency_map": lambda d: (d.full(), d.full()),
}


def summed(operator: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[float, float]:
    """By how much two orders of summation may differ in the result: relative, and absolute."""
    inputs = [a for a in arguments if isinstance(a, Tensor)]
    terms = max([2.0, *(float(t[:1].numel()) for t in inputs if t.dim() == 4)])
    of_sum = 4 * terms * 2.0**-53  # each of two orders is off by less than terms roundings
    info = torch.finfo(dtype)
    if operator in ("attack_penalty", "zero_levels"):
        return of_sum, 0.0
    # The sum is rounded, what is divided by it is, and so is the result: a unit in the last place each.
    return of_sum + 2 * torch.finfo(arithmetic_dtype(dtype)).eps + 2 * info.eps, info.tiny * info.eps


def backward_scale(arguments: tuple[Any, ...]) -> float:
    """The largest term of the derivative's sum."""
    grad, relevance, gradient, irrelevance = arguments
    value = 1 - relevance.double() if irrelevance else relevance.double()
    norm = value.abs().sum(dim=(1, 2, 3)) * (gradient.shape[1] if relevance.shape[1] == 1 else 1)
    largest = grad.double().abs().amax() * max(1, gradient.shape[1]) if grad.numel() else torch.tensor(0.0)
    return float((largest / norm[norm > 0].amin()) if (norm > 0).any() else largest)


SUMMED = ("directed_relevance", "directed_relevance_backward", "attack_penalty", "zero_levels")


def assert_agrees(operator: str, arguments: tuple[Any, ...], actual: Any, expected: Any) -> None:
    pairs = zip(actual, expected) if isinstance(expected, tuple) else [(actual, expected)]
    for position, (one, other) in enumerate(pairs):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.stride() == other.stride() or one.numel() < 2
        relative = absolute = 0.0
        if operator in SUMMED and not (operator == "zero_levels" and position == 0):
            relative, absolute = summed(operator, arguments, one.dtype)
        if operator == "directed_relevance_backward" and one.numel():
            eps = torch.finfo(one.dtype).eps + torch.finfo(arithmetic_dtype(one.dtype)).eps
            absolute += 4 * eps * backward_scale(arguments)
        if operator == "saliency_map" and one.dtype == torch.float64 and one.numel():
            # torch's own square root in float64 may be off in the last place, which the rescaling magnifies.
            difference = arguments[0].double() - arguments[1].double()
            distance = difference.square().sum(1).sqrt().flatten(1)
            width = (distance.amax(1) - distance.amin(1)).nan_to_num(INF, INF, INF)
            steep = (distance.amax(1) / width)[width > 0].nan_to_num(1.0)
            absolute = 8 * 2.0**-52 * float(steep.amax() if len(steep) else 1)
        torch.testing.assert_close(one, other, rtol=relative, atol=absolute, equal_nan=True)


def result_of(source: Any, operator: str, arguments: tuple[Any, ...], device: str) -> Any:
    """Of an operator that writes into an argument, that argument, of which this is a copy."""
    arguments = tuple(moved(a, device) for a in arguments)
    if operator in MUTATING:
        arguments = (arguments[0].clone(), *arguments[1:])
        getattr(source, operator)(*arguments)
        return arguments[0].cpu()
    result = getattr(source, operator)(*arguments)
    return tuple(r.cpu() for r in result) if isinstance(result, tuple) else result.cpu()


@native_backend
@settings(max_examples=settings().max_examples * 2, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_backend_is_the_reference(backend: Backend, data: st.DataObject) -> None:
    operator = data.draw(st.sampled_from(OPERATORS))
    arguments = ARGUMENTS[operator](Images(data))
    kept = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    expected = result_of(reference, operator, arguments, "cpu")
    assert_agrees(operator, arguments, result_of(backend, operator, arguments, backend.device), expected)
    for one, before in zip(arguments, kept):  # nothing is written into
        assert not isinstance(one, Tensor) or torch.equal(one.nan_to_num(7.0), before.nan_to_num(7.0))


# -- exact arithmetic ------------------------------------------------------------------------------------------------


def fractions_of(tensor: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.double().flatten().tolist()]


def exact_directed(relevance: Tensor, gradient: Tensor, irrelevance: bool) -> Iterator[tuple[Fraction, int, Fraction]]:
    for values, slopes in zip(relevance.expand_as(gradient), gradient):
        applied = [1 - v if irrelevance else v for v in fractions_of(values)]
        norm = sum(map(abs, applied))
        for v, g in zip(applied, fractions_of(slopes)):
            sign = (g > 0) - (g < 0)
            size = (v / norm) if norm else Fraction(0)
            yield size * sign, 3 + irrelevance, abs(size) + (1 / norm if irrelevance and norm else 0)


def exact_perturb(images: Tensor, direction: Tensor, epsilon: Tensor) -> Iterator[tuple[Fraction, int, Fraction]]:
    for x, d in zip(images, direction):
        for e in fractions_of(epsilon):
            for a, b in zip(fractions_of(x), fractions_of(d)):
                yield a + e * b, 3, abs(a) + abs(e * b)


def exact_margin(logits: Tensor, labels: Tensor) -> Iterator[tuple[Fraction, int, Fraction]]:
    for row, label in zip(logits, labels.tolist()):
        values = fractions_of(row)
        other = max(v for c, v in enumerate(values) if c != label)
        yield values[label] - other, 1, abs(values[label]) + abs(other)


def exact_penalty(
    a: Tensor, b: Tensor, tv: float, zero: float, diff: float
) -> Iterator[tuple[Fraction, int, Fraction]]:
    for one, other in zip(a, b):
        c, h, w = one.shape
        e = [p - q for p, q in zip(fractions_of(one), fractions_of(other))]

        def at(k: int, i: int, j: int, e: list[Fraction] = e, h: int = h, w: int = w) -> Fraction:
            return e[(k * h + i) * w + j]

        pixels = [(k, i, j) for k in range(c) for i in range(h - 1) for j in range(w - 1)]
        varied = sum((abs(at(*p) - at(p[0], p[1] + 1, p[2])) + abs(at(*p) - at(p[0], p[1], p[2] + 1))) for p in pixels)
        changed = sum(any(at(k, i, j) != 0 for k in range(c)) for i in range(h) for j in range(w))
        squared = sum(v * v for v in e) / max(len(e), 1)
        size = sum(abs(Fraction(v)) for t in (one, other) for v in t.double().flatten().tolist())
        total = Fraction(tv) * varied + Fraction(zero) * changed + Fraction(diff) * squared
        yield (
            total,
            8 + 4 * len(e),
            4 * Fraction(tv) * size + Fraction(zero) * changed + 4 * Fraction(diff) * size * size,
        )


def exact_step(
    a: Tensor, g: Tensor, p: Tensor, rate: float, damping: float
) -> Iterator[tuple[Fraction, int, Fraction]]:
    for v, s, m in zip(*(fractions_of(t) for t in (a, g, p))):
        yield v - (Fraction(rate) * s + Fraction(damping) * m), 6, abs(v) + abs(Fraction(rate) * s) + abs(damping * m)


def exactly(
    operator: str, d: Drawn, dtype: torch.dtype
) -> tuple[tuple[Any, ...], Iterator[tuple[Fraction, int, Fraction]]]:
    """Arguments, and for each value of the result: exactly, how many roundings were made, of what size at most."""
    shape = (d.of(1, 2), d.of(1, 3), d.of(1, 2, 4), d.of(1, 3, 5))
    kind = d.of("ordinary", "ties", "unit")

    def full() -> Tensor:
        return d.tensor(shape, dtype, kind)

    if operator == "directed_relevance":
        relevance, gradient, inverse = d.tensor(shape, dtype, "unit"), full(), d.of(False, True)
        return (relevance, gradient, inverse), exact_directed(relevance, gradient, inverse)
    if operator == "perturb":
        images, direction, epsilon = full(), full(), d.tensor((d.of(1, 3),), torch.float64, kind)
        return (images, direction, epsilon), exact_perturb(images, direction, epsilon)
    if operator == "label_margin":
        logits, labels = d.tensor((3, 5), dtype, kind), d.whole((3,), 5)
        return (logits, labels), exact_margin(logits, labels)
    if operator == "attack_penalty":
        arguments = (full(), full(), d.of(0.0, 0.3), d.of(0.0, 0.7), d.of(0.0, 1.1))
        return arguments, exact_penalty(*arguments)
    value, gradient, previous, rate, damping = full(), full(), full(), d.of(0.3, 1.0), d.of(0.0, 0.9)
    return (value, gradient, previous, None, rate, damping), exact_step(value, gradient, previous, rate, damping)


EXACT: tuple[str, ...] = ("directed_relevance", "perturb", "label_margin", "attack_penalty", "attack_step")


@every_backend
@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_value_is_off_by_more_than_its_roundings(backend: Backend, data: st.DataObject) -> None:
    operator, dtype = data.draw(st.sampled_from(EXACT)), data.draw(st.sampled_from(DTYPES))
    arguments, expected = exactly(operator, Drawn(data), dtype)
    result = backend.run(operator, *arguments)
    result = result[0] if isinstance(result, tuple) else result
    unit, info = torch.finfo(arithmetic_dtype(dtype)).eps, torch.finfo(result.dtype)
    for came, (value, roundings, size) in zip(result.double().flatten().tolist(), expected, strict=True):
        if math.isnan(came):
            assert operator == "directed_relevance" and size == 0  # a map that is 0 throughout has no direction
            continue
        allowed = roundings * unit * float(size) + info.eps * abs(float(value)) + info.tiny
        assert abs(Fraction(came) - value) <= Fraction(allowed), (operator, arguments)
