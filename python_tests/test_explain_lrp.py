"""LRP: against P2's equations with every z_ij written out, against Captum and Zennit, on residual networks, and what
has no rule."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP as CaptumLRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from captum.attr._utils.lrp_rules import EpsilonRule as CaptumEpsilonRule
from torch import Tensor, nn

from apem_fast.explain import LRP

RULES = [
    LRP(rule="naive"),
    LRP(rule="naive", bias=False),
    LRP(rule="epsilon", epsilon=0.3),
    LRP(rule="epsilon", epsilon=0.3, bias=False),
    LRP(rule="epsilon", epsilon=0.5, relative=True),
    LRP(rule="alpha-beta", alpha=2, beta=-1),
    LRP(rule="alpha-beta", alpha=1, beta=0),
    LRP(rule="alpha-beta", alpha=1.3, beta=-0.3, bias=False),
]


def described(method: LRP) -> str:
    return " ".join(f"{option}={value}" for option, value in method.options.items())


class Residual(nn.Module):
    """A small residual network with everything VGG, ResNet and EfficientNet-Lite are made of."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(84)
            self.conv1, self.norm1 = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
            self.conv2, self.norm2 = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3)
            self.shortcut = nn.Conv2d(3, 3, 1)
            self.last = nn.Linear(12, 4)
            for norm in (self.norm1, self.norm2):
                for tensor in (norm.weight, norm.bias, norm.running_mean):
                    nn.init.normal_(tensor)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.normal_(self.norm2.weight, std=8.0)
            nn.init.normal_(self.shortcut.weight, std=4.0)
        self.relu, self.relu6 = nn.ReLU(inplace), nn.ReLU6(inplace)
        self.pool, self.average, self.dropout = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Dropout()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.relu(self.norm1(self.conv1(images))))
        main = self.norm2(self.conv2(features))
        main += self.shortcut(features)
        features = self.relu6(main)
        return self.last(self.dropout(torch.flatten(self.average(features), 1)))


