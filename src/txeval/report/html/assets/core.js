// Elements, numbers, unpacking and the tooltip. Text from data only ever becomes a text node.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const POST_TITLES = { raw: "no post-processing", centering: "centering", center_scaling: "center scaling", tvn: "TVN" };
const POST_MARKS = { raw: ["--c7", "circle"], centering: ["--c0", "square"], center_scaling: ["--c2", "diamond"], tvn: ["--c5", "triangle"] };

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, item] of Object.entries(value)) node.style.setProperty(key, item);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
const bdi = (text) => el("bdi", {}, text);
const POST_SHORT = { ...POST_TITLES, raw: "raw", center_scaling: "scaling" };
const shortPost = (name) => POST_SHORT[name] || name;
const postTitle = (name) => POST_TITLES[name] || name;
const several = (word) => (/(ch|sh|s|x)$/.test(word) ? `${word}es` : `${word}s`);
const plural = (n, word) => `${n.toLocaleString("en")} ${n === 1 ? word : several(word)}`;
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

let serial = 0;
const newId = (what) => `${what}-js-${serial++}`;

/** A score as text, as the tables of `txeval show` have it. */
function fmt(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size > 0 && size < 0.0005) return value.toExponential(0).replace(/e([+-])(\d)$/, "e$10$2");
  if (size >= 1000) {
    const text = value.toPrecision(4);
    return text.includes("e")
      ? text.replace(/\.?0+e/, "e").replace(/e([+-])(\d)$/, "e$10$2")
      : text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  }
  const scaled = value * 1000;
  // Halves go to the even digit, as in Python.
  if (Math.abs(scaled % 1) === 0.5 && scaled / 1000 === value) return (2 * Math.round(scaled / 2) / 1000).toFixed(3);
  return value.toFixed(3);
}

/** A probability as text. */
function fmtP(value) {
  if (!isNumber(value)) return "–";
  return value > 0 && value < 0.001 ? "< 0.001" : value.toFixed(3);
}

// Packed numbers

const unpacked = new Map();

async function bytesOf(block) {
  const text = document.getElementById(`block-${block}`).textContent;
  const octets = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack the tables");
  const stream = new Blob([octets]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Columns of a packed table: name -> Float64Array, NaN where missing. */
function unpack(ref) {
  if (!unpacked.has(ref.block)) unpacked.set(ref.block, (async () => {
    const bytes = await bytesOf(ref.block);
    const found = {};
    let start = 0;
    for (const column of ref.columns) {
      const values = new Float64Array(column.n);
      for (let i = 0; i < column.n; i++) {
        const code = bytes[start + i] | (bytes[start + column.n + i] << 8);
        values[i] = code === 65535 ? NaN : column.offset + code * column.step;
      }
      found[column.name] = values;
      start += 2 * column.n;
    }
    return found;
  })());
  return unpacked.get(ref.block);
}

// Tooltip: the same for pointer and keyboard

const tip = document.getElementById("tip");
const tips = new WeakMap();

function placeTip(x, y) {
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), document.documentElement.clientWidth - box.width - 8);
  const top = y + 18 + box.height > window.innerHeight ? Math.max(8, y - box.height - 12) : y + 18;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}

function showTip(content, x, y) {
  tip.replaceChildren(...[content].flat().filter(Boolean));
  placeTip(x, y);
}

const hideTip = () => { tip.hidden = true; };

/** Give an element a tooltip; `make` is called when it is shown. */
function withTip(node, make) {
  tips.set(node, make);
  return node;
}

function tipTarget(start) {
  for (let node = start; node instanceof Element; node = node.parentElement) if (tips.has(node)) return node;
  return null;
}

document.addEventListener("pointermove", (event) => {
  const node = tipTarget(event.target);
  if (node) showTip(tips.get(node)(), event.clientX, event.clientY);
  else if (!event.target.closest || !event.target.closest("canvas")) hideTip();
});
document.addEventListener("focusin", (event) => {
  const node = tipTarget(event.target);
  if (!node || !event.target.matches(":focus-visible")) return hideTip();
  const box = node.getBoundingClientRect();
  showTip(tips.get(node)(), box.left, box.bottom - 10);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
window.addEventListener("scroll", hideTip, { passive: true });

// Controls

function field(text, control) {
  const id = newId("field");
  control.id = id;
  return el("span", { class: "field" }, el("label", { for: id }, text), control);
}

function choose(options, chosen, change) {
  const select = el("select", { onchange: () => change(select.value) },
    options.map(([value, text]) => el("option", { value, selected: String(value) === String(chosen) }, text)));
  return select;
}

function debounce(run, wait = 120) {
  let timer = 0;
  return (...rest) => { clearTimeout(timer); timer = setTimeout(() => run(...rest), wait); };
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Ticks at round numbers. */
function ticks(low, high, wanted = 5) {
  const span = high - low || 1;
  const raw = span / wanted;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((factor) => unit * factor >= raw * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  return found.map((value) => [value, value.toFixed(Math.min(digits, 6))]);
}

/** Redraw when the width of an element changes. */
function onResize(node, draw) {
  let width = 0;
  new ResizeObserver((entries) => {
    const now = Math.round(entries[0].contentRect.width);
    if (now && now !== width) { width = now; draw(now); }
  }).observe(node);
}
