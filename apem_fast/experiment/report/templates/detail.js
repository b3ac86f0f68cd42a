// One map closely, the notes, the address, and the beginning: the last of the page's scripts.
"use strict";

// -- one map, closely -----------------------------------------------------------------------------------------------

let shown = null;

function showDetail(image, explainer) {
  shown = { image, explainer };
  document.getElementById("detail-title").textContent = explainer.name + ": " + image.subject;
  document.getElementById("detail-note").textContent = image.source +
    ". The network says “" + image.prediction + "”, " + (100 * image.confidence).toFixed(1) + " %." +
    (image.truth && image.correct !== true ? " It is “" + image.truth + "”." : "") +
    (image.loss === null ? "" : " Loss " + number.format(image.loss) + ".") +
    image.predictions.slice(1).map((one) => " In " + one.run + ": “" + one.prediction + "”, " + (100 * one.confidence).toFixed(1) + " %.").join("") +
    (image.dropped ? " Of the file: " + image.dropped + "." : "");
  note.value = notes.get(image.image) ?? "";
  const maps = document.getElementById("detail-maps"), rays = document.getElementById("detail-rays");
  maps.replaceChildren();
  rays.replaceChildren();
  const figures = [{ src: image.photograph, title: "photograph", numbers: "" }];
  // Of several runs, the same method's maps beside one another, stage by stage.
  const alike = run.explainers.filter((one) => one.method === explainer.method);
  for (const stage of run.stages) for (const one of alike) {
    const entry = run.maps[image.image]?.[one.key]?.[stage.name];
    if (!entry) continue;
    figures.push({ src: entry.map, title: stage.name + (one.run ? " · " + one.run : ""), numbers: numbers(entry) });
    if (one === explainer && entry.rays) rays.append(closeup(stage, entry));
  }
  for (const one of figures) {
    const figure = copy("stage-template");
    picture(figure.querySelector("img"), one.src, one.title);
    figure.querySelector("b").textContent = one.title;
    figure.querySelector(".numbers").textContent = one.numbers;
    if (one.numbers && image.photograph) {
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
  keepInAddress(detailInAddress());
}

function detailInAddress() {
  const parts = viewInAddress();
  parts.set("image", shown.image.image);
  parts.set("explainer", shown.explainer.key);
  return parts;
}

const note = document.querySelector("#own-note input");
note.addEventListener("input", () => {
  if (note.value.trim()) notes.set(shown.image.image, note.value.trim()); else notes.delete(shown.image.image);
  keepInAddress(detailInAddress());
});

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
  if (!step || event.target === note) return;
  event.preventDefault();
  const neighbour = (all, one, by) => all[(all.indexOf(one) + by + all.length) % all.length];
  showDetail(neighbour(run.images, shown.image, step[0]), neighbour(run.explainers, shown.explainer, step[1]));
});

// The address keeps the view and the notes; with image=NAME&explainer=KEY in it that map is opened.
function openAddressed() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of FIELDS) form.elements[name].value = asked.get(name) ?? (name === "other" ? form.elements.other.options[0]?.value : "");
  for (const name of ["truth", "censored", "method", "order", "noted"]) if (form.elements[name].selectedIndex < 0) form.elements[name].value = "";
  notes.clear();
  for (const [name, text] of asked) if (name.startsWith("note.")) notes.set(name.slice(5), text);
  view.page = (Number(asked.get("page")) || 1) - 1;
  choose(Math.max(0, run.stages.findIndex((one) => one.name === asked.get("stage"))));
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
openAddressed();