def literal_rule(method: LRP, function, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """P2 section 4.2.2 for one affine layer and one image: z_ij one by one."""
    shape = x.shape
    flat = torch.from_numpy(x).reshape(-1)

    def on_flat(values: Tensor) -> Tensor:
        return function(values.reshape(1, *shape)).reshape(-1)

    b = on_flat(torch.zeros_like(flat)).detach().numpy()
    w = torch.autograd.functional.jacobian(on_flat, flat).numpy()  # w[j, i]
    x, relevance = x.reshape(-1), relevance.reshape(-1)
    counted = b if method.bias else np.zeros_like(b)
    pre_activation = w @ x + b
    result = np.zeros_like(x)
    for j, relevance_j in enumerate(relevance):
        z = x * w[j]
        if method.rule == "alpha-beta":
            positive, negative = np.maximum(z, 0), np.minimum(z, 0)
            sum_positive = positive.sum() + max(counted[j], 0)
            sum_negative = negative.sum() + min(counted[j], 0)
            if sum_positive > 0 and sum_negative < 0:
                share = method.alpha * positive / sum_positive + method.beta * negative / sum_negative
            elif sum_positive > 0:
                share = positive / sum_positive
            elif sum_negative < 0:
                share = negative / sum_negative
            else:
                share = np.zeros_like(z)
        else:
            total = z.sum() + counted[j]
            epsilon = {"naive": 0.0, "epsilon": method.epsilon}[method.rule]
            if method.relative:
                epsilon *= np.sqrt(np.mean(pre_activation**2))
            denominator = total + (-epsilon if total < 0 else epsilon)
            share = z / denominator if denominator else np.zeros_like(z)
        result += share * relevance_j
    return result.reshape(shape)


def literal_lrp(method: LRP, net: Residual, image: Tensor, label: int) -> np.ndarray:
    """The relevance of one image, layer by layer from the logit down to the pixels."""

    def first(values: Tensor) -> Tensor:
        return net.norm1(net.conv1(values))

    def second(values: Tensor) -> Tensor:
        return net.norm2(net.conv2(values))

    with torch.no_grad():
        rectified = net.relu(first(image[None]))
        pooled = net.pool(rectified)
        main, short = second(pooled), net.shortcut(pooled)
        active = (main + short).clamp(0, 6)
        averaged = net.average(active)
        logits = net.last(averaged.flatten(1))

    handed_in = np.zeros(4)
    handed_in[label] = float(logits[0, label])
    relevance = literal_rule(method, lambda values: net.last(values.flatten(1)), averaged[0].numpy(), handed_in)

    below = np.zeros(active.shape[1:])
    window = active.shape[-1] // 2
    for c, y, x in np.ndindex(relevance.shape):
        area = np.s_[c, y * window : (y + 1) * window, x * window : (x + 1) * window]
        values = active[0].numpy()[area]
        if values.sum():
            below[area] += values / values.sum() * relevance[c, y, x]

    total = (main + short)[0].numpy()
    to_main = literal_rule(method, second, pooled[0].numpy(), main[0].numpy() / total * below)
    to_short = literal_rule(method, net.shortcut, pooled[0].numpy(), short[0].numpy() / total * below)
    relevance, below = to_main + to_short, np.zeros(rectified.shape[1:])
    for c, y, x in np.ndindex(relevance.shape):
        values = rectified[0, c, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].numpy()
        winner = np.unravel_index(values.argmax(), values.shape)
        below[c, 2 * y + winner[0], 2 * x + winner[1]] += relevance[c, y, x]
    return literal_rule(method, first, image.numpy(), below)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("method", RULES, ids=described)
def test_every_rule_is_its_equation_written_out(method, images):
    net = Residual().double()
    labels = torch.tensor([0, 3, 1])
    result = method.explain(net, images, labels)
    expected = np.stack([literal_lrp(method, net, image, int(label)) for image, label in zip(images, labels)])
    np.testing.assert_allclose(result.attribution.numpy(), expected, rtol=1e-7, atol=1e-10 * np.abs(expected).max())
    torch.testing.assert_close(result.logit, net(images).detach().gather(1, labels[:, None])[:, 0])
    np.testing.assert_allclose(result.conservation, expected.sum((1, 2, 3)) / result.logit.numpy(), rtol=1e-7)


def test_the_relus_of_the_oracle_are_used(images):
    """The small network above saturates its ReLU6 and has units of either state everywhere."""
    net = Residual().double()
    rectified = net.norm1(net.conv1(images))
    main = net.norm2(net.conv2(net.pool(rectified.relu()))) + net.shortcut(net.pool(rectified.relu()))
    assert (rectified < 0).any() and (rectified > 0).any() and (main < 0).any() and (main > 6).any()


@pytest.mark.parametrize("method", RULES, ids=described)
def test_in_place_layers_and_functions_make_no_difference(method, images):
    net = Residual().double()

    def functional(values: Tensor) -> Tensor:
        def norm(inputs: Tensor, module: nn.BatchNorm2d) -> Tensor:
            statistics = (module.running_mean, module.running_var, module.weight, module.bias)
            return F.batch_norm(inputs, *statistics, eps=module.eps)

        features = torch.conv2d(values, net.conv1.weight, padding=1)
        features = F.max_pool2d(torch.relu_(norm(features, net.norm1)), 2)
        main = norm(F.conv2d(features, net.conv2.weight, net.conv2.bias, 1, 1, 1, 3), net.norm2)
        features = torch.add(main, F.conv2d(features, net.shortcut.weight, net.shortcut.bias)).clamp(min=0, max=6)
        return F.linear(F.adaptive_avg_pool2d(features, 2).view(len(values), -1), net.last.weight, net.last.bias)

    expected = method(net, images)
    torch.testing.assert_close(method(Residual(inplace=True).double(), images), expected)
    torch.testing.assert_close(method(functional, images), expected)


def gradient_times_input(model: nn.Module, images: Tensor) -> Tensor:
    inputs = images.clone().requires_grad_()
    return torch.autograd.grad(model(inputs).amax(1).sum(), inputs)[0] * images


def vgg_like(classes: int = 5, bias: bool = True) -> nn.Module:
    class Flat(nn.Module):  # Captum's LRP has no rule for nn.Flatten
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1, bias=bias),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(6, 8, 3, padding=1, bias=bias),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
            )
            self.classifier = nn.Sequential(
                nn.Linear(32, 16, bias=bias), nn.ReLU(), nn.Dropout(), nn.Linear(16, classes, bias=bias)
            )

        def forward(self, images: Tensor) -> Tensor:
            return self.classifier(self.features(images).flatten(1))

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Flat().double().eval()


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def with_captum_rules(model: nn.Module, rule) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.rule = rule()
    return model


