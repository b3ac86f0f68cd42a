"""APEM as a Quantus metric. Quantus itself is not needed.

quantus.evaluate({"APEM": Apem(max_epsilon=1024)}, xai_methods, model, x_batch, y_batch, ...)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.extras import extra
from apem_fast.metric import Evaluator
from apem_fast.options import Options, documented
from apem_fast.papers import PERCENTILE
from apem_fast.relevance import relevance_map
from apem_fast.running.clean import predictions_of
from apem_fast.running.undisturbed import undisturbed
from apem_fast.validation import without_ray


@documented()
class Apem:
    """APEM as a Quantus metric: a call returns one score for each image, epsilon_plus - epsilon_minus. High is good.

    There is no score for an image whose explained class is not the model's prediction, or whose map is all 0.

    Args:
        percentile, channels: how attributions are made into relevance maps, see `af.relevance_map`.
        pixels: a function from images (N, C, H, W), a tensor as the model receives them, to pixels in [0, 1], such as
            `lambda x: x * std + mean`; maps are multiplied by them, which is the papers' last stage, times-image. None
            does not multiply.
        missing: what an image without a score gets: "nan"; or "left out", which returns fewer scores than images, for
            an aggregation that cannot handle NaN, such as `agg_func=numpy.mean` of `quantus.evaluate`.
        return_aggregate: whether a call returns one number, [aggregate_func(scores)].
        aggregate_func: applied to the scores without NaN.
        options: see `apem_fast.options.Options`.
    """

    name = "APEM"
    score_direction = "higher"
    evaluation_category = "Faithfulness"

    @said_by("Apem")
    def __init__(
        self,
        *,
        percentile: float | None = PERCENTILE,
        channels: Literal["sum", "keep"] = "sum",
        pixels: Callable[[Tensor], Tensor] | None = None,
        missing: Literal["nan", "left out"] = "nan",
        return_aggregate: bool = False,
        aggregate_func: Callable[[Sequence[float]], float] = np.mean,
        **options: Any,
    ):
        Options.of(**options)  # raises now if an option is bad
        if missing not in ("nan", "left out"):
            raise ValueError(sentence(f'missing must be "nan" or "left out" (got {missing!r})'))
        self.missing = missing
        self.percentile, self.channels, self.pixels, self.options = percentile, channels, pixels, options
        self.return_aggregate, self.aggregate_func = return_aggregate, aggregate_func
        self.evaluation_scores: list[float] = []
        self.all_evaluation_scores: list[float] = []

    @said_by("Apem")
    def __call__(
        self,
        model: nn.Module | Any,
        x_batch: NDArray[Any] | Tensor,
        y_batch: NDArray[Any] | Tensor | None = None,
        a_batch: NDArray[Any] | Tensor | None = None,
        s_batch: object = None,
        channel_first: bool | None = None,
        explain_func: Callable[..., Any] | None = None,
        explain_func_kwargs: Mapping[str, Any] | None = None,
        model_predict_kwargs: Mapping[str, Any] | None = None,
        softmax: bool | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        **kwargs: Any,
    ) -> list[float]:
        """The scores of a batch.

        Args:
            model: an `nn.Module` in eval mode that returns logits, or Quantus' wrapper of one.
            x_batch: (N, C, H, W), or (N, H, W, C) where channel_first is False.
            y_batch: (N,) the classes that are explained; None takes the predictions.
            a_batch: attributions (N, C, H, W), (N, 1, H, W) or (N, H, W), signed; None calls
                explain_func(model=, inputs=, targets=, **explain_func_kwargs).
            device: where the model is; None finds out.
            batch_size: how many images are evaluated at a time.
            s_batch, softmax, kwargs: for other metrics, not used; logits and softmax flip at the same epsilons.
        """
        unwrap: Any = getattr(model, "get_model", None)  # of Quantus' own wrapper
        model = model if unwrap is None else unwrap()
        validation.model(model)
        batch_size = validation.whole("batch_size", batch_size)
        if model_predict_kwargs:
            raise ValueError(sentence(f"model_predict_kwargs must be empty (got {', '.join(model_predict_kwargs)})"))
        like = next(model.parameters(), torch.empty(0, device="cpu"))
        device = like.device if device is None else torch.device(device)
        images = torch.as_tensor(x_batch).to(device, like.dtype)
        images = images.movedim(-1, 1) if channel_first is False else images
        validation.images(images, model)
        predicted = _predictions(model, images)
        targets = predicted if y_batch is None else torch.as_tensor(y_batch).to(device).long().flatten()
        if targets.shape != predicted.shape:
            raise ValueError(sentence(f"y_batch must have shape ({len(images)},) (got {tuple(targets.shape)})"))
        if a_batch is None:
            if explain_func is None:
                raise ValueError(sentence("a_batch must be given where there is no explain_func (got None)"))
            options = dict(explain_func_kwargs or {})
            a_batch = explain_func(model=model, inputs=images.cpu().numpy(), targets=targets.cpu().numpy(), **options)
        attribution = torch.as_tensor(a_batch).to(device, like.dtype)
        if channel_first is False and attribution.dim() == 4:
            attribution = attribution.movedim(-1, 1)
        factor = None if self.pixels is None else self.pixels(images)
        maps = relevance_map(attribution, factor, percentile=self.percentile, channels=self.channels)
        zero, one = without_ray(maps)
        has_ray = ~(zero | one) & maps.flatten(1).isfinite().all(dim=1)
        scores = torch.full((len(images),), torch.nan, dtype=torch.float64, device="cpu")
        for rows in (has_ray & (targets == predicted)).nonzero()[:, 0].split(batch_size):
            if len(rows):
                evaluator = Evaluator(model, images[rows], **self.options)
                scores[rows.cpu()] = evaluator.apem({"relevance": maps[rows]})["relevance"].score
        there = scores[~scores.isnan()].tolist()
        self.evaluation_scores = there if self.missing == "left out" else scores.tolist()
        if self.return_aggregate:
            self.evaluation_scores = [float(self.aggregate_func(there)) if there else np.nan]
        self.all_evaluation_scores.extend(self.evaluation_scores)
        return self.evaluation_scores

    @property
    def get_params(self) -> dict[str, Any]:
        """The arguments that this metric was made with."""
        names = ("percentile", "channels", "pixels", "missing", "return_aggregate", "aggregate_func")
        return {name: getattr(self, name) for name in names} | self.options

    @property
    def interpret_scores(self) -> None:
        """Print what the scores mean."""
        print(  # noqa: T201  (as Quantus has it)
            "APEM is the change of the image, in l1 norm, that flips the prediction along what the explanation calls "
            "irrelevant, less the change that flips it along what it calls relevant. High is good; 0 and below: the "
            "explanation tells the two no better than chance."
        )

    def plot(
        self,
        plot_func: Callable[..., None] | None = None,
        show: bool = True,
        path_to_save: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Draw a histogram of the last call's scores, or call `plot_func`; needs matplotlib.

        Args:
            plot_func: called with args and kwargs, draws into matplotlib's current figure.
            show: whether to show the figure.
            path_to_save: where to save it, if anywhere.
        """
        with extra("experiment", "plot"):
            from matplotlib import pyplot

        if plot_func is not None:
            plot_func(*args, **kwargs)
        else:
            pyplot.hist([score for score in self.evaluation_scores if not np.isnan(score)])
            pyplot.xlabel("APEM")
            pyplot.ylabel("images")
        if path_to_save:
            pyplot.savefig(path_to_save, dpi=400)
        if show:
            pyplot.show()


def _predictions(model: nn.Module, images: Tensor) -> Tensor:
    with undisturbed(model, images), torch.no_grad():
        return predictions_of(model, images)
