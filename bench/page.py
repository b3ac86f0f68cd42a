"""The size of the page of a run of many images, the time to write it, and its speed in a browser.

    python -m bench.page [--images 1000] [--methods 3] [--keep FOLDER]

The run is written and not computed: its photographs are crops of the bundled ones at 224 pixels, its maps the size of
the gradients in them with as much noise as a network's have, its scores are drawn. So its bytes are a real run's.
"""

from __future__ import annotations

import argparse
import http.server
import json
import queue
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.experiment.inputs.selection import Selection
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.run import tables
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import IMAGES, RunStore
from apem_fast.files.pictures import png_of
from apem_fast.relevance import STAGES

SIDE, DIFFERENT = 224, 60  # pixels of a side; pictures of their own, which the images take in turns
METHODS = ("gradient", "smooth-grad", "grad-cam", "lrp", "edge", "random")


def pictures(random: np.random.Generator) -> tuple[list[bytes], dict[str, list[bytes]]]:
    """PNG files of photographs, and of maps at each stage."""
    bundled = [one.open().convert("RGB") for one in bundled_photographs()]
    photographs: list[bytes] = []
    maps: dict[str, list[bytes]] = {stage: [] for stage in STAGES}
    for number in range(DIFFERENT):
        whole = bundled[number % len(bundled)]
        side = int(min(whole.size) * random.uniform(0.5, 1))
        left, top = (int(random.integers(0, size - side + 1)) for size in whole.size)
        crop = whole.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1).float()[None] / 255
        photographs.append(png_of(pixels[0]))
        slopes = torch.nn.functional.conv2d(
            pixels.mean(1, keepdim=True), torch.tensor([[[[-1.0, 0, 1]]]]), padding=(0, 1)
        )
        noise = torch.from_numpy(random.normal(size=(1, 3, SIDE, SIDE))).float()
        attribution = noise * (slopes.abs() + 0.02)
        for stage, make in STAGES.items():
            maps[stage].append(png_of(make(attribution, pixels)[0]))
    return photographs, maps


def write_run(folder: Path, images: int, methods: tuple[str, ...]) -> RunStore:
    """A run's store of so many images, with all its pictures."""
    random = np.random.default_rng(0)
    options = RunOptions(explainers=methods, pictures=None, block=images)
    store = RunStore.for_run(folder, options, {"network": "", "images": ""})
    names = [f"photograph-{number:05d}" for number in range(images)]
    store.write_selection(Selection(tuple(names)))
    photographs, maps = pictures(random)
    rows = []
    for number, name in enumerate(names):
        store.write_file(store.photograph(name), photographs[number % DIFFERENT])
        right = bool(random.random() < 0.7)
        rows.append(
            tables.empty_row(tables.IMAGES)
            | {"image": name, "subject": f"subject {number % 97}", "source": f"{name}.jpg", "label": number % 97}
            | {"prediction": f"class {number % 97}", "confidence": random.random(), "correct": right, "loss": 0.5}
            | {"truth": f"class {number % 97 if right else 0}", "truth_label": number % 97 if right else 0}
        )
    store.write(0, IMAGES, rows)
    columns = tables.columns_of_results(0, ())
    for place, key in enumerate(methods):
        rows = []
        for stage in options.stages:
            for number, name in enumerate(names):
                store.write_file(store.map(name, key, stage), maps[stage][(number + 7 * place) % DIFFERENT])
                minus, plus = np.ceil(random.lognormal([3, 3 + place / 5], 1)).tolist()
                rows.append(
                    tables.empty_row(columns)
                    | {"image": name, "explainer": key, "stage": stage, "epsilon_minus": minus, "epsilon_plus": plus}
                    | {"score": plus - minus, "flipped_minus": True, "flipped_plus": True, "probes": 14}
                    | {"scan_probes": int(minus + plus), "record": "float64"}
                )
        store.write(0, key, rows)
    return store


ASK = """<script>addEventListener("load", async () => {
  const painted = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  await document.querySelector("#gallery img").decode();
  await painted();
  const found = { first: performance.now() };
  const timed = async (act) => {
    const times = [];
    for (let i = 0; i < 7; i += 1) {
      const began = performance.now();
      act(i);
      await Promise.all([...document.querySelectorAll("#gallery img[src]")].slice(0, 8).map((one) => one.decode()));
      await painted();
      times.push(performance.now() - began);
    }
    return times;
  };
  const set = (name, value) => { form.elements[name].value = value; form.dispatchEvent(new Event("input")); };
  found.filter = await timed((i) => set("text", "class " + (3 + i)));
  set("text", "");
  found.order = await timed((i) => set("order", ["best", "disagreement", "worst"][i % 3]));
  found.page = await timed(() => document.getElementById("later").click());
  found.stage = await timed((i) => tabs.children[i % tabs.children.length].click());
  await fetch("/found", { method: "POST", body: JSON.stringify(found) });
});</script></body>"""


def in_browser(page: Path) -> dict[str, float]:
    """Milliseconds in a headless Chromium, by its own clock, medians of seven: until the first picture is painted, and
    for each kind of change until what it shows is."""
    contents = page.read_text("utf-8").replace("</body>", ASK).encode()
    answers: queue.Queue[dict] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(contents)))
            self.end_headers()
            self.wfile.write(contents)

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1280,900"]
        browser = subprocess.Popen(
            [chromium, *options, f"--user-data-dir={profile}", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            found = answers.get(timeout=120)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    return {name: statistics.median(value) if isinstance(value, list) else value for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--methods", type=int, default=3, choices=range(1, len(METHODS) + 1))
    parser.add_argument("--keep", type=Path, help="a folder for the run, which is else thrown away")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = chosen.keep or Path(folder) / "run"
        has_run = (run / "run.json").exists()
        store = RunStore(run) if has_run else write_run(run, chosen.images, METHODS[: chosen.methods])
        began = time.perf_counter()
        page = write_page(store)
        seconds = time.perf_counter() - began
        maps = chosen.images * chosen.methods * len(STAGES)
        print(
            f"{chosen.images:,} images, {maps:,} maps: {page.stat().st_size / 1e6:.1f} MB, written in {seconds:.1f} s"
        )
        for name, value in in_browser(page).items():
            print(f"{name}: {value:.0f} ms")


if __name__ == "__main__":
    main()