@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_epsilon_rule_is_that_of_captum(epsilon, pictures):
    labels = torch.tensor([4, 0, 2])
    captum_model = with_captum_rules(vgg_like(), lambda: CaptumEpsilonRule(epsilon))
    expected = CaptumLRP(captum_model).attribute(pictures.clone(), target=labels)
    torch.testing.assert_close(LRP(epsilon=epsilon)(vgg_like(), pictures, labels), expected.detach())


def test_alpha_1_beta_0_is_that_of_captum_where_inputs_are_positive(pictures):
    pictures = pictures.abs()  # Captum clamps the weights alone, and not the biases
    captum_model = with_captum_rules(vgg_like(bias=False), Alpha1_Beta0_Rule)
    labels = vgg_like(bias=False)(pictures).argmax(1)
    expected = CaptumLRP(captum_model).attribute(pictures.clone(), target=labels).detach()
    came = LRP(rule="alpha-beta", alpha=1, beta=0)(vgg_like(bias=False), pictures)
    scale = came.flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    # Captum hands in the logit of the clamped network's output; the distribution is what must agree.
    torch.testing.assert_close(came, expected * scale[:, None, None, None])


@pytest.mark.parametrize(
    "method, rule",
    [(LRP(epsilon=0.4), "epsilon"), (LRP(rule="alpha-beta"), "alpha-beta")],
    ids=["epsilon", "alpha-beta"],
)
def test_rules_are_those_of_zennit(method, rule, pictures):
    zennit_rules = pytest.importorskip("zennit.rules")
    composites = pytest.importorskip("zennit.composites")
    types = pytest.importorskip("zennit.types")
    made = zennit_rules.Epsilon(0.4) if rule == "epsilon" else zennit_rules.AlphaBeta(alpha=2, beta=1, stabilizer=1e-12)
    composite = composites.LayerMapComposite(
        [
            (types.Activation, zennit_rules.Pass()),
            (types.AvgPool, zennit_rules.Norm(stabilizer=1e-12)),
            ((nn.Conv2d, nn.Linear), made),
        ]
    )
    model, labels = vgg_like(), torch.tensor([4, 0, 2])
    inputs = pictures.clone().requires_grad_()
    with composite.context(model) as modified:
        logits = modified(inputs)
        handed_in = logits.detach() * F.one_hot(labels, 5)
        (expected,) = torch.autograd.grad(logits, inputs, handed_in)
    torch.testing.assert_close(method(vgg_like(), pictures, labels), expected, rtol=1e-6, atol=1e-9)


def resnet(name: str) -> nn.Module:
    """Random weights, batch norms as after training: any mean, variance, scale and shift."""
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = getattr(models, name)(num_classes=10).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.bias, std=0.2)
                nn.init.normal_(module.running_mean, std=0.2)
    return model


