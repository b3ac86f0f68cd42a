"""The probes that a search asks for, one after the other, on curves made of + - * / alone, which every machine computes
to the bit. A change of what the search aims at shows here, before it shows in how many probes an epsilon takes.

`python python_tests/test_search_steps.py` prints the table anew.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from apem_fast.search import CENSORED, Isolate, Measured, lowest_margin, policy_of
from apem_fast.search.isolate import unexplained_bend

LAST = 400
k = np.arange(LAST + 1.0)
near, far = (k - 60) / 8, (k - 150) / 40
CURVES = {
    "straight": 2 - 0.013 * k,
    "at once": 0.5 - k,
    "decays": 3 / (1 + k / 60) - 0.5,
    "steepens": 2 - (k / 150) * (k / 150) * (k / 150),
    "dip": 1 - 1.2 / (1 + far * far),
    "near miss": 1 - 0.97 / (1 + near * near) - k / 300,
    "rises": 1 + k / 100,
    "falls to a floor": 0.3 + 2 / (1 + k / 40),
    "constant": 0 * k + 0.7,
    "cliff": np.where(k < 333, 1.0, -1.0),
    "two slopes": np.where(k < 90, 2 - k / 100, 1.1 - (k - 90) / 300),
    "touches 0": np.abs(k - 70) / 70 * np.where(k < 200, 1, -1),
}
POLICIES = {
    "isolate": Isolate(),
    "fast": policy_of("fast"),
    "careful": policy_of("careful"),
    "shallow": Isolate(safety=2, spread=1, flat=10, steep=30, growth=0.5, depth=3),
}

# Policy, room in a batch, curve, and steps: those that are asked for together are joined by +, the answer follows =.
ASKED = """
isolate |  1 | straight         | 153 154 = 154
isolate |  1 | at once          | 1 = 1
isolate |  1 | decays           | 50 112 76 217 155 291 247 300 301 = 301
isolate |  1 | steepens         | 64 142 220 180 187 188 189 = 189
isolate |  1 | dip              | 80 254 159 145 131 111 122 132 133 = 133
isolate |  1 | near miss        | 251 108 304 299 300 = 300
isolate |  1 | rises            | 99 45 20 9 163 227 291 355 433 = -1
isolate |  1 | falls to a floor | 47 126 82 308 207 252 390 339 475 = -1
isolate |  1 | constant         | 64 128 192 256 320 390 475 = -1
isolate |  1 | cliff            | 64 128 192 256 320 390 355 337 328 324 326 332 330 334 333 = 333
isolate |  1 | two slopes       | 199 73 441 315 257 = -1
isolate |  1 | touches 0        | 70 71 135 103 87 79 199 263 224 210 204 201 200 = 200
isolate | 32 | straight         | 153+154 = 154
isolate | 32 | at once          | 1 = 1
isolate | 32 | decays           | 50+51 112+113 76+77 217+218 155+156 291+292 247+248 300+301 = 301
isolate | 32 | steepens         | 64+65 142+143 220+221 180+181 187+188 189 = 189
isolate | 32 | dip              | 80+81 254+255 159+160 145+146 131+132 111+112 122+123 133 = 133
isolate | 32 | near miss        | 251+252 108+109 304+305 299+300 = 300
isolate | 32 | rises            | 99+100 45+46 20+21 9+10 163+164 227+228 291+292 355+356 433 = -1
isolate | 32 | falls to a floor | 47+48 126+127 82+83 308+309 207+208 252+253 390+391 339+340 475 = -1
isolate | 32 | constant         | 64+65 128+129 192+193 256+257 320+321 390+391 475 = -1
isolate | 32 | two slopes       | 199+200 73+74 441 315+316 257+258 = -1
isolate | 64 | straight         | 76+153+154+229 = 154
isolate | 64 | at once          | 1 = 1
isolate | 64 | steepens         | 32+64+65+96 103+142+143+181 220+221+259 161+180+199 183+187+188+190 189 = 189
isolate | 64 | near miss        | 125+251+252+376 54+108+109+162 277+304+305+330 275+299+300+301 = 300
isolate | 64 | constant         | 32+64+65+96 128+129+160 192+193+224 256+257+288 320+321+352 355+390+391 475 = -1
isolate | 64 | two slopes       | 99+199+200+298 36+73+74+109 320+441 257+315+316+373 = -1
fast    |  1 | straight         | 153 154 = 154
fast    |  1 | at once          | 1 = 1
fast    |  1 | decays           | 50 112 75 217 153 290 301 300 = 301
fast    |  1 | steepens         | 128 317 157 173 181 185 187 188 189 = 189
fast    |  1 | dip              | 219 513 350 277 437 = -1
fast    |  1 | near miss        | 251 312 299 300 = 300
fast    |  1 | rises            | 99 44 20 227 355 483 = -1
fast    |  1 | falls to a floor | 47 126 81 420 253 = -1
fast    |  1 | constant         | 128 256 384 512 = -1
fast    |  1 | cliff            | 128 256 384 320 282 296 352 336 328 323 325 332 330 334 333 = 333
fast    |  1 | two slopes       | 199 373 267 420 = -1
fast    |  1 | touches 0        | 70 71 199 135 103 87 79 327 241 217 207 202 200 = 200
careful |  1 | straight         | 85 153 154 = 154
careful |  1 | at once          | 1 = 1
careful |  1 | decays           | 50 112 78 216 158 292 249 300 301 = 301
careful |  1 | steepens         | 32 64 101 161 196 187 188 189 = 189
careful |  1 | dip              | 35 75 152 135 131 105 120 132 133 = 133
careful |  1 | near miss        | 51 74 62 59 56 54 53 57 = 57
careful |  1 | rises            | 99 47 22 10 73 131 163 195 227 259 291 327 367 412 = -1
careful |  1 | falls to a floor | 47 126 84 64 172 146 214 189 253 230 290 326 366 411 = -1
careful |  1 | constant         | 32 64 96 128 160 192 224 256 288 324 364 409 = -1
careful |  1 | cliff            | 32 64 96 128 160 192 224 256 288 324 364 344 334 329 326 327 328 331 330 332 333 = 333
careful |  1 | two slopes       | 61 164 103 128 215 275 369 420 392 381 404 = -1
careful |  1 | touches 0        | 70 71 103 87 79 75 135 167 199 231 213 205 201 200 = 200
shallow |  1 | straight         | 11 22 33 49 73 109 153 154 = 154
shallow |  1 | at once          | 1 = 1
shallow |  1 | decays           | 16 7 30 22 45 67 100 150 225 290 301 300 = 301
shallow |  1 | steepens         | 10 20 30 45 67 100 150 203 185 188 189 = 189
shallow |  1 | dip              | 10 20 30 45 67 100 150 136 131 119 132 133 = 133
shallow |  1 | near miss        | 10 20 31 46 74 57 56 52 = 57
shallow |  1 | rises            | 12 5 22 33 49 73 109 163 244 366 549 = -1
shallow |  1 | falls to a floor | 17 7 30 45 67 100 150 225 337 505 = -1
shallow |  1 | constant         | 10 20 30 45 67 100 150 225 337 505 = -1
shallow |  1 | cliff            | 10 20 30 45 67 100 150 225 337 281 244 309 291 323 314 330 325 333 331 332 = 333
shallow |  1 | two slopes       | 11 22 33 49 73 109 163 244 366 419 = -1
shallow |  1 | touches 0        | 14 29 49 39 70 71 106 89 80 75 133 199 298 234 214 206 202 200 = 200
"""
ROWS = [tuple(part.strip() for part in row.split("|")) for row in ASKED.strip().splitlines()]


def asked(policy, curve, room: int) -> str:
    state = policy.start(curve[:1], np.abs(curve[:1] - curve[1:2]), LAST)
    said = []
    while len(state.undecided):
        row, step = policy.ask(state, room)
        said.append("+".join(map(str, step.tolist())))
        margin = curve[np.minimum(step, LAST)]
        state = policy.tell(state, Measured(row, step, margin, margin < 0))
    return f"{' '.join(said)} = {int(state.first_flip[0])}"


@pytest.mark.parametrize("name, room, curve, expected", ROWS, ids=lambda value: value.split()[0])
def test_steps(name, room, curve, expected):
    assert asked(POLICIES[name], CURVES[curve], int(room)) == expected


def test_many_rays_are_asked_for_what_each_is_asked_for_alone():
    """With room for two probes of each, and rays that leave as they are decided."""
    curves = np.stack(list(CURVES.values()))
    policy, said = Isolate(), [[] for _ in curves]
    state = policy.start(curves[:, 0], np.abs(curves[:, 0] - curves[:, 1]), LAST)
    ray = np.arange(len(curves))
    while len(ray):
        row, step = policy.ask(state, 32 * len(ray))
        for r in np.unique(row):
            said[ray[r]].append("+".join(map(str, step[row == r].tolist())))
        margin = curves[ray[row], np.minimum(step, LAST)]
        state = policy.tell(state, Measured(row, step, margin, margin < 0))
        ray, state = ray[state.undecided], state.only(state.undecided)
    assert [" ".join(one) for one in said] == [asked(policy, curve, 32).split(" = ")[0] for curve in curves]


# -- the bound -------------------------------------------------------------------------------------------------------


def bound(*numbers: float, unexplained: float = 0.0) -> tuple[float, float]:
    safety, *rest = (np.array([float(value)]) for value in numbers)
    lowest, share = lowest_margin(safety, *rest, np.array([unexplained]))
    return float(lowest[0]), float(share[0])


def test_the_bound_is_where_the_steepest_fall_meets_the_flattest():
    # Falls of 1 on the left, 0.5 here, 0.25 on the right; further out by half of the steepest: from -0.25 to 1.5.
    assert bound(0.5, 10, 5, 10, 1, 0.25) == (10 - 1.5 * 10 * (0.75 / 1.75), 0.75 / 1.75)
    # By the spread, 0.75, times 2: from -1.25 to 2.5.
    assert bound(2, 10, 5, 10, 1, 0.25) == (10 - 2.5 * 10 * (1.75 / 3.75), 1.75 / 3.75)
    # By what is unexplained: from -1.75 to 3.
    assert bound(0.5, 10, 5, 10, 1, 0.25, unexplained=2.0) == (10 - 3 * 10 * (2.25 / 4.75), 2.25 / 4.75)
    # Of slopes that are not known nothing is taken; an even fall of 0.5 lies in 0.25 to 0.75.
    assert bound(0.5, 10, 5, 10, math.nan, math.nan) == (10 - 0.75 * 10 * 0.5, 0.5)
    # A rise of 0.5: further out by half of it, whatever its sign, so the fall lies in -0.75 to -0.25.
    assert bound(0.0, 5, 10, 10, math.nan, math.nan) == (5 + 0.25 * 10 * 0.5, 0.5)
    assert bound(0.5, 3, 3, 10, 0, 0) == (3.0, 0.0)


def test_what_lies_on_a_line_has_no_bend():
    def bend(falls, middles):
        worst = unexplained_bend([np.array([f]) for f in falls], [np.array([float(m)]) for m in middles])
        return float(worst[0])

    assert bend([4.0, 3.0, 1.0], [0, 1, 3]) == 0.0
    assert bend([4.0, 3.5, 1.0], [0, 1, 3]) == 0.5
    assert bend([4.0, 3.0, 1.0, 0.5], [0, 1, 3, 4]) == pytest.approx(1 / 3)  # a line from 3 to 0.5 has 4/3 there
    assert math.isnan(bend([math.nan, 3.0, 1.0], [0, 1, 3])) and math.isnan(bend([3.0, 1.0], [0, 1]))


def test_a_ray_that_is_resumed_goes_on_from_there():
    curve = CURVES["decays"]
    state = Isolate().resume(50, curve[50], 0.01, LAST, [(112, curve[112], False), (320, curve[320], True)])
    assert state.cleared.tolist() == [112] and state.points.tolist() == [1]
    done = Isolate().resume(300, curve[300], 0.01, LAST, [(301, curve[301], True)])
    assert done.first_flip.tolist() == [301]
    fresh = Isolate().resume(10, curve[10], 0.01, LAST, [])
    assert fresh.first_flip.tolist() == [0] and fresh.points.tolist() == [0] and fresh.cleared.tolist() == [10]
    assert Isolate().resume(399, 0.3, 0.0, LAST, [(400, 0.29, False)]).first_flip.tolist() == [CENSORED]


def table() -> list[str]:
    """As far as a line holds it."""
    rooms = {name: (1, 32, 64) if name == "isolate" else (1,) for name in POLICIES}
    rows = [(name, room, curve) for name in POLICIES for room in rooms[name] for curve in CURVES]
    lines = [f"{n:8}| {room:>2} | {curve:16} | {asked(POLICIES[n], CURVES[curve], room)}" for n, room, curve in rows]
    return [line for line in lines if len(line) <= 120]


if __name__ == "__main__":
    print("\n".join(table()))
