// Fills the gallery from the JSON beside it, and shows a map closely.
"use strict";

const run = JSON.parse(document.getElementById("data").textContent);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const signed = new Intl.NumberFormat("en", { maximumFractionDigits: 2, signDisplay: "exceptZero" });

const copy = (name) => document.getElementById(name).content.firstElementChild.cloneNode(true);

// -- maps -----------------------------------------------------------------------------------------------------------

function place(epsilon) {
  const low = Math.log(run.step), high = Math.log(run.max_epsilon);
  return high > low ? 3 + 94 * (Math.log(Math.max(epsilon, run.step)) - low) / (high - low) : 50;
}

function drawRay(svg, entry) {
  const minus = place(entry.epsilon_minus), plus = place(entry.epsilon_plus);
  const gap = svg.querySelector(".gap");
  gap.setAttribute("x1", minus);
  gap.setAttribute("x2", plus);
  gap.classList.toggle("negative", entry.score < 0);
  for (const [name, x] of [["minus", minus], ["plus", plus]]) {
    const dot = svg.querySelector("circle." + name);
    dot.setAttribute("cx", x);
    dot.classList.toggle("censored", !entry["flipped_" + name]);
  }
}

// A censored ray leaves a bound of the score, two leave none.
function scoreOf(entry) {
  const mark = entry.flipped_minus ? (entry.flipped_plus ? "" : "≥ ") : (entry.flipped_plus ? "≤ " : "≈ ");
  return mark + signed.format(entry.score).replace("-", "−");
}

function numbers(entry) {
  if (entry.flag || entry.score === undefined) return "not measured: " + (entry.flag || "no score");
  const sign = (flipped) => (flipped ? "= " : "> ");
  return "score " + scoreOf(entry) +
    "\nε⁻ " + sign(entry.flipped_minus) + number.format(entry.epsilon_minus) +
    "\nε⁺ " + sign(entry.flipped_plus) + number.format(entry.epsilon_plus);
}

function photographOf(image) {
  const figure = copy("photograph-template");
  figure.querySelector("img").src = image.photograph;
  figure.querySelector("img").alt = image.subject;
  figure.querySelector("b").textContent = image.subject;
  const prediction = figure.querySelector(".prediction");
  prediction.textContent = "“" + image.prediction + "” " + Math.round(100 * image.confidence) + " %";
  prediction.classList.toggle("wrong", image.correct === false);
  figure.title = image.source;
  return figure;
}

// -- which photographs, in what order, page by page -----------------------------------------------------------------

const PAGE = 24;
const form = document.getElementById("view");
const view = { stage: 0, page: 0 };
for (const name of ["method", "other"]) {
  for (const explainer of run.explainers) form.elements[name].append(new Option(explainer.name, explainer.key));
}

const entryOf = (image, key) => run.maps[image.image]?.[key]?.[run.stages[view.stage].name];
const scoreIn = (image, key) => { const score = entryOf(image, key)?.score; return score === undefined ? NaN : score; };
const chosenKeys = () => (form.elements.method.value ? [form.elements.method.value] : run.explainers.map((one) => one.key));

function suits(image) {
  const text = form.elements.text.value.trim().toLowerCase();
  const words = [image.subject, image.prediction, image.truth, image.image, image.source].join(" ").toLowerCase();
  const truth = form.elements.truth.value, censored = form.elements.censored.value;
  if (text && !words.includes(text)) return false;
  if (truth && image.correct !== (truth === "correct")) return false;
  if (!censored) return true;
  const some = chosenKeys().some((key) => {
    const entry = entryOf(image, key);
    return entry?.score !== undefined && !(entry.flipped_minus && entry.flipped_plus);
  });
  return some === (censored === "some");
}