@pytest.mark.parametrize(
    "name, size, methods",
    [
        ("resnet18", 64, [LRP(), LRP(relative=True), LRP(rule="alpha-beta"), LRP(rule="naive")]),
        ("resnet50", 32, [LRP(), LRP(relative=True), LRP(epsilon=0.1, relative=True), LRP(rule="naive")]),
    ],
)
def test_residual_networks_are_explained(name, size, methods):
    model = resnet(name)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    for method in methods:
        result = method.explain(model, images)
        assert result.attribution.isfinite().all() and result.attribution.any(), described(method)
        assert result.attribution.abs().sum() < 1e4 * result.logit.abs(), described(method)
        if method.rule != "epsilon":  # nothing is absorbed: what does not reach the input stays with the biases
            accounted = result.conservation + result.bias_share
            torch.testing.assert_close(accounted, torch.ones(1), rtol=0, atol=1e-3)
        if method.rule == "naive":  # the same map from plain backpropagation
            expected = gradient_times_input(model, images)
            torch.testing.assert_close(result.attribution, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_efficientnet_lite0_is_explained():
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = efficientnet.EfficientNet.from_name("efficientnet-lite0").eval()
        images = torch.randn(1, 3, 64, 64)
    result = LRP(rule="naive").explain(model.double(), images.double())
    torch.testing.assert_close(result.conservation + result.bias_share, torch.ones(1).double())
    assert LRP(relative=True)(model, images.double()).isfinite().all()


def test_naive_rule_without_biases_conserves_all_relevance(pictures):
    result = LRP(rule="naive", bias=False).explain(vgg_like(), pictures)
    torch.testing.assert_close(result.conservation, torch.ones(3).double())
    assert torch.equal(result.bias_share, torch.zeros(3).double())


def test_epsilon_absorbs_relevance(pictures):
    model = vgg_like(bias=False)
    conserved = {epsilon: LRP(epsilon=epsilon).explain(model, pictures).conservation for epsilon in (1e-9, 10.0)}
    torch.testing.assert_close(conserved[1e-9], torch.ones(3).double(), rtol=0, atol=1e-5)
    assert (conserved[10.0].abs() < 0.1).all()


def test_relative_epsilon_follows_the_scale_of_each_layer(pictures):
    """Scaling one layer up and the next one down leaves the network, and so must leave a relative epsilon's map."""
    plain, scaled = vgg_like(), vgg_like()
    with torch.no_grad():
        scaled.features[0].weight.mul_(100), scaled.features[0].bias.mul_(100), scaled.features[3].weight.div_(100)
    relative, absolute = LRP(epsilon=0.5, relative=True), LRP(epsilon=0.5)
    torch.testing.assert_close(relative(scaled, pictures), relative(plain, pictures))
    assert not torch.allclose(absolute(scaled, pictures), absolute(plain, pictures), rtol=0.1)
    alone = torch.cat([relative(plain, picture[None]) for picture in pictures])
    torch.testing.assert_close(relative(plain, pictures), alone)


@pytest.mark.parametrize("method", RULES, ids=described)
def test_narrow_types_stay_narrow(method, images):
    came = method(Residual().bfloat16(), images.bfloat16())
    assert came.dtype == torch.bfloat16
    if method.bias:
        exact = method(Residual().double(), images, labels=Residual().bfloat16()(images.bfloat16()).argmax(1))
        assert F.cosine_similarity(came.double().flatten(), exact.flatten(), dim=0) > 0.9


def test_explain_is_the_call_with_figures(images):
    net, method = Residual().double(), LRP(batch_size=2)
    result = method.explain(net, images)
    assert torch.equal(result.attribution, method(net, images))
    torch.testing.assert_close(result.logit, net(images).amax(1).detach())
    empty = method.explain(net, images[:0])
    assert empty.attribution.shape == (0, 2, 8, 8) and empty.conservation.shape == (0,)


class Made(nn.Module):
    """A network of a few named layers and any function between them."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.conv, self.other, self.last = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1), nn.Linear(128, 4)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.function(self, images).flatten(1))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return inputs * inputs.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


PIECEWISE_LINEAR = {
    "batch norm before its convolution": Made(lambda m, x: m.conv(F.relu(m.norm(x))), norm=nn.BatchNorm2d(2)),
    "a convolution used both with and without its batch norm": Made(
        lambda m, x: F.relu(m.norm(z := m.conv(x))) + z, norm=nn.BatchNorm2d(2)
    ),
    "a batch norm after an in-place activation": Made(lambda m, x: m.norm(m.conv(x).relu_()), norm=nn.BatchNorm2d(2)),
    "a convolution used twice": Made(lambda m, x: m.conv(F.relu(m.conv(x)))),
    "dense connections": Made(lambda m, x: torch.cat([m.conv(x)[:, :1], F.leaky_relu(m.other(x), 0.2)[:, 1:]], 1)),
    "scaled, shifted and subtracted": Made(lambda m, x: F.relu(2 * m.conv(x) / 3 + 1) - m.other(x) * 0.5),
    "in place with its result dropped": Made(lambda m, x: (z := m.conv(x), F.relu_(z))[0]),
    "a linear layer after a norm of vectors": Made(
        lambda m, x: m.norm(m.wide(x.flatten(1))).relu(), wide=nn.Linear(128, 128), norm=nn.BatchNorm1d(128)
    ),
    "parameters that scale": Made(lambda m, x: m.gate.weight * m.conv(x), gate=nn.Linear(8, 8)),
}


@pytest.mark.parametrize("what", PIECEWISE_LINEAR)
def test_naive_rule_is_gradient_times_input(what, images):
    """True of every piecewise linear network, so it tells whether any layer is treated twice, not at all or wrongly."""
    model = PIECEWISE_LINEAR[what]
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.fill_(0.3), module.running_var.fill_(0.7)
    torch.testing.assert_close(LRP(rule="naive")(model, images), gradient_times_input(model, images))


WITHOUT_RULE = {
    r"Sigmoid in gate \(Sigmoid\)": Made(lambda m, x: m.gate(m.other(x)) + m.conv(x), gate=nn.Sigmoid()),
    r"Exp in the model|Exp in Made": Made(lambda m, x: m.conv(x).exp()),
    r"LogSoftmax in top \(LogSoftmax\)": Made(lambda m, x: m.top(m.conv(x)), top=nn.LogSoftmax(1)),
    r"Swish in ": Made(lambda m, x: Swish.apply(m.conv(x))),
    r"BatchNorm in norm \(BatchNorm2d\)": Made(
        lambda m, x: m.norm(m.conv(x)), norm=nn.BatchNorm2d(2, track_running_stats=False)
    ),
    r"weights that depend on the image": Made(lambda m, x: F.conv2d(x, m.conv(x)[:2, :, :3, :3], padding=1)),
    r"ConvTranspose|Convolution in up \(ConvTranspose2d\)": Made(
        lambda m, x: m.up(x), up=nn.ConvTranspose2d(2, 2, 3, padding=1)
    ),
}


@pytest.mark.parametrize("words", WITHOUT_RULE)
def test_layers_without_a_rule_are_named(words, images):
    with pytest.raises(ValueError, match=words) as caught:
        LRP()(WITHOUT_RULE[words], images)
    assert str(caught.value).startswith("LRP: model must be made of layers that have a rule; these have none: ")
    assert "\n" not in str(caught.value)


def test_models_that_draw_random_numbers_are_refused(images):
    noisy = Made(lambda m, x: m.conv(x) + torch.randn_like(x))
    with pytest.raises(ValueError, match="LRP: model must compute the same logits each time it runs"):
        LRP()(noisy, images)


def test_nothing_stays_in_memory(images):
    net, method = Residual().double(), LRP(rule="alpha-beta")
    method(net, images)
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
        for _ in range(3):
            method(net, images)
        assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) <= before + 1
    finally:
        gc.enable()


def test_recorded_options_are_those_the_rule_reads():
    assert LRP().options == {"rule": "epsilon", "epsilon": 1.0, "relative": False, "bias": True, "batch_size": None}
    assert LRP(rule="naive").options == {"rule": "naive", "bias": True, "batch_size": None}
    assert set(LRP(rule="alpha-beta").options) == {"rule", "alpha", "beta", "bias", "batch_size"}


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"rule": "gamma"}, ValueError, "rule must be one of epsilon, alpha-beta, naive"),
        ({"epsilon": 0}, ValueError, "epsilon must be finite and greater than 0"),
        ({"epsilon": float("nan")}, ValueError, "epsilon must be finite"),
        ({"rule": "alpha-beta", "alpha": 2, "beta": 0}, ValueError, r"alpha \+ beta = 1"),
        ({"rule": "alpha-beta", "alpha": 0.5, "beta": 0.5}, ValueError, "beta <= 0"),
        ({"rule": "naive", "epsilon": 0.5}, ValueError, "epsilon is an option of rule='epsilon'"),
        ({"alpha": 1.0}, ValueError, "alpha is an option of rule='alpha-beta'"),
        ({"relative": 1}, TypeError, "relative must be True or False"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_bad_options_get_one_sentence(options, error, words):
    with pytest.raises(error, match=words) as caught:
        LRP(**options)
    assert str(caught.value).startswith("LRP: ")


# P2 Table 4.1: numerically stable, consistent with linear mapping, conserves relevance.
VARIANTS = {
    "naive": (LRP(rule="naive", bias=False), (False, True, True)),
    "epsilon": (LRP(epsilon=1.0, bias=False), (True, True, False)),
    "alpha-beta": (LRP(rule="alpha-beta", bias=False), (True, False, True)),
}


def linear_map(weights: list[float], bias: float) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([weights, [0.0] * 4], dtype=torch.float64))
        model[1].bias.copy_(torch.tensor([bias, 0.0]))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_have_the_properties_that_the_paper_says(variant, pictures):
    method, (stable, linear, conserves) = VARIANTS[variant]
    # Contributions 1 and -1 + 1e-9 cancel, while the unit is 1 for its bias.
    cancelling = method(linear_map([1.0, -1.0 + 1e-9, 0, 0], 1.0), torch.ones(1, 1, 2, 2).double())
    assert (float(cancelling.abs().max()) < 10) == stable

    values = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    weights = [1.0, -0.5, 2.0, -0.25]
    shares = method(linear_map(weights, 0.0), values.view(1, 1, 2, 2)).flatten() / (values * torch.tensor(weights))
    assert (float(shares.max() - shares.min()) < 1e-9) == linear  # in proportion to x_i w_i

    conservation = method.explain(vgg_like(bias=False), pictures).conservation
    assert bool(((conservation - 1).abs() < 1e-5).all()) == conserves
