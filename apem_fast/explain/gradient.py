"""The gradient of the explained class's logit with respect to the input, and its average over noisy copies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from apem_fast.explain.explainer import Explainer, explainable_logits, require_at_least_one, require_batch_size
from apem_fast.explain.noise import Drawing
from apem_fast.extras import extra
from apem_fast.seeding import generators_for
from apem_fast.validation import make_numbers_plain

READ_AT_ONCE = 64  # images whose noise is seeded by their values: for each read the host waits for a GPU


def logit_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, *, labels_are_known: bool = False
) -> Tensor:
    """The gradient d logit[label] / d image, signed: (N, C, H, W). Parameters receive no gradients."""
    with extra("explain", "a gradient"):
        from captum.attr import Saliency

    def logits(inputs: Tensor) -> Tensor:
        return explainable_logits(model, inputs, labels, name, labels_are_known)

    return Saliency(logits).attribute(images.detach().requires_grad_(), target=labels, abs=False)


@dataclass(frozen=True)
class Gradient(Explainer):
    """The plain gradient of the label's logit (P1 section IV-A), signed.

    Args:
        batch_size: the most images in one batch; None for the usual number on that device.
    """

    name: ClassVar[str] = "Gradient"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)

    @property
    def cost_per_image(self) -> float:
        return 3.0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return logit_gradient(model, images, labels, self.name)


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """The mean gradient over noisy copies of an image, (1/n) sum M(x + N(0, sigma^2)) (P1 section IV-A).

    The noise of each sample of each image is drawn from its own generator, seeded with the image's values, `seed` and
    the sample's number. So the result does not depend on the other images of a batch, not even in rounding, and on
    `batch_size` only in rounding. `batch_size` limits the memory, whatever `samples` is.

    Args:
        samples: n, 100 in the papers.
        sigma: standard deviation of the noise, 0.2 in the papers.
        relative: the unit of sigma. False: the units of the tensor that the model receives (after normalisation, if
            the images are normalised); this is how the papers' "sigma = 0.2" is understood here. True: the range of the
            image's values, max - min, as SmoothGrad's authors define the noise level (arXiv 1706.03825, section 4.1).
        seed: any integer; another seed draws other noise.
        batch_size: the most noisy copies in one batch; None for the usual number on that device.
    """

    name: ClassVar[str] = "SmoothGrad"
    usual_batch: ClassVar[Mapping[str, int]] = {"cpu": 8, "cuda": 64}
    samples: int = 100
    sigma: float = 0.2
    relative: bool = False
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_at_least_one(self.name, "samples", self.samples)
        require_batch_size(self.name, self.batch_size)
        if not 0 <= self.sigma < float("inf"):
            raise ValueError(f"{self.name}: sigma must be finite and at least 0 (got {self.sigma})")

    def images_at_once(self, device: torch.device) -> int:
        return 1

    @property
    def cost_per_image(self) -> float:
        return 3.0 * self.samples

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] | bool | None = None,
    ) -> Tensor:
        with closing(self._noises(images)) as noises:  # of all images, so that the next one's is drawn in time

            def attribute(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
                return self._averaged(model, images, labels, noises)

            return self._in_batches(attribute, model, images, labels, progress)

    __call__.__doc__ = Explainer.__call__.__doc__

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with closing(self._noises(images)) as noises:
            return self._averaged(model, images, labels, noises)

    def _averaged(self, model: nn.Module, images: Tensor, labels: Tensor, noises: Iterator[Tensor]) -> Tensor:
        return torch.cat(
            [self._one(model, image, label, noises) for image, label in zip(images.split(1), labels.split(1))]
        )

    def _one(self, model: nn.Module, image: Tensor, label: Tensor, noises: Iterator[Tensor]) -> Tensor:
        total = torch.zeros(image.shape[1:], dtype=torch.float64, device=image.device)
        for start in range(0, self.samples, self.batch_on(image.device)):
            # Nothing in this loop waits for a GPU, which runs one batch while the next one's noise is drawn.
            noisy = image + next(noises)
            if noisy.device.type == "cpu":  # makes forward and backward a fifth faster on a CPU
                noisy = noisy.contiguous(memory_format=torch.channels_last)
            labels = label.expand(len(noisy))
            gradient = logit_gradient(model, noisy, labels, self.name, labels_are_known=start > 0)
            total += gradient.sum(dim=0, dtype=torch.float64)
        return (total / self.samples).to(image.dtype)[None]

    def _noises(self, images: Tensor) -> Generator[Tensor, None, None]:
        """The noise of each batch of each image in turn, of their type and on their device."""
        at_once, deviations = self.batch_on(images.device), deque[float]()
        batches = [range(start, min(start + at_once, self.samples)) for start in range(0, self.samples, at_once)]

        def wanted() -> Iterator[list[torch.Generator]]:
            for some in images.detach().split(READ_AT_ONCE):
                for image in some.cpu():
                    generator, deviation = generators_for(image), self._deviation(image)
                    for samples in batches:
                        deviations.append(deviation)
                        yield [generator(self.seed, sample) for sample in samples]

        with Drawing(images.device) as drawing:
            for block in drawing.blocks(images.shape[1:], wanted()):
                there = block.to(images.device, non_blocking=True)
                yield (there * deviations.popleft()).to(images.dtype)

    def noise(self, image: Tensor, sample: int) -> Tensor:
        """The noise of one sample of one image (C, H, W), float32 on the CPU, so that it is the same on all devices."""
        generator = generators_for(image)(self.seed, sample)
        drawn = torch.randn(image.shape, dtype=torch.float32, device="cpu", generator=generator)
        return drawn * self._deviation(image)

    def _deviation(self, image: Tensor) -> float:
        return self.sigma * float(image.max() - image.min()) if self.relative else self.sigma


@dataclass(frozen=True)
class InputXGradient(Explainer):
    """The plain gradient of the label's logit times the input (Shrikumar et al. 2016), signed.

    Args:
        batch_size: the most images in one batch; None for the usual number on that device.
    """

    name: ClassVar[str] = "Input x Gradient"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)

    @property
    def cost_per_image(self) -> float:
        return 3.0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return images * logit_gradient(model, images, labels, self.name)


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """Integrated Gradients (Sundararajan et al. 2017), signed, as Captum computes it with its Gauss-Legendre rule.

    It is the difference between the image and a constant baseline image, times the mean gradient of the label's logit
    along the straight line between them.

    Args:
        steps: points on the line.
        baseline: the value of the baseline image, in the space of the tensor that the model receives (if images are
            normalised, 0 is the mean).
        batch_size: the most points in one batch; None for the usual number on that device.
    """

    name: ClassVar[str] = "Integrated Gradients"
    steps: int = 50
    baseline: float = 0.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_at_least_one(self.name, "steps", self.steps)
        require_batch_size(self.name, self.batch_size)
        if not abs(self.baseline) < float("inf"):
            raise ValueError(f"{self.name}: baseline must be finite (got {self.baseline})")

    def images_at_once(self, device: torch.device) -> int:
        return 1

    @property
    def cost_per_image(self) -> float:
        return 3.0 * self.steps

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with extra("explain", "IntegratedGradients"):
            from captum.attr import IntegratedGradients as OfCaptum

        def logits(inputs: Tensor) -> Tensor:
            return explainable_logits(model, inputs, labels, self.name)

        return OfCaptum(logits).attribute(
            images,
            self.baseline,
            target=int(labels[0]),
            n_steps=self.steps,
            internal_batch_size=self.batch_on(images.device),
        )
