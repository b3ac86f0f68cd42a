// The page's only script: sorts the table, fills the gallery from the JSON beside it, and opens a map.
"use strict";

const run = JSON.parse(document.getElementById("data").textContent);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const signed = new Intl.NumberFormat("en", { maximumFractionDigits: 2, signDisplay: "exceptZero" });

const copy = (name) => document.getElementById(name).content.firstElementChild.cloneNode(true);

// -- table ----------------------------------------------------------------------------------------------------------

function sortTable(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const text = heads[column].dataset.type === "text";
  const ascending = heads[column].ariaSort === "descending" || (heads[column].ariaSort === "none" && text);
  heads.forEach((head, i) => { head.ariaSort = i === column ? (ascending ? "ascending" : "descending") : "none"; });
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    return isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
  table.tBodies[0].append(...rows);
  table.classList.toggle("sorted", column > 0);
}

const scores = document.getElementById("scores");
[...scores.tHead.rows[0].cells].forEach((head, i) => head.addEventListener("click", () => sortTable(scores, i)));

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

function numbers(entry) {
  const sign = (flipped) => (flipped ? "= " : "> ");
  return "score " + signed.format(entry.score) +
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
  prediction.classList.toggle("wrong", !image.correct);
  figure.title = image.source;
  return figure;
}

function showGallery(stage) {
  const gallery = document.getElementById("gallery");
  gallery.replaceChildren();
  gallery.style.setProperty("--columns", run.explainers.length);
  for (const name of ["Photograph", ...run.explainers.map((explainer) => explainer.name)]) {
    const head = document.createElement("div");
    head.className = "column";
    head.textContent = name;
    gallery.append(head);
  }
  for (const image of run.images) {
    const entries = run.explainers.map((explainer) => run.maps[image.image]?.[explainer.key]?.[stage.name]);
    const best = Math.max(...entries.filter(Boolean).map((entry) => entry.score));
    gallery.append(photographOf(image));
    run.explainers.forEach((explainer, i) => {
      const entry = entries[i];
      if (!entry) { gallery.append(document.createElement("span")); return; }
      const button = copy("map-template");
      button.querySelector("img").src = entry.map;
      button.querySelector("img").alt = explainer.name + " of " + image.subject;
      drawRay(button.querySelector("svg"), entry);
      const score = button.querySelector(".score");
      score.textContent = signed.format(entry.score);
      score.classList.toggle("best", entry.score === best);
      score.classList.toggle("negative", entry.score < 0);
      button.title = numbers(entry);
      button.addEventListener("click", () => showDetail(image, explainer));
      gallery.append(button);
    });
  }
  document.getElementById("stage-title").textContent = stage.title + ".";
}

function showDetail(image, explainer) {
  document.getElementById("detail-title").textContent = explainer.name + ": " + image.subject;
  document.getElementById("detail-note").textContent = image.source +
    ". The network says “" + image.prediction + "”, " + (100 * image.confidence).toFixed(1) + " %.";
  const maps = document.getElementById("detail-maps");
  maps.replaceChildren();
  const figures = [{ src: image.photograph, title: "photograph", numbers: "" }];
  for (const stage of run.stages) {
    const entry = run.maps[image.image][explainer.key][stage.name];
    if (entry) figures.push({ src: entry.map, title: stage.name, numbers: numbers(entry) });
  }
  for (const one of figures) {
    const figure = copy("stage-template");
    figure.querySelector("img").src = one.src;
    figure.querySelector("img").alt = one.title;
    figure.querySelector("b").textContent = one.title;
    figure.querySelector(".numbers").textContent = one.numbers;
    maps.append(figure);
  }
  document.getElementById("detail").showModal();
}

const tabs = document.getElementById("stage-tabs");
run.stages.forEach((stage, i) => {
  const tab = document.createElement("button");
  tab.setAttribute("role", "tab");
  tab.textContent = stage.name;
  tab.addEventListener("click", () => choose(i));
  tabs.append(tab);
});

function choose(chosen) {
  [...tabs.children].forEach((tab, i) => { tab.ariaSelected = String(i === chosen); });
  showGallery(run.stages[chosen]);
}

document.getElementById("detail").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) event.currentTarget.close();
});
choose(0);
