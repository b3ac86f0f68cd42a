"""The checks of each operator's inputs, for the reference definitions and for the fakes.

`csrc/checks.h` makes the same checks for the native kernels, with the same words; one table of bad calls tests both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(str(size) for size in tensor.shape) + ")"


def _require(holds: bool, operator: str, argument: str, expectation: str, came: object) -> None:
    if not holds:
        raise RuntimeError(f"{operator}: {argument} must {expectation} (got {came})")


def _dim(op: str, name: str, tensor: Tensor, shape: str, *dims: int) -> None:
    _require(tensor.dim() in dims, op, name, f"have shape {shape}", _shape(tensor))


def _floating(op: str, name: str, tensor: Tensor) -> None:
    _require(tensor.dtype in FLOATING, op, name, "be float32, float64, float16 or bfloat16", name_of(tensor.dtype))


def _dtype(op: str, name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    _require(tensor.dtype in dtypes, op, name, "be " + " or ".join(map(name_of, dtypes)), name_of(tensor.dtype))


def _sizes(op: str, name: str, tensor: Tensor, *shape: int) -> None:
    expected = "(" + ", ".join(map(str, shape)) + ")"
    _require(tuple(tensor.shape) == shape, op, name, f"have shape {expected}", _shape(tensor))


def _device(op: str, first: tuple[str, Tensor], others: Sequence[tuple[str, Tensor | None]]) -> None:
    for name, tensor in others:
        if tensor is not None:
            _require(
                tensor.device == first[1].device,
                op,
                name,
                f"be on the device of {first[0]}, {first[1].device}",
                tensor.device,
            )


def _map_of(op: str, name: str, relevance: Tensor, maps: int, like_name: str, like: Tensor) -> None:
    """`relevance` is (maps, 1 or C, H, W) for `like` (N, C, H, W)."""
    _dim(op, name, relevance, "(N, 1, H, W) or (N, C, H, W)", 4)
    fits = (
        relevance.shape[0] == maps
        and relevance.shape[1] in (1, like.shape[1])
        and relevance.shape[2:] == like.shape[2:]
    )
    _require(
        fits, op, name, f"match {like_name} {_shape(like)} in all but the channels, which may be 1", _shape(relevance)
    )


def _bounds(op: str, lower: float | None, upper: float | None) -> None:
    if lower is not None and upper is not None:
        _require(lower <= upper, op, "lower", f"be at most upper={upper:g}", f"{lower:g}")


def _index_in(op: str, name: str, index: Tensor, size: int, of: str) -> None:
    """Only where reading the values costs no synchronisation."""
    if index.device.type == "cpu" and index.numel() and not _is_fake(index):
        low, high = int(index.min()), int(index.max())
        _require(low >= 0 and high < size, op, name, f"lie in [0, {size}), {of}", f"min={low}, max={high}")


def _apart(op: str, out: Tensor, name: str, tensor: Tensor) -> None:
    """`out` is written while the other is still read."""
    if _is_fake(out) or _is_fake(tensor):
        return
    (begin, end), (first, last) = _bytes_of(out), _bytes_of(tensor)
    _require(end <= first or last <= begin, op, "out", f"share no memory with {name}", "some of it")


def _bytes_of(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's values lie: the address of the first, and the one behind the last."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    begin = tensor.data_ptr()
    return begin, begin + (elements if tensor.numel() else 0) * tensor.element_size()


def _is_fake(tensor: Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # its values are not to be read either
    return wrapped or isinstance(tensor, torch._subclasses.FakeTensor) or tensor.is_meta


def directed_relevance(relevance: Tensor, gradient: Tensor, op: str = "directed_relevance") -> None:
    _floating(op, "relevance", relevance)
    _dim(op, "gradient", gradient, "(N, C, H, W)", 4)
    _dtype(op, "gradient", gradient, relevance.dtype, torch.int8)
    _map_of(op, "relevance", relevance, gradient.shape[0], "gradient", gradient)
    _device(op, ("relevance", relevance), [("gradient", gradient)])


def directed_relevance_backward(grad_direction: Tensor, relevance: Tensor, gradient: Tensor) -> None:
    op = "directed_relevance_backward"
    directed_relevance(relevance, gradient, op)
    _sizes(op, "grad_direction", grad_direction, *gradient.shape)
    _dtype(op, "grad_direction", grad_direction, relevance.dtype)
    _device(op, ("relevance", relevance), [("grad_direction", grad_direction)])


def perturb(
    images: Tensor,
    direction: Tensor,
    epsilon: Tensor,
    lower: float | None,
    upper: float | None,
    op: str = "perturb",
) -> None:
    _dim(op, "images", images, "(N, C, H, W)", 4)
    _floating(op, "images", images)
    _sizes(op, "direction", direction, *images.shape)
    _dtype(op, "direction", direction, images.dtype)
    _dim(op, "epsilon", epsilon, "(K,) or (N, K)", 1, 2)
    _floating(op, "epsilon", epsilon)
    if epsilon.dim() == 2:
        _sizes(op, "epsilon", epsilon, images.shape[0], epsilon.shape[1])
    _bounds(op, lower, upper)
    _device(op, ("images", images), [("direction", direction), ("epsilon", epsilon)])


def perturb_backward(
    grad_perturbed: Tensor,
    images: Tensor,
    direction: Tensor,
    epsilon: Tensor,
    lower: float | None,
    upper: float | None,
) -> None:
    op = "perturb_backward"
    perturb(images, direction, epsilon, lower, upper, op)
    n, *image = images.shape
    _sizes(op, "grad_perturbed", grad_perturbed, n, epsilon.shape[-1], *image)
    _dtype(op, "grad_perturbed", grad_perturbed, images.dtype)
    _device(op, ("images", images), [("grad_perturbed", grad_perturbed)])


def _dtype_of_probes(op: str, name: str, came: torch.dtype, images: Tensor) -> None:
    holds = came in (images.dtype, torch.float16, torch.bfloat16)
    _require(holds, op, name, f"be float16, bfloat16 or that of images, {name_of(images.dtype)}", name_of(came))


def perturb_probes(
    images: Tensor,
    relevance: Tensor,
    gradient: Tensor,
    norm: Tensor,
    probe_image: Tensor,
    probe_map: Tensor,
    probe_irrelevance: Tensor,
    probe_epsilon: Tensor,
    probe_level: Tensor,
    lower: float | None,
    upper: float | None,
    dtype: torch.dtype | None,
    op: str = "perturb_probes",
) -> None:
    _dim(op, "images", images, "(N, C, H, W)", 4)
    _floating(op, "images", images)
    _map_of(op, "relevance", relevance, relevance.shape[0], "images", images)
    _dtype(op, "relevance", relevance, images.dtype)
    _sizes(op, "gradient", gradient, *images.shape)
    _dtype(op, "gradient", gradient, images.dtype, torch.int8)
    probes = norm.shape[0] if norm.dim() == 1 else -1
    _dim(op, "norm", norm, "(M,)", 1)
    _dtype(op, "norm", norm, torch.float64)
    for name, tensor, expected in (
        ("probe_image", probe_image, torch.int64),
        ("probe_map", probe_map, torch.int64),
        ("probe_irrelevance", probe_irrelevance, torch.bool),
        ("probe_epsilon", probe_epsilon, torch.float64),
        ("probe_level", probe_level, torch.float64),
    ):
        _sizes(op, name, tensor, probes)
        _dtype(op, name, tensor, expected)
    if dtype is not None:
        _dtype_of_probes(op, "dtype", dtype, images)
    _bounds(op, lower, upper)
    _device(
        op,
        ("images", images),
        [
            ("relevance", relevance),
            ("gradient", gradient),
            ("norm", norm),
            ("probe_image", probe_image),
            ("probe_map", probe_map),
            ("probe_irrelevance", probe_irrelevance),
            ("probe_epsilon", probe_epsilon),
            ("probe_level", probe_level),
        ],
    )
    _index_in(op, "probe_image", probe_image, images.shape[0], "the rows of images")
    _index_in(op, "probe_map", probe_map, relevance.shape[0], "the rows of relevance")


def perturb_probes_into(
    out: Tensor,
    images: Tensor,
    relevance: Tensor,
    gradient: Tensor,
    norm: Tensor,
    probe_image: Tensor,
    probe_map: Tensor,
    probe_irrelevance: Tensor,
    probe_epsilon: Tensor,
    probe_level: Tensor,
    lower: float | None,
    upper: float | None,
) -> None:
    op = "perturb_probes_into"
    inputs = images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance, probe_epsilon, probe_level
    perturb_probes(*inputs, lower, upper, None, op)
    _sizes(op, "out", out, norm.shape[0], *images.shape[1:])
    _dtype_of_probes(op, "out", out.dtype, images)
    _device(op, ("images", images), [("out", out)])
    _require(
        out.is_contiguous() or out.is_contiguous(memory_format=torch.channels_last),
        op,
        "out",
        "be contiguous or channels-last",
        "strides (" + ", ".join(map(str, out.stride())) + ")",
    )
    names = "images relevance gradient norm probe_image probe_map probe_irrelevance probe_epsilon probe_level".split()
    for name, tensor in zip(names, inputs):
        _apart(op, out, name, tensor)


def label_margin(logits: Tensor, labels: Tensor, op: str = "label_margin") -> None:
    _dim(op, "logits", logits, "(N, classes)", 2)
    _floating(op, "logits", logits)
    _require(logits.shape[1] >= 2, op, "logits", "have at least 2 classes", _shape(logits))
    _sizes(op, "labels", labels, logits.shape[0])
    _dtype(op, "labels", labels, torch.int64)
    _device(op, ("logits", logits), [("labels", labels)])
    _index_in(op, "labels", labels, logits.shape[1], "the classes of logits")


def label_margin_backward(grad_margin: Tensor, logits: Tensor, labels: Tensor) -> None:
    op = "label_margin_backward"
    label_margin(logits, labels, op)
    _sizes(op, "grad_margin", grad_margin, logits.shape[0])
    _dtype(op, "grad_margin", grad_margin, logits.dtype)
    _device(op, ("logits", logits), [("grad_margin", grad_margin)])


def probe_answers(logits: Tensor, labels: Tensor, above: Tensor | None) -> None:
    op = "probe_answers"
    label_margin(logits, labels, op)
    if above is not None:
        _sizes(op, "above", above, *logits.shape)
        _dtype(op, "above", above, torch.bool)
        _device(op, ("logits", logits), [("above", above)])


def first_flip(predicted: Tensor, labels: Tensor, epsilon: Tensor) -> None:
    op = "first_flip"
    _dim(op, "predicted", predicted, "(R, K)", 2)
    _dtype(op, "predicted", predicted, torch.int64)
    _sizes(op, "labels", labels, predicted.shape[0])
    _dtype(op, "labels", labels, torch.int64)
    _dim(op, "epsilon", epsilon, "(K,) or (R, K)", 1, 2)
    _dtype(op, "epsilon", epsilon, torch.float32, torch.float64)
    _sizes(op, "epsilon", epsilon, *(predicted.shape if epsilon.dim() == 2 else predicted.shape[1:]))
    _device(op, ("predicted", predicted), [("labels", labels), ("epsilon", epsilon)])


def relevance_map(attribution: Tensor, images: Tensor | None, percentile: float | None, channels: str) -> None:
    op = "relevance_map"
    _dim(op, "attribution", attribution, "(N, C, H, W)", 4)
    _floating(op, "attribution", attribution)
    if images is not None:
        _dtype(op, "images", images, attribution.dtype)
        _map_of(op, "images", images, attribution.shape[0], "attribution", attribution)
        _device(op, ("attribution", attribution), [("images", images)])
    if percentile is not None:
        _require(0 <= percentile <= 100, op, "percentile", "lie in [0, 100]", f"{percentile:g}")
    _require(channels in ("sum", "keep"), op, "channels", 'be "sum" or "keep"', f'"{channels}"')


def attack_penalty(perturbed: Tensor, original: Tensor, op: str = "attack_penalty") -> None:
    _dim(op, "perturbed", perturbed, "(N, C, H, W)", 4)
    _floating(op, "perturbed", perturbed)
    _sizes(op, "original", original, *perturbed.shape)
    _dtype(op, "original", original, perturbed.dtype)
    _device(op, ("perturbed", perturbed), [("original", original)])


def attack_penalty_backward(grad_penalty: Tensor, perturbed: Tensor, original: Tensor) -> None:
    op = "attack_penalty_backward"
    attack_penalty(perturbed, original, op)
    _sizes(op, "grad_penalty", grad_penalty, perturbed.shape[0])
    _dtype(op, "grad_penalty", grad_penalty, torch.float64)
    _device(op, ("perturbed", perturbed), [("grad_penalty", grad_penalty)])


def attack_step(
    perturbed: Tensor,
    gradient: Tensor,
    previous: Tensor | None,
    region: Tensor | None,
    lower: float | None,
    upper: float | None,
    original: Tensor | None,
    zero: float,
) -> None:
    op = "attack_step"
    _dim(op, "perturbed", perturbed, "(N, C, H, W)", 4)
    _floating(op, "perturbed", perturbed)
    for name, tensor in (("gradient", gradient), ("previous", previous), ("original", original)):
        if tensor is not None:
            _sizes(op, name, tensor, *perturbed.shape)
            _dtype(op, name, tensor, perturbed.dtype)
    if region is not None:
        _map_of(op, "region", region, region.shape[0] if region.dim() else 0, "perturbed", perturbed)
        _require(
            region.shape[0] in (1, perturbed.shape[0]),
            op,
            "region",
            f"hold 1 mask or {perturbed.shape[0]}, one for each image",
            region.shape[0],
        )
        _dtype(op, "region", region, torch.bool)
    _bounds(op, lower, upper)
    _require(zero >= 0, op, "zero", "be at least 0", f"{zero:g}")
    _require(zero == 0 or original is not None, op, "original", "be given where zero is not 0", "None")
    _device(
        op,
        ("perturbed", perturbed),
        [
            ("gradient", gradient),
            ("previous", previous),
            ("region", region),
            ("original", original),
        ],
    )


def zero_levels(relevance: Tensor, threshold: Tensor) -> None:
    op = "zero_levels"
    _dim(op, "relevance", relevance, "(N, C, H, W)", 4)
    _floating(op, "relevance", relevance)
    _dim(op, "threshold", threshold, "(L,) or (N, L)", 1, 2)
    _dtype(op, "threshold", threshold, torch.float32, torch.float64)
    if threshold.dim() == 2:
        _sizes(op, "threshold", threshold, relevance.shape[0], threshold.shape[1])
    _device(op, ("relevance", relevance), [("threshold", threshold)])


def saliency_map(original: Tensor, perturbed: Tensor) -> None:
    op = "saliency_map"
    _dim(op, "original", original, "(N, C, H, W)", 4)
    _floating(op, "original", original)
    _sizes(op, "perturbed", perturbed, *original.shape)
    _dtype(op, "perturbed", perturbed, original.dtype)
    _device(op, ("original", original), [("perturbed", perturbed)])