// What photographs are sorted by, the greatest first.
function rank(image) {
  const scores = chosenKeys().map((key) => scoreIn(image, key)).filter((score) => !isNaN(score));
  if (!scores.length) return -Infinity;
  const mean = scores.reduce((sum, score) => sum + score, 0) / scores.length;
  const own = form.elements.method.value || run.explainers[0].key;
  switch (form.elements.order.value) {
    case "best": return mean;
    case "worst": return -mean;
    case "disagreement": { const all = run.explainers.map((one) => scoreIn(image, one.key)).filter((score) => !isNaN(score)); return Math.max(...all) - Math.min(...all); }
    case "difference": { const gap = Math.abs(scoreIn(image, own) - scoreIn(image, form.elements.other.value)); return isNaN(gap) ? -Infinity : gap; }
    default: return 0;
  }
}

function inView() {
  const images = run.images.filter(suits);
  if (!form.elements.order.value) return images;
  const ranks = new Map(images.map((image) => [image, rank(image)]));
  return images.sort((a, b) => ranks.get(b) - ranks.get(a) || 0);
}

function showGallery() {
  const stage = run.stages[view.stage];
  const gallery = document.getElementById("gallery");
  const explainers = run.explainers.filter((explainer) => chosenKeys().includes(explainer.key));
  const images = inView(), last = Math.max(0, Math.ceil(images.length / PAGE) - 1);
  view.page = Math.min(Math.max(view.page, 0), last);
  gallery.replaceChildren();
  gallery.style.setProperty("--columns", explainers.length);
  for (const name of ["Photograph", ...explainers.map((explainer) => explainer.name)]) {
    const head = document.createElement("div");
    head.className = "column";
    head.textContent = name;
    gallery.append(head);
  }
  for (const image of images.slice(view.page * PAGE, (view.page + 1) * PAGE)) {
    const entries = explainers.map((explainer) => entryOf(image, explainer.key));
    const best = Math.max(...entries.filter((entry) => entry?.flipped_minus || entry?.flipped_plus).map((entry) => entry.score));
    gallery.append(photographOf(image));
    explainers.forEach((explainer, i) => {
      const entry = entries[i];
      if (!entry) { gallery.append(document.createElement("span")); return; }
      const button = copy("map-template");
      button.querySelector("img").src = entry.map;
      button.querySelector("img").alt = explainer.name + " of " + image.subject;
      const score = button.querySelector(".score");
      if (entry.score === undefined) {
        button.querySelector("svg").remove();
        score.textContent = entry.flag || "no score";
        score.className = "flag";
      } else {
        drawRay(button.querySelector("svg"), entry);
        score.textContent = scoreOf(entry);
        score.classList.toggle("best", entry.score === best);
        score.classList.toggle("negative", entry.score < 0);
      }
      button.title = numbers(entry);
      button.addEventListener("click", () => showDetail(image, explainer));
      gallery.append(button);
    });
  }
  const from = images.length ? view.page * PAGE + 1 : 0, to = Math.min(images.length, (view.page + 1) * PAGE);
  const kept = run.images.length < run.image_count ? " with pictures (the run has " + number.format(run.image_count) + ")" : "";
  document.getElementById("count").textContent = images.length
    ? from + " to " + to + " of " + images.length + (images.length < run.images.length ? " that suit, of " + run.images.length : "") + " photographs" + kept
    : "no photograph suits";
  document.getElementById("earlier").disabled = view.page === 0;
  document.getElementById("later").disabled = view.page === last;
  document.querySelector(".other").hidden = form.elements.order.value !== "difference";
  document.getElementById("stage-title").textContent = stage.title + ".";
}

// The view in the address: what differs from what the page shows at first.
function viewInAddress() {
  const parts = new URLSearchParams();
  for (const name of ["text", "truth", "censored", "method", "order"]) if (form.elements[name].value) parts.set(name, form.elements[name].value);
  if (form.elements.order.value === "difference") parts.set("other", form.elements.other.value);
  if (view.stage) parts.set("stage", run.stages[view.stage].name);
  if (view.page) parts.set("page", view.page + 1);
  return parts;
}

