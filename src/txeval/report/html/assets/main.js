// Start: parts that are far down are made when they come near, or when the page is printed.

const PARTS = { perturbations: perturbationPart, relations: relationPart, map: mapPart, cells: cellPart };
const waiting = new Map();

async function make(root) {
  const job = waiting.get(root);
  if (!job) return;
  waiting.delete(root);
  root.setAttribute("aria-busy", "true");
  try {
    await job();
  } catch (error) {
    root.replaceChildren(el("p", { class: "hole-note" }, `This part could not be drawn: ${error.message}`));
    console.error(error);
  }
  root.removeAttribute("aria-busy");
  root.dataset.ready = "true";
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); make(entry.target); }
}, { rootMargin: "600px" });

function later(root, job) {
  waiting.set(root, job);
  near.observe(root);
}

function start(number) {
  const root = document.getElementById(`view-${number}`);
  if (root.dataset.started) return;
  root.dataset.started = "true";
  const view = new View(DATA.views[number], root);
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  summaryTable(view, part("summary"), part("summary-controls"));
  part("summary-legend").append("Under each number: interval and score on the range of its column, ", el("span", { class: "key-line chance", "aria-hidden": "true" }), " chance, ",
    el("span", { class: "key-line random", "aria-hidden": "true" }), " random baseline. Point at a cell, or move there with Tab and the arrow keys, for everything about it.");
  const levels = [...root.querySelectorAll('[data-part="level"]')];
  for (const node of levels) later(node, () => levelPart(view, node.dataset.task, node));
  // The levels are made when there is time, so that what lies below them does not move when somebody goes there.
  const idle = window.requestIdleCallback || ((run) => setTimeout(run, 50));
  const next = () => { const node = levels.shift(); if (node) make(node).then(() => idle(next)); };
  idle(next);
  for (const [name, run] of Object.entries(PARTS)) later(part(name), () => run(view, part(name)));
}

function show(number) {
  for (const root of document.querySelectorAll(".view")) root.hidden = root.dataset.view !== String(number);
  for (const link of document.querySelectorAll("nav a[data-section]")) if (link.dataset.section !== "provenance") link.setAttribute("href", `#${link.dataset.section}-${number}`);
  start(number);
}

const theme = document.getElementById("theme");
const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const paintTheme = () => {
  theme.textContent = dark() ? "Light" : "Dark";
  theme.setAttribute("aria-label", dark() ? "Switch to light colours" : "Switch to dark colours");
  for (const paint of onTheme) paint();
};
theme.removeAttribute("aria-pressed");
theme.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; paintTheme(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintTheme);

window.addEventListener("beforeprint", () => { for (const root of [...waiting.keys()]) if (!root.closest("[hidden]")) make(root); });

document.documentElement.classList.add("on");
paintTheme();
const which = document.getElementById("which");
if (which) which.addEventListener("change", () => show(Number(which.value)));
// A link to a part of another view shows that view.
const linked = /-(\d+)$/.exec(location.hash);
const initial = linked && document.getElementById(`view-${linked[1]}`) ? Number(linked[1]) : 0;
if (which) which.value = String(initial);
show(initial);
if (linked && initial) document.querySelector(location.hash)?.scrollIntoView();
