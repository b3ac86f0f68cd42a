"""Which explanation works on which network: the table of docs/networks.md, found by trying, with random weights.

PYTHONPATH=python_tests python -m network_table > docs/networks.md
"""

from __future__ import annotations

import re
import warnings

import torch
from torch import nn

from apem_fast.explain import LRP, explainer_from

METHODS = {
    "Gradient": "gradient",
    "SmoothGrad": "smooth-grad:samples=2",
    "Input x Gradient": "input-x-gradient",
    "Integrated Gradients": "integrated-gradients:steps=2",
    "Occlusion": "occlusion:window=112:stride=112",
    "RISE": "rise:samples=2",
    "Guided Backprop.": "guided-backprop",
    "Grad-CAM": "grad-cam",
    "Guided Grad-CAM": "guided-grad-cam",
    "Rollout": "attention-rollout",
    "Attention relevance": "attention-relevance",
    "LRP": "lrp:epsilon=1e-06",
}
TORCHVISION = (
    "alexnet vgg16 squeezenet1_1 resnet18 resnext50_32x4d densenet121 googlenet mobilenet_v2 mobilenet_v3_small "
    "mnasnet0_5 shufflenet_v2_x0_5 efficientnet_b0 efficientnet_v2_s regnet_y_400mf convnext_tiny vit_b_32 swin_t "
    "swin_v2_t maxvit_t"
).split()
TIMM = (
    "vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 vit_small_patch16_dinov3 beit_base_patch16_224 "
    "cait_xxs24_224 swin_tiny_patch4_window7_224 pit_ti_224 pvt_v2_b0 mobilevit_xxs mixer_s32_224 resnet50_clip"
).split()

_WIDTH = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 3}
_SMALL = {**_WIDTH, "intermediate_size": 96}
TRANSFORMERS: dict[str, dict[str, object]] = {
    "ViT": _SMALL,
    "DeiT": _SMALL,
    "Beit": _SMALL,
    "Dinov2": {**_WIDTH, "image_size": 224, "patch_size": 16},
    "Swin": {"embed_dim": 24, "depths": [1, 1, 2], "num_heads": [2, 4, 8]},
    "ConvNext": {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64]},
    "ResNet": {"depths": [1, 1, 1, 1], "hidden_sizes": [32, 48, 64, 96], "embedding_size": 16},
}
"""Architectures of Hugging Face's library, small ones: what works depends on how a network is written."""


def made(name: str) -> tuple[nn.Module, int]:
    """A network of random weights in evaluation mode, and the side of its images."""
    torch.manual_seed(0)
    library, _, architecture = name.partition(":")
    if library == "timm":
        import timm

        model = timm.create_model(architecture, pretrained=False, num_classes=10)
        size = model.default_cfg["input_size"][-1]
    elif library == "transformers":
        import transformers

        config = getattr(transformers, f"{architecture}Config")(num_labels=10, **TRANSFORMERS[architecture])
        model, size = getattr(transformers, f"{architecture}ForImageClassification")(config), 224
    else:
        from torchvision import models

        options = {"init_weights": False} if architecture == "googlenet" else {}
        model, size = models.get_model(architecture, weights=None, num_classes=10, **options), 224
    for module in model.modules():  # heads that begin at 0 would have nothing to explain
        if isinstance(module, nn.Linear) and module.out_features == 10:
            nn.init.normal_(module.weight, std=0.1)
    return model.eval().requires_grad_(False), size


def outcome(specification: str, model: nn.Module, images: torch.Tensor) -> str:
    """ "works", with LRP's conservation, or the sentence of a refusal."""
    method = explainer_from(specification)
    try:
        if isinstance(method, LRP):
            result = method.explain(model, images)
            return f"works, {float(result.conservation[0]):.2f}"
        return "works" if bool(method(model, images).isfinite().all()) else "not finite"
    except (ValueError, TypeError) as error:
        return str(error).partition(": ")[2]


def networks() -> list[str]:
    libraries = {"torchvision": TORCHVISION, "timm": TIMM, "transformers": TRANSFORMERS}
    return [f"{library}:{name}" for library, names in libraries.items() for name in names]


def row(name: str) -> list[str]:
    model, size = made(name)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [outcome(specification, model, images) for specification in METHODS.values()]


def without_details(sentence: str) -> str:
    """What was wanted; what came instead differs from layer to layer."""
    return re.sub(r" \(got .*| these have none: .*", "", sentence, flags=re.DOTALL)


def page(rows: dict[str, list[str]]) -> str:
    reasons: list[str] = []
    lines = [
        "# Which explanation works on which network",
        "",
        "Found by trying, with random weights and one image (`python_tests/network_table.py`). A number in the place",
        "of a tick refers to the sentence below with which a method refuses the network. LRP's share is its",
        "conservation with `epsilon=1e-6`: what reaches the image of the logit that was handed in. Biases, position",
        "embeddings, class tokens and the expansion of softmax take the rest: with random weights often nearly all.",
        "How each gets onto the command line (`timm:NAME`, `hf:FOLDER` for those of transformers, ...):",
        "[models-and-targets.md](models-and-targets.md#networks-on-the-command-line).",
        "",
        "| network | " + " | ".join(METHODS) + " |",
        "|---" * (len(METHODS) + 1) + "|",
    ]
    for name, cells in rows.items():
        shown = []
        for cell in cells:
            if cell.startswith("works"):
                shown.append("✓" + cell.removeprefix("works").replace(",", ""))
                continue
            reason = without_details(cell)
            if reason not in reasons:
                reasons.append(reason)
            shown.append(f"{reasons.index(reason) + 1}")
        lines.append(f"| `{name}` | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *(f"{n}. {reason}" for n, reason in enumerate(reasons, 1)), ""])


if __name__ == "__main__":
    print(page({name: row(name) for name in networks()}), end="")