function changed(page = 0) {
  view.page = page;
  showGallery();
  const parts = String(viewInAddress());
  history.replaceState(null, "", parts ? "#" + parts : location.pathname + location.search);
}

form.addEventListener("input", () => changed());
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(changed));
document.getElementById("earlier").addEventListener("click", () => changed(view.page - 1));
document.getElementById("later").addEventListener("click", () => changed(view.page + 1));

// -- what can be saved ----------------------------------------------------------------------------------------------

function save(name, contents, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(contents instanceof Blob ? contents : new Blob([contents], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const quoted = (value) => (/[",\n]/.test(String(value)) ? '"' + String(value).replaceAll('"', '""') + '"' : String(value));
const asCsv = (rows) => rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
const cells = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim().replace(/\s+/g, " ")));

function asLatex(table) {
  const plain = (text) => text.replace(/[&%#_$]/g, "\\$&").replaceAll("−", "$-$").replaceAll("≥", "$\\ge$").replaceAll("≤", "$\\le$")
    .replaceAll("≈", "$\\approx$").replaceAll("ε⁻", "$\\varepsilon^-$").replaceAll("ε⁺", "$\\varepsilon^+$").replaceAll("×", "$\\times$");
  const [head, ...rows] = cells(table).map((row) => row.map(plain).join(" & ") + " \\\\");
  const columns = [...table.tHead.rows[0].cells].map((cell) => (cell.classList.contains("number") ? "r" : "l")).join("");
  return "\\begin{tabular}{" + columns + "}\n\\hline\n" + head + "\n\\hline\n" + rows.join("\n") + "\n\\hline\n\\end{tabular}\n";
}

function viewRows() {
  const rows = [];
  for (const image of inView()) for (const key of chosenKeys()) for (const stage of run.stages) {
    const entry = run.maps[image.image]?.[key]?.[stage.name];
    if (entry) rows.push({ image: image.image, prediction: image.prediction, correct: image.correct, explainer: key, stage: stage.name,
      epsilon_minus: entry.epsilon_minus ?? null, epsilon_plus: entry.epsilon_plus ?? null, score: entry.score ?? null,
      flipped_minus: entry.flipped_minus ?? null, flipped_plus: entry.flipped_plus ?? null, flag: entry.flag });
  }
  return rows;
}

const SAVED = {
  "scores.tex": () => [asLatex(document.getElementById("scores")), "application/x-tex"],
  "scores.csv": () => [asCsv(cells(document.getElementById("scores"))), "text/csv"],
  "view.csv": () => { const rows = viewRows(); return [asCsv([Object.keys(rows[0] ?? {}), ...rows.map((row) => Object.values(row).map((value) => value ?? ""))]), "text/csv"]; },
  "view.json": () => [JSON.stringify(viewRows(), null, 1), "application/json"],
};
for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", () => save(button.dataset.save, ...SAVED[button.dataset.save]()));
}

function svgText(svg) {
  const twin = svg.cloneNode(true);
  twin.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  twin.setAttribute("style", "color: " + getComputedStyle(svg).color + "; background: " + getComputedStyle(document.documentElement).getPropertyValue("--card"));
  return new XMLSerializer().serializeToString(twin);
}

function savePng(svg, name) {
  const picture = new Image(), box = svg.getBoundingClientRect();
  picture.onload = () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 2 * box.width, height: 2 * box.height });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => save(name, blob));
  };
  picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svgText(svg));
}

for (const figure of document.querySelectorAll("figure[data-name]")) {
  const svg = figure.querySelector("svg"), name = figure.dataset.name;
  if (!svg) continue;
  for (const [text, act] of [["PNG", () => savePng(svg, name + ".png")], ["SVG", () => save(name + ".svg", svgText(svg), "image/svg+xml")]]) {
    const button = Object.assign(document.createElement("button"), { className: "save", textContent: text });
    button.setAttribute("aria-label", text + " of the figure " + name);
    button.addEventListener("click", act);
    figure.prepend(button);
  }
}

