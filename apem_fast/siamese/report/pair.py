"""A pair's explanation as files: a page, the path of the attack as CSV, and every picture as PNG."""

from __future__ import annotations

from pathlib import Path

from apem_fast.files.pictures import png_of
from apem_fast.siamese.explaining import PairExplanation
from apem_fast.siamese.report.page import RankerSection, RankerTable, Row, Tile, write_page

__all__ = ["pair_section", "write_explanation"]

PATH_SHOWN = 8  # rows of the path's table


def pair_section(explanation: PairExplanation, title: str = "Why this pair ranks as it does") -> RankerSection:
    """The section with a pair's pictures and sentences."""
    e, result = explanation, explanation.result
    p, values = e.pictures, e.values
    image, distance = e.attacked, float(result.distance[0])

    def caption(name: str, also: str = "") -> str:
        return f"{also}{values[name]:.4g}" if name in values else also.rstrip(": ")

    largest = float(e.change.abs().max())
    rows = [
        Row(
            "the pair",
            [
                Tile(p["first"], caption("first", "first: ")),
                Tile(p["second"], caption("second", "second: ")),
                Tile(p["perturbed"], caption("perturbed", f"{image}, changed: ")),
                Tile(p["change"], f"the change, of at most {largest:.2g}" if largest else "no change"),
            ],
        ),
        Row(
            "where it changed",
            [
                Tile(p["saliency"], "saliency"),
                Tile(p["red on blue"], "red on blue"),
                Tile(p["green on red"], "green on red"),
                Tile(p["super-pixels"], "super-pixels, by the attack"),
                Tile(p["super-pixels by blacking out"], "super-pixels, by blacking out"),
            ],
        ),
    ]
    seen = ("perception before", "perception after", "where the perception changed")
    if seen[0] in p:
        rows.append(Row("what the network sees", [Tile(p[name], name) for name in seen]))
    path = result.path()
    kept = sorted({round(k * (len(path) - 1) / (PATH_SHOWN - 1)) for k in range(PATH_SHOWN)})
    table = RankerTable(
        ["step", "ranking", "l2 distance"],
        [[int(r.step), f"{r.score:.4f}", f"{r.distance:.4g}"] for r in path.iloc[kept].itertuples()],
        "The attack on its way; path.csv has every step.",
    )
    agreement = "cannot be compared" if e.agreement != e.agreement else f"agree to {e.agreement:.2f} (Spearman)"
    return RankerSection(
        title,
        f"{e} The saliency map is bright where the image had to change most (P3 equations 28 and 29). The "
        f"super-pixels' "
        f"greatest saliency and what blacking each of them out does to the ranking {agreement}.",
        [*rows, table],
        {
            "sentences": list(e.sentences),
            "ranking before": e.score_before,
            "ranking after": e.score_after,
            "target": float(result.target[0]),
            "reached": e.reached,
            "outcome": result.outcome[0],
            "steps": int(result.steps_taken[0]),
            "distance": distance,
            "values": dict(values),
            "agreement with blacking out": None if e.agreement != e.agreement else e.agreement,
        },
    )


def write_explanation(explanation: PairExplanation, folder: str | Path) -> Path:
    """Writes explanation.html with its numbers as JSON, path.csv, and each picture as PNG; returns the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    explanation.result.path().to_csv(folder / "path.csv", index=False)
    for name, picture in explanation.pictures.items():
        (folder / f"{name.replace(' ', '-')}.png").write_bytes(png_of(picture))
    e = explanation
    return write_page(
        folder / "explanation.html",
        "Why these two rank as they do",
        e.sentences[0],
        [
            ("ranking", f"{e.score_before:.4f}"),
            ("target", f"{float(e.result.target[0]):.4g}"),
            ("after the attack", f"{e.score_after:.4f}"),
            ("outcome", e.result.outcome[0]),
            ("steps", str(int(e.result.steps_taken[0]))),
        ],
        [pair_section(e)],
        banner="" if e.reached else e.sentences[1],
    )
