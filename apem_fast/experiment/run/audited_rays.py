"""The rays of a run that an audit draws, and the audit's result for all of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from apem_fast import validation
from apem_fast.experiment.run.store import RunStore
from apem_fast.files.checksums import Damaged, checked_json
from apem_fast.metric.auditing import CONFIDENCE, Audit, Difference, drawn, most_wrong_of

KEY = ["image", "explainer", "stage", "irrelevance"]
"""The columns that identify a ray."""


@dataclass(frozen=True)
class RunAudit(Audit):
    """The result of an audit of a run: what a scan of some rays says about all epsilons."""

    most_wrong_count: int = 0  # with 95 % confidence, at most so many of the `of` epsilons are wrong
    seed: int = 0
    stratified: bool = False
    seconds: float = 0.0
    population: str = ""  # a digest of the run's epsilons
    made_with: dict[str, Any] | None = None
    up_to: float | None = None  # the `of` rays are those whose epsilon was found to be at most this; None: all rays
    others: int = 0  # the other rays, about which it says nothing

    @property
    def most_wrong(self) -> float:
        return self.most_wrong_count / self.of

    def __str__(self) -> str:
        if self.up_to is None:
            return super().__str__()
        return (
            f"{super().__str__()} These are the {self.of:,} of {self.of + self.others:,} rays whose epsilon was found "
            f"to be at most {self.up_to:g}; nothing is said of the others."
        )


def rays_of(store: RunStore) -> pandas.DataFrame:
    """Every ray of the run's table: image, explainer, stage, irrelevance, found, found_flipped, record."""
    results = store.results()
    if len(results):
        results = results[(results["flag"].fillna("") == "") & results["score"].notna()]
    if results.empty:
        raise ValueError(f"{store.folder} holds no finished results to audit")
    sides = []
    for sign in ("minus", "plus"):
        side = results[["image", "explainer", "stage", "record"]].copy()
        side["irrelevance"] = sign == "plus"
        side["found"] = results[f"epsilon_{sign}"].astype(float)
        side["found_flipped"] = results[f"flipped_{sign}"].astype(bool)
        sides.append(side)
    return pandas.concat(sides).sort_index(kind="stable").reset_index(drop=True)


def digest_of_rays(rays: pandas.DataFrame) -> str:
    """A digest of all rays and their epsilons."""
    plain = rays[[*KEY, "found", "found_flipped"]].to_csv(index=False)
    return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()


def within(every: pandas.DataFrame, up_to: float | None) -> pandas.DataFrame:
    """The rays that were found to flip at `up_to` or before; all for None."""
    if up_to is None:
        return every
    chosen = every[every["found_flipped"] & (every["found"] <= validation.positive("up_to", up_to))]
    if chosen.empty:
        raise ValueError(f"up_to must be at least the run's least epsilon, {every['found'].min():g} (got {up_to:g})")
    return chosen.reset_index(drop=True)


def draw(every: pandas.DataFrame, rays: int, seed: int, stratified: bool) -> pandas.DataFrame:
    """Draws `rays` of them at random, without replacement. A larger draw with the same seed contains the smaller one.

    Args:
        stratified: whether each explainer and stage gets its share.

    Raises:
        ValueError: there are not so many rays, or fewer than one is asked for.
    """
    rays = validation.whole("rays", rays)
    if rays > len(every):
        raise ValueError(f"rays must be at most the {len(every):,} that there are to draw from (got {rays:,})")
    if not stratified:
        return every.iloc[np.sort(np.random.default_rng(seed).permutation(len(every))[:rays])]
    of_stratum = {f"{key} {stage}": part.index for (key, stage), part in _strata(every)}
    chosen = drawn({name: len(index) for name, index in of_stratum.items()}, rays, seed)
    return every.loc[np.sort(np.concatenate([of_stratum[name][places] for name, places in chosen.items()]))]


def _strata(rays: pandas.DataFrame) -> Any:
    return rays.groupby(["explainer", "stage"], sort=False)


def bound(every: pandas.DataFrame, audited: pandas.DataFrame, wrong: pandas.DataFrame, stratified: bool) -> int:
    """The greatest number of the run's epsilons that can be wrong, with 95 % confidence.

    For a draw from all rays it is the exact bound. For a stratified draw without a wrong ray it is the greatest number
    of wrong rays, wherever they are, that such a draw misses with a probability above 5 %. For a stratified draw with
    wrong rays it is the sum of the strata's own bounds, at a higher confidence, so that all hold together.
    """
    if not stratified or len(audited) == len(every):
        return most_wrong_of(len(every), len(audited), len(wrong))
    sizes, drawn_of, wrong_of = (Counter(zip(part["explainer"], part["stage"])) for part in (every, audited, wrong))
    if len(wrong):
        confidence = 1 - (1 - CONFIDENCE) / len(sizes)
        return sum(most_wrong_of(size, drawn_of[one], wrong_of[one], confidence) for one, size in sizes.items())
    # The draw misses each further wrong ray of a stratum with the probability below. It falls within a stratum, so the
    # greatest probabilities of all strata are the worst case.
    passed = [max(0, size - drawn_of[one] - k) / (size - k) for one, size in sizes.items() for k in range(size)]
    together = np.cumprod(sorted(passed, reverse=True))
    return int((together > 1 - CONFIDENCE).sum())


def read_audit(store: RunStore) -> RunAudit | None:
    """The result of the run's last audit; None if there is none, or if epsilons have changed since.

    Raises:
        ValueError: the record is damaged.
    """
    path = store.inside("audit", "audit.json")
    try:
        record = checked_json(path.read_bytes())
        differences = tuple(Difference(**one) for one in record.pop("differences"))
        audit = RunAudit(differences=differences, **record)
    except FileNotFoundError:
        return None
    except (OSError, Damaged, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); the same audit writes it again") from None
    return audit if audit.population == digest_of_rays(rays_of(store)) else None