// -- one map, closely -----------------------------------------------------------------------------------------------

let shown = null;

function showDetail(image, explainer) {
  shown = { image, explainer };
  document.getElementById("detail-title").textContent = explainer.name + ": " + image.subject;
  document.getElementById("detail-note").textContent = image.source +
    ". The network says “" + image.prediction + "”, " + (100 * image.confidence).toFixed(1) + " %." +
    (image.truth && image.correct !== true ? " It is “" + image.truth + "”." : "") +
    (image.loss === null ? "" : " Loss " + number.format(image.loss) + ".");
  const maps = document.getElementById("detail-maps"), rays = document.getElementById("detail-rays");
  maps.replaceChildren();
  rays.replaceChildren();
  const figures = [{ src: image.photograph, title: "photograph", numbers: "" }];
  for (const stage of run.stages) {
    const entry = run.maps[image.image]?.[explainer.key]?.[stage.name];
    if (!entry) continue;
    figures.push({ src: entry.map, title: stage.name, numbers: numbers(entry) });
    if (entry.rays) rays.append(closeup(stage, entry));
  }
  for (const one of figures) {
    const figure = copy("stage-template");
    figure.querySelector("img").src = one.src;
    figure.querySelector("img").alt = one.title;
    figure.querySelector("b").textContent = one.title;
    figure.querySelector(".numbers").textContent = one.numbers;
    if (one.numbers) {
      const over = Object.assign(new Image(), { src: image.photograph, alt: "", className: "over" });
      figure.querySelector(".laid").append(over);
    }
    maps.append(figure);
  }
  document.getElementById("detail-hint").textContent = rays.childElementCount
    ? "Margin: the prediction’s logit less the best other one; the prediction has changed where it is below 0. Change: " +
      "how the perturbed photograph differs from the photograph, amplified, around grey. The arrow keys lead to other " +
      "photographs and explanations."
    : "Perturbed photographs and margins of the first images are added by apem-fast report; --images N for more of them.";
  lay();
  const dialog = document.getElementById("detail");
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  const hash = new URLSearchParams({ image: image.image, explainer: explainer.key });
  history.replaceState(null, "", "#" + hash);
}

// The photograph over its maps, as much of it as the slider says.
const slider = document.querySelector("#overlay input");
function lay() {
  for (const over of document.querySelectorAll("#detail .over")) over.style.opacity = slider.value / 100;
}
slider.addEventListener("input", lay);

function closeup(stage, entry) {
  const section = copy("ray-template");
  section.querySelector("h4").textContent = stage.name;
  drawMargins(section.querySelector("svg"), entry);
  const shown = [];
  for (const [ray, sign, way] of [["minus", "ε⁻", "relevance"], ["plus", "ε⁺", "irrelevance"]]) {
    const one = entry.rays[ray];
    const now = entry["flipped_" + ray] ? "now “" + one.prediction + "”" : "still “" + one.prediction + "”";
    shown.push([one.perturbed, "at " + sign + " " + number.format(entry["epsilon_" + ray]) + ": " + now]);
    shown.push([one.change, "change along the " + way + ", × " + number.format(Math.round(one.gain))]);
  }
  section.querySelectorAll("figure").forEach((figure, i) => {
    figure.querySelector("img").src = shown[i][0];
    figure.querySelector("img").alt = shown[i][1];
    figure.querySelector("figcaption").textContent = shown[i][1];
  });
  return section;
}

function svgElement(parent, name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
}

