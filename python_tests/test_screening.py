"""Verified low precision: the epsilons are float32's, whatever the low precision says."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import Given, images_and_maps, small_network
from torch import nn

import apem_fast as af
from apem_fast.probing import screening
from apem_fast.probing import trial as trial_module
from apem_fast.probing.batch_prober import BatchProber, tuner_for
from apem_fast.probing.engine import find_flips
from apem_fast.probing.rays import direction_rays
from apem_fast.probing.trial import Trial
from apem_fast.running import low_precision as low_precision_module
from apem_fast.running.clean import Clean
from apem_fast.running.low_precision import FirstLayerExact, TooSlow
from apem_fast.running.record import Record
from apem_fast.running.runners import PlainRunner
from apem_fast.search import policy_of

GRID = {"max_epsilon": 40.0, "step": 0.25}
LOW = ["bfloat16", "float16"]


pytestmark = pytest.mark.usefixtures("screened_throughout")


class Liar(nn.Module):
    """A classifier that answers differently, and counts its images, when it is run in low precision."""

    def __init__(self, lie):
        super().__init__()
        self.network, self.lie = small_network(), lie
        self.screened = self.exact = 0

    def forward(self, x):
        low = torch.is_autocast_enabled("cpu")
        self.screened, self.exact = self.screened + low * len(x), self.exact + (not low) * len(x)
        with torch.autocast("cpu", enabled=False):
            logits = self.network(x.float() if low else x)
        return self.lie(logits, x).to(torch.bfloat16) if low else logits


def top(logits):
    return nn.functional.one_hot(logits.argmax(1), logits.shape[1])


LIES = {
    "honest": lambda logits, x: logits,
    "sure of everything": lambda logits, x: logits + 30 * top(logits),
    "sure of the first class": lambda logits, x: logits * 0 + torch.eye(logits.shape[1])[0] * 50,
    "off by a lot": lambda logits, x: logits + torch.linspace(-3, 3, logits.shape[1]),
    "noisy": lambda logits, x: logits + 2 * torch.sin(1e4 * x.sum(dim=(1, 2, 3)))[:, None] * top(logits),
    "not a number": lambda logits, x: logits * torch.nan,
    "not a number here and there": lambda logits, x: torch.where(x.sum(dim=(1, 2, 3))[:, None] > 0, torch.inf, logits),
}


def assert_same_epsilons(one, other):
    for name in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("batch_size", [3, None])
def test_epsilons_are_those_of_float32(search, precision, batch_size):
    model = small_network()
    images, relevance = images_and_maps(6)
    exact = af.apem(model, images, relevance, search=search, **GRID)
    screened = af.apem(model, images, relevance, search=search, precision=precision, batch_size=batch_size, **GRID)
    assert_same_epsilons(screened, exact)


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
@pytest.mark.parametrize("lie", LIES)
def test_no_lie_changes_an_epsilon(search, lie):
    model = Liar(LIES[lie]).eval()
    images, relevance = images_and_maps(6)
    exact = af.apem(model, images, relevance, search=search, **GRID)
    assert_same_epsilons(af.apem(model, images, relevance, search=search, precision="bfloat16", **GRID), exact)
    assert model.screened > 0


def test_the_screen_spares_probes_in_float32():
    """In a scan of every grid point most are far from the flip."""
    model = Liar(LIES["honest"]).eval()
    images, relevance = images_and_maps(6)
    af.apem(model, images, relevance, search="exhaustive", **GRID)
    alone, model.exact = model.exact, 0
    af.apem(model, images, relevance, search="exhaustive", precision="bfloat16", **GRID)
    assert model.exact < alone / 2


def test_every_input_is_counted():
    model = Liar(LIES["off by a lot"]).eval()
    images, relevance = images_and_maps(6)
    evaluator = af.Evaluator(model, images, precision="bfloat16", **GRID)
    model.exact = model.screened = 0
    result = evaluator.apem({"relevance": relevance})["relevance"]
    assert int(result.probes.sum()) == model.exact + model.screened


class Clock:
    """Passes by as told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    "seconds, pays",
    [((3.9, 0.9), True), ((3.9, 1.1), False), ((4.1, 0.1), False), ((0.5, 0.5), True)],
    ids=["slow to start", "no faster", "far too slow", "faster at once"],
)
def test_a_precision_is_tried_once_float32_has_worked(seconds, pays):
    clock, runs = Clock(), list(seconds)
    trial = Trial(True, clock)
    for _ in range(trial_module.WORK_BEFORE // 100):
        assert trial.pays is None and not trial.is_due
        trial.answered(100)
    assert trial.is_due

    def run(deadline):
        assert deadline > clock.now
        clock.now += runs.pop(0)

    trial.run(run, 1.0)
    assert trial.pays is pays and not trial.is_due
    assert clock.now <= 5.1


def test_a_run_in_a_precision_that_the_machine_lacks_is_broken_off(monkeypatch):
    """Every layer takes a second, and ten in low precision."""
    clock = Clock()
    monkeypatch.setattr(low_precision_module.time, "perf_counter", clock)

    class Layers(nn.Module):
        def forward(self, x):
            for _ in range(20):
                clock.now += 10.0 if torch.is_autocast_enabled("cpu") else 1.0
                x = torch.relu(x)
            return x.flatten(1)

    model = FirstLayerExact(Layers())
    runner, given = PlainRunner(model), Given(torch.ones(1, 1, 2, 2))
    with low_precision_module.low_precision("bfloat16", "cpu"), runner.broken_off_at(45.0), pytest.raises(TooSlow):
        runner(given, given.columns, 1, exact=False)
    assert clock.now == 50.0 and model.deadline is None
    assert runner(given, given.columns, 1, exact=True).shape == (1, 4)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_precision_that_the_machine_lacks_costs_two_runs_of_one_image(monkeypatch, batch_size):
    monkeypatch.setattr("apem_fast.metric.evaluator.Trial", Trial)
    monkeypatch.setattr(trial_module, "WORK_BEFORE", 10)
    monkeypatch.setattr(Trial, "_within", lambda self, seconds, one_input: one_input(1e9) or seconds > 2)
    monkeypatch.setattr(screening.BatchTuner, "seconds_an_input", 1.0)
    model = Liar(LIES["honest"]).eval()
    images, relevance = images_and_maps(6)
    evaluator = af.Evaluator(model, images, precision="bfloat16", batch_size=batch_size, **GRID)
    result = evaluator.apem({"maps": relevance})["maps"]
    assert 1 <= model.screened <= 2
    evaluator.on(images).apem({"maps": relevance})
    assert model.screened <= 2
    assert_same_epsilons(result, af.apem(model, images, relevance, **GRID))


def test_searches_that_waste_it_leave_the_precision():
    trial = Trial(clock_is_free=False)
    assert trial.pays and not trial.is_due
    trial.was_wasteful()
    assert trial.pays
    trial.was_wasteful()
    assert trial.pays is False


def test_a_screen_that_costs_more_than_it_spares_is_left(monkeypatch):
    monkeypatch.setattr(screening, "ON_TRIAL", 8)
    monkeypatch.setattr(screening.BatchTuner, "seconds_an_input", 1.0)
    model = Liar(LIES["noisy"]).eval()
    images, relevance = images_and_maps(6)
    af.apem(model, images, relevance, search="exhaustive", precision="bfloat16", **GRID)
    assert model.screened < model.exact / 2


class Noting(nn.Module):
    """Notes what its first and its last layer were given and gave back in low precision."""

    def __init__(self):
        super().__init__()
        self.network, self.first, self.last = small_network(), [], []

    def forward(self, x):
        first = self.network[0](x)
        middle = self.network[1:-1](first)
        last = self.network[-1](middle)
        if torch.is_autocast_enabled("cpu"):
            self.first.append((x, first))
            self.last.append((middle, last))
        return last


@pytest.mark.parametrize("precision", LOW)
def test_the_screen_rounds_no_input(precision):
    model = Noting().eval()
    images, relevance = images_and_maps(3)
    af.apem(model, images, relevance, precision=precision, **GRID)
    assert model.first
    dtype = getattr(torch, precision)
    with torch.no_grad():
        for x, first in model.first:
            torch.testing.assert_close(first, model.network[0](x).to(dtype))
            assert x.dtype == torch.float32 and first.dtype == dtype
        assert {last.dtype for _, last in model.last} == {dtype}


# -- scripted margins ---------------------------------------------------------------------------------------------

LAST = 400
CURVES = {  # of float32, by epsilon: they flip at 100 and stay so, or come back
    "falls": lambda e: 2 - e / 50,
    "comes back": lambda e: np.where(e < 200, 2 - e / 50, (e - 250) / 20),
    "bends": lambda e: 4 * np.exp(-e / 40) - 4 * np.exp(-2.5),
    "never flips": lambda e: 3 - e / 200,
}
DRIFTS = {  # of the screen: what it adds
    "none": lambda e: 0 * e,
    "slow": lambda e: 0.3 - e / 900,
    "fast and even": lambda e: e / 40,
    "jumps up": lambda e: np.where(e > 60, 10.0, 0.0),
    "jumps up late": lambda e: np.where(e > 99, 10.0, 0.0),
    "jumps down": lambda e: np.where(e > 60, -10.0, 0.0),
    "stays as it was": None,  # 2 throughout, whatever the image
    "noise": lambda e: 0.5 * np.sin(1e4 * e),
    "overflows late": lambda e: np.where(e > 60, np.nan, 0.0),
}


class Scripted(BatchProber):
    """Margins from two functions of ray and epsilon, in float32 and of the screen; no model is run."""

    def __init__(self, exact, screened, lanes):
        rays, self.wanted_lanes = len(exact), lanes
        images = torch.zeros(rays, 1, 2, 2)
        start = np.array([float(curve(np.zeros(1))[0]) for curve in exact])
        nothing = torch.empty(0)
        clean = Clean(torch.zeros(rays, dtype=torch.int64), start, nothing, nothing, nothing)
        described = direction_rays(images, clean, torch.ones_like(images))
        model = nn.Identity()
        runner = PlainRunner(model)
        record = Record(model, runner, images)
        super().__init__(model, described, tuner_for(images, 8), runner, record)
        self.exact, self.screened, self.asked = exact, screened, 0

    def start(self, ray, epsilon, *, rays=None, precision=None, tuner=None):
        curves = self.exact if precision is None else self.screened
        self.asked += (precision is None) * len(ray)
        margin = np.array([float(curves[r](np.array([e]))[0]) for r, e in zip(ray, epsilon)])
        return SimpleNamespace(read=lambda: (margin, margin < 0, np.zeros(len(ray))))

    def _alone(self, ray, epsilon, rays):
        yield from ()
        margin = np.array([float(self.exact[r](np.array([e]))[0]) for r, e in zip(ray, epsilon)])
        return margin, margin < 0

    @property
    def lanes(self):
        return self.wanted_lanes


def flips_of(search, pairs, lanes=1):
    """Flips of (float32, screened) curves, and the prober that was asked in float32."""
    prober = Scripted(*zip(*pairs), lanes)
    with prober:
        screen = screening.ScreeningProber(prober, "float16", tuner_for(prober.rays.images, 8), Trial(False))
        flips = find_flips(screen, policy_of(search), step=1.0, last_step=LAST)
    return flips, prober


def assert_right(flips, pairs):
    grid = np.arange(1.0, LAST + 1)
    for (exact, _), step, flipped in zip(pairs, flips.step, flips.flipped):
        below = np.flatnonzero(exact(grid) < 0)
        assert flipped == (len(below) > 0)
        assert step == (below[0] + 1 if len(below) else LAST)


def honest_rays(count):
    rng = np.random.default_rng(0)

    def pair(slope, offset):
        return lambda e: 2 - slope * e, lambda e: 2 - slope * e + offset + 0.002 * np.sin(1e3 * slope * e)

    return [pair(*drawn) for drawn in zip(rng.uniform(0.01, 0.1, count), rng.normal(0, 0.01, count))]


def wavy_rays(count, drift):
    """Margins that dip and come back, and heavy-tailed differences that wander."""
    rng = np.random.default_rng(1)

    def pair():
        height, decay = rng.uniform(0.3, 3), rng.uniform(30, 400)
        wave, speed, phase = 0.1 * height * rng.uniform(size=3), rng.uniform(0.005, 0.06, 3), rng.uniform(0, 6, 3)
        off, slow, start = drift * rng.standard_t(3, 3), rng.uniform(0.002, 0.02, 3), rng.uniform(0, 6, 3)
        falls = rng.uniform(0.05, 0.6) * height

        def exact(e):
            waves = wave * (np.sin(speed * e[:, None] + phase) - np.sin(phase))
            return height * np.exp(-e / decay) - falls + waves.sum(axis=1)

        def screened(e):
            wanders = (off * np.sin(slow * e[:, None] + start)).sum(axis=1)
            return exact(e) + wanders + 0.3 * drift * np.sin(1e4 * (e + 1) * speed[0])

        return exact, screened

    return [pair() for _ in range(count)]


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("drift", DRIFTS)
def test_a_liar_among_honest_rays(search, curve, drift):
    """The band is narrow, because all others are honest. On a GPU two searches take turns and share what is learnt."""
    lanes = 1 + (len(curve) + len(drift)) % 2
    exact, off = CURVES[curve], DRIFTS[drift]
    pairs = honest_rays(40)
    pairs.insert(20, (exact, (lambda e: 0 * e + 2.0) if off is None else (lambda e: exact(e) + off(e))))
    assert_right(flips_of(search, pairs, lanes)[0], pairs)


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
def test_honest_rays_need_little_more_than_the_two_points_at_their_flips(search):
    pairs = honest_rays(40)
    flips, prober = flips_of(search, pairs)
    assert_right(flips, pairs)
    assert prober.asked < 4 * len(pairs)


@pytest.mark.parametrize("drift", [0.005, 0.03, 0.1])
def test_differences_that_wander_hide_no_flip(drift):
    """In a scan of every grid point, so that nothing but the screen could miss one."""
    pairs = wavy_rays(80, drift)
    flips, prober = flips_of("exhaustive", pairs)
    assert_right(flips, pairs)
    assert prober.asked < flips.step.sum()


class Rejects(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("operator is not implemented for 'BFloat16'")
        return self.network(x)


def test_a_model_that_rejects_the_precision():
    images, relevance = images_and_maps(2)
    with pytest.raises(ValueError, match=r'apem: precision="bfloat16" needs a model that runs in it \(got operator is'):
        af.apem(Rejects().eval(), images, relevance, precision="bfloat16", **GRID)


@pytest.mark.parametrize(
    "options, dtype, sentence",
    [
        ({"precision": "int8"}, torch.float32, r"apem: precision must be one of float32, .*, tf32 \(got 'int8'\)"),
        (
            {"precision": "bfloat16"},
            torch.float64,
            r'apem: precision="bfloat16" goes with float32 images \(got float64\)',
        ),
        ({"precision": "tf32"}, torch.float32, r'apem: precision="tf32" needs images on a CUDA device \(got cpu\)'),
    ],
)
def test_bad_precision(options, dtype, sentence):
    images, relevance = images_and_maps(1, dtype=dtype)
    with pytest.raises(ValueError, match=sentence):
        af.apem(small_network(dtype=dtype), images, relevance, **options, **GRID)
