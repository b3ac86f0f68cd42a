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

// What is not in the page, so that it does not grow too large, leaves an empty place.
function picture(place, source, alt) {
  if (source) place.src = source; else place.classList.add("none");
  place.alt = alt;
}

function saidOf(image) {
  const said = (one) =>
    "“" + one.prediction + "” " + Math.round(100 * one.confidence) + " %" + (one.correct === false ? ", wrong" : "");
  if (!image.predictions.length) return said(image);
  if (image.predictions.every((one) => one.prediction === image.prediction)) return said(image);
  return image.predictions.map((one) => one.run + ": " + said(one)).join("; ");
}

function photographOf(image) {
  const figure = copy("photograph-template");
  picture(figure.querySelector("img"), image.photograph, image.subject);
  figure.querySelector("b").textContent = image.subject;
  const prediction = figure.querySelector(".prediction");
  prediction.textContent = saidOf(image);
  prediction.classList.toggle("wrong", [image, ...image.predictions].some((one) => one.correct === false));
  figure.querySelector(".own-note").textContent = notes.get(image.image) ?? "";
  figure.title = image.source + (image.dropped ? " (" + image.dropped + ")" : "");
  return figure;
}

// -- which photographs, in what order, page by page -----------------------------------------------------------------

const PAGE = 24;
const form = document.getElementById("view");
const FIELDS = ["text", "truth", "censored", "method", "order", "other", "noted"];
const view = { stage: 0, page: 0 };
const notes = new Map(); // what somebody writes of an image, by its name
for (const [method, title] of new Map(run.explainers.map((one) => [one.method, one.title]))) form.elements.method.append(new Option(title, method));
for (const explainer of run.explainers) form.elements.other.append(new Option(explainer.name, explainer.key));

const entryOf = (image, key) => run.maps[image.image]?.[key]?.[run.stages[view.stage].name];
const scoreIn = (image, key) => { const score = entryOf(image, key)?.score; return score === undefined ? NaN : score; };
const chosen = () => run.explainers.filter((one) => !form.elements.method.value || one.method === form.elements.method.value);
const chosenKeys = () => chosen().map((one) => one.key);
// The same method's score in the first of several runs.
const twin = (explainer) => run.explainers.find((one) => one.method === explainer.method && one.run === run.runs[0]);
const changeOf = (image, explainer) => (run.runs.length > 1 && explainer.run !== run.runs[0] && twin(explainer) ? scoreIn(image, explainer.key) - scoreIn(image, twin(explainer).key) : NaN);

function suits(image) {
  const text = form.elements.text.value.trim().toLowerCase();
  const said = image.predictions.map((one) => one.prediction);
  const words = [image.subject, image.prediction, image.truth, image.image, image.source, notes.get(image.image) ?? "", ...said].join(" ").toLowerCase();
  const truth = form.elements.truth.value, censored = form.elements.censored.value;
  if (text && !words.includes(text)) return false;
  if (form.elements.noted.value && !notes.has(image.image)) return false;
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
  const own = chosenKeys()[0];
  switch (form.elements.order.value) {
    case "best": return mean;
    case "worst": return -mean;
    case "disagreement": { const all = run.explainers.map((one) => scoreIn(image, one.key)).filter((score) => !isNaN(score)); return Math.max(...all) - Math.min(...all); }
    case "difference": { const gap = Math.abs(scoreIn(image, own) - scoreIn(image, form.elements.other.value)); return isNaN(gap) ? -Infinity : gap; }
    case "runs": { const gaps = chosen().map((one) => Math.abs(changeOf(image, one))).filter((gap) => !isNaN(gap)); return gaps.length ? Math.max(...gaps) : -Infinity; }
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
  const explainers = chosen();
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
      picture(button.querySelector("img"), entry.map, explainer.name + " of " + image.subject);
      const score = button.querySelector(".score");
      if (entry.score === undefined) {
        button.querySelector("svg").remove();
        score.textContent = entry.flag || "no score";
        score.className = "flag";
      } else {
        drawRay(button.querySelector("svg"), entry);
        const change = changeOf(image, explainer);
        score.textContent = scoreOf(entry) + (isNaN(change) ? "" : " (" + signed.format(change).replace("-", "−") + ")");
        score.classList.toggle("best", entry.score === best);
        score.classList.toggle("negative", entry.score < 0);
      }
      button.title = numbers(entry);
      button.addEventListener("click", () => showDetail(image, explainer));
      gallery.append(button);
    });
  }
  const from = images.length ? view.page * PAGE + 1 : 0, to = Math.min(images.length, (view.page + 1) * PAGE);
  const kept = run.runs.length > 1 ? " that all runs have" : run.images.length < run.image_count ? " with pictures (the run has " + number.format(run.image_count) + ")" : "";
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
  for (const name of FIELDS) {
    const value = form.elements[name].value;
    if (value && (name !== "other" || form.elements.order.value === "difference")) parts.set(name, value);
  }
  if (view.stage) parts.set("stage", run.stages[view.stage].name);
  if (view.page) parts.set("page", view.page + 1);
  for (const [image, text] of notes) parts.set("note." + image, text);
  return parts;
}

function keepInAddress(parts) {
  const text = String(parts);
  history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
}

function changed(page = 0) {
  view.page = page;
  showGallery();
  keepInAddress(viewInAddress());
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
  for (const image of inView()) for (const one of chosen()) for (const stage of run.stages) {
    const entry = run.maps[image.image]?.[one.key]?.[stage.name];
    if (entry) rows.push({ image: image.image, prediction: image.prediction, correct: image.correct, explainer: one.method, stage: stage.name,
      ...(run.runs.length > 1 ? { run: one.run } : {}),
      ...(notes.size ? { note: notes.get(image.image) ?? "" } : {}),
      epsilon_minus: entry.epsilon_minus ?? null, epsilon_plus: entry.epsilon_plus ?? null, score: entry.score ?? null,
      flipped_minus: entry.flipped_minus ?? null, flipped_plus: entry.flipped_plus ?? null, flag: entry.flag ?? "" });
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