// Both rays' margins against epsilon; each axis is linear up to a small value and logarithmic beyond.
function drawMargins(svg, entry) {
  const [left, right, top, bottom] = [34, 316, 8, 146];
  const rays = ["minus", "plus"].map((ray) => ({ ray, ...entry.rays[ray] }));
  const farthest = Math.max(...rays.map((one) => one.epsilon.at(-1)), run.step);
  const nearest = Math.max(Math.min(...rays.map((one) => one.epsilon.at(-1))), run.step);
  const bend = (value) => (farthest > 20 * nearest ? Math.asinh(4 * value / nearest) : value);
  const margins = rays.flatMap((one) => one.margin);
  const [low, high] = [Math.min(0, ...margins), Math.max(0, ...margins)];
  const x = (epsilon) => left + (right - left) * bend(epsilon) / bend(farthest);
  const y = (margin) => bottom - (bottom - top) * (margin - low) / (high - low || 1);
  svg.setAttribute("aria-label", "margins along both rays");
  svgElement(svg, "line", { x1: left, y1: top, x2: left, y2: bottom });
  svgElement(svg, "line", { x1: left, y1: y(0), x2: right, y2: y(0), class: "zero" });
  svgElement(svg, "text", { x: left - 4, y: y(0) + 3, "text-anchor": "end" }, "0");
  svgElement(svg, "text", { x: left - 4, y: y(high) + 5, "text-anchor": "end" }, high.toPrecision(2));
  svgElement(svg, "text", { x: right, y: bottom + 20, "text-anchor": "end" }, "ε to " + number.format(farthest));
  svgElement(svg, "text", { x: left, y: bottom + 20 }, "margin");
  for (const one of rays) {
    const points = one.epsilon.map((epsilon, i) => x(epsilon).toFixed(1) + "," + y(one.margin[i]).toFixed(1));
    svgElement(svg, "polyline", { points: points.join(" "), class: one.ray });
    const flip = entry["epsilon_" + one.ray];
    if (!entry["flipped_" + one.ray]) continue;
    svgElement(svg, "line", { x1: x(flip), y1: y(0) - 5, x2: x(flip), y2: y(0) + 5, class: one.ray });
  }
  svgElement(svg, "text", { x: right - 66, y: top + 4, class: "minus" }, "relevance");
  svgElement(svg, "text", { x: right - 66, y: top + 16, class: "plus" }, "irrelevance");
}

// The arrow keys lead to the neighbours: left and right to other photographs, up and down to other explanations.
document.getElementById("detail").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const neighbour = (all, one, by) => all[(all.indexOf(one) + by + all.length) % all.length];
  showDetail(neighbour(run.images, shown.image, step[0]), neighbour(run.explainers, shown.explainer, step[1]));
});

// An address that ends in #image=NAME&explainer=KEY opens that map; others restore a view.
function openAddressed() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const stage = run.stages.findIndex((one) => one.name === asked.get("stage"));
  for (const name of ["text", "truth", "censored", "method", "order", "other"]) if (asked.has(name)) form.elements[name].value = asked.get(name);
  if (stage > 0) choose(stage);
  if (asked.has("page") || form.elements.text.value || viewInAddress().size) { view.page = (Number(asked.get("page")) || 1) - 1; showGallery(); }
  const image = run.images.find((one) => one.image === asked.get("image"));
  const explainer = run.explainers.find((one) => one.key === asked.get("explainer")) ?? run.explainers[0];
  if (image) showDetail(image, explainer);
}

const tabs = document.getElementById("stage-tabs");
run.stages.forEach((stage, i) => {
  const tab = document.createElement("button");
  tab.setAttribute("role", "tab");
  tab.textContent = stage.name;
  tab.addEventListener("click", () => { choose(i); changed(); });
  tabs.append(tab);
});

function choose(chosen) {
  [...tabs.children].forEach((tab, i) => { tab.ariaSelected = String(i === chosen); });
  view.stage = chosen;
  showGallery();
}

document.getElementById("detail").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) event.currentTarget.close();
});
document.getElementById("detail").addEventListener("close", () => changed(view.page));
addEventListener("hashchange", openAddressed);
choose(0);
openAddressed();
