// The clustered map of perturbations and the 2-D view of samples, on canvases, each with a table or text beside it.

function rgb(colour) {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
}

function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

const onTheme = [];

function mapPart(view, root) {
  const about = view.map;
  const heading = root.parentElement;
  if (!about) {
    root.replaceChildren(el("p", { class: "hole-note" }, "No map: ", view.no_maps || "there are fewer than three perturbations", "."));
    return;
  }
  const names = about.labels.map((i) => view.perturbations.labels[i]);
  const genes = about.labels.map((i) => view.perturbations.targets[i] || "");
  const n = names.length;
  const canvas = el("canvas", { role: "img" });
  const holder = el("div", { class: "map-holder" }, canvas);
  const known = el("input", { type: "checkbox", checked: Boolean(view.relations) });
  const extremes = el("div", { class: "extremes" });
  const note = about.of > n ? el("p", { class: "caveat" }, `${n} of ${about.of.toLocaleString("en")} perturbations: those ${about.how}.`) : null;
  let by = "rank";
  const scaleText = el("span");
  const scale = el("p", { class: "legend" }, el("span", { class: "ramp", "aria-hidden": "true" }), " ", scaleText,
    view.relations && ["; ", el("span", { class: "key-box", "aria-hidden": "true" }), " known relationship (lower left half)"]);
  root.replaceChildren(...[el("div", { class: "controls" }, picker(view), field("Colour", choose([["rank", "rank among all pairs"], ["cosine", "cosine"]], by, (value) => { by = value; paint(); })),
      view.relations && field("Mark known relationships", known)), note,
    el("div", { class: "map" }, holder, extremes), scale].filter(Boolean));
  let state = null;
  const at = (i, j) => { const [a, b] = i < j ? [i, j] : [j, i]; return state.cosine[a * n - (a * (a + 1)) / 2 + b - a - 1]; };

  async function linked() {
    const found = new Map();
    if (!view.relations) return found;
    const place = new Map();
    genes.forEach((gene, i) => { if (gene) place.set(gene, i); });
    const shared = await unpack(view.relations.shared);
    for (let k = 0; k < shared.a.length; k++) {
      const a = place.get(view.relations.genes[shared.a[k]]);
      const b = place.get(view.relations.genes[shared.b[k]]);
      if (a === undefined || b === undefined) continue;
      const key = a < b ? `${a},${b}` : `${b},${a}`;
      found.set(key, [...(found.get(key) || []), view.relations.databases[shared.database[k]]]);
    }
    return found;
  }

  function paint() {
    if (!state) return;
    const room = holder.clientWidth;
    if (!room) return;
    const small = n <= 60;
    const margin = small ? Math.min(110, room * 0.24) : 4;
    const side = Math.max(2, Math.min(room - margin, 680));
    const step = side / n;
    const context = sized(canvas, side + margin, side + margin);
    const [warm, cold, middle] = [rgb(css("--warm")), rgb(css("--cold")), rgb(css("--surface"))];
    state.geometry = { margin, step };
    scaleText.textContent = by === "rank" ? "from the least similar of all pairs (blue) to the most similar (red)" : "cosine from −1 (blue, opposite) to 1 (red, alike)";
    const fill = (cosine) => {
      if (Number.isNaN(cosine)) return css("--line");
      const value = by === "rank" ? 2 * state.rank(cosine) - 1 : cosine;
      const end = value >= 0 ? warm : cold;
      const t = by === "rank" ? value ** 2 : Math.abs(value) ** 0.8;
      return `rgb(${middle.map((part, k) => Math.round(part + (end[k] - part) * t)).join(",")})`;
    };
    context.clearRect(0, 0, side + margin, side + margin);
    for (let r = 0; r < n; r++) for (let c = 0; c < n; c++) {
      const [i, j] = [state.order[r], state.order[c]];
      context.fillStyle = i === j ? css("--faint") : fill(at(i, j));
      context.fillRect(margin + c * step, margin + r * step, step + 0.4, step + 0.4);
    }
    if (known.checked) {
      context.strokeStyle = css("--text");
      context.fillStyle = css("--text");
      for (let r = 0; r < n; r++) for (let c = 0; c < r; c++) {
        const [i, j] = [state.order[r], state.order[c]];
        if (!state.links.has(i < j ? `${i},${j}` : `${j},${i}`)) continue;
        if (step >= 5) { context.lineWidth = 1; context.strokeRect(margin + c * step + 1, margin + r * step + 1, step - 2, step - 2); }
        else context.fillRect(margin + c * step + step * 0.25, margin + r * step + step * 0.25, Math.max(1, step * 0.5), Math.max(1, step * 0.5));
      }
    }
    if (small) {
      context.fillStyle = css("--text");
      context.font = `${Math.min(11, Math.max(6, step * 0.85))}px system-ui, sans-serif`;
      context.textBaseline = "middle";
      for (let r = 0; r < n; r++) {
        const text = shorten(context, names[state.order[r]], margin - 6);
        context.textAlign = "right";
        context.fillText(text, margin - 4, margin + (r + 0.5) * step);
        context.save();
        context.translate(margin + (r + 0.5) * step, margin - 4);
        context.rotate(-Math.PI / 2);
        context.textAlign = "left";
        context.fillText(text, 0, 0);
        context.restore();
      }
    }
  }

  function shorten(context, text, width) {
    if (context.measureText(text).width <= width) return text;
    const chars = [...text];
    while (chars.length > 1 && context.measureText(`${chars.join("")}…`).width > width) chars.pop();
    return `${chars.join("")}…`;
  }

  canvas.addEventListener("pointermove", (event) => {
    if (!state || !state.geometry) return;
    const { margin, step } = state.geometry;
    const box = canvas.getBoundingClientRect();
    const [c, r] = [Math.floor((event.clientX - box.left - margin) / step), Math.floor((event.clientY - box.top - margin) / step)];
    if (c < 0 || r < 0 || c >= n || r >= n) return hideTip();
    const [i, j] = [state.order[r], state.order[c]];
    const databases = state.links.get(i < j ? `${i},${j}` : `${j},${i}`);
    showTip([el("b", {}, bdi(names[i]), " – ", bdi(names[j])), el("p", {}, `cosine ${i === j ? "1" : fmt(at(i, j))}`), databases && el("p", {}, `known: ${[...new Set(databases)].join(", ")}`)], event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", hideTip);

  function pairTable(title, pairs) {
    return el("table", { class: "plain" }, el("caption", {}, title),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Pair"), el("th", { scope: "col", class: "number" }, "Cosine"), view.relations && el("th", { scope: "col" }, "Known"))),
      el("tbody", {}, pairs.map(([value, i, j]) => el("tr", {}, el("th", { scope: "row" }, bdi(names[i]), " – ", bdi(names[j])), el("td", { class: "number" }, fmt(value)),
        view.relations && el("td", {}, [...new Set(state.links.get(i < j ? `${i},${j}` : `${j},${i}`) || [])].join(", "))))));
  }

  async function draw() {
    const key = view.key;
    const ref = about.tables[key];
    if (!ref) { state = null; extremes.replaceChildren(el("p", { class: "hole-note" }, "No map of this embedding.")); sized(canvas, 0, 0); return; }
    const [own, links] = await Promise.all([unpack(ref), linked()]);
    if (key !== view.key) return;
    const sorted = own.cosine.filter((value) => !Number.isNaN(value)).sort();
    const rank = (value) => {
      let [low, high] = [0, sorted.length];
      while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < value) low = middle + 1; else high = middle; }
      return sorted.length > 1 ? low / (sorted.length - 1) : 0.5;
    };
    state = { cosine: own.cosine, order: [...own.order], links, rank };
    const pairs = [];
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) { const value = at(i, j); if (!Number.isNaN(value)) pairs.push([value, i, j]); }
    pairs.sort((a, b) => b[0] - a[0]);
    extremes.replaceChildren(pairTable("Most similar pairs", pairs.slice(0, 10)), pairTable("Least similar pairs", pairs.slice(-10).reverse()));
    canvas.setAttribute("aria-label", `Clustered heat map of the cosine similarity of ${n} perturbations in ${view.models[view.model].label}, ${postTitle(view.posts[view.post])}. The strongest pairs are in the tables beside it.`);
    paint();
  }
  known.addEventListener("change", paint);
  onResize(holder, paint);
  onTheme.push(paint);
  view.on(draw);
  return draw();
}

const MOST_BATCHES = 8;

function cellPart(view, root) {
  const about = view.cells2d;
  if (!about) {
    root.replaceChildren(el("p", { class: "hole-note" }, "No picture: ", view.no_maps || "this report was made without it", "."));
    return;
  }
  const labels = view.perturbations.labels;
  const canvas = el("canvas", { role: "img" });
  const holder = el("div", { class: "cells-holder" }, canvas);
  const legend = el("ul", { class: "keys" });
  const axes = el("p", { class: "about" });
  let by = "control";
  let marked = [];
  let state = null;
  const list = el("datalist", { id: newId("labels") });
  const search = el("input", { type: "search", list: list.id, placeholder: "name, then Enter", onkeydown: (event) => { if (event.key === "Enter") add(); }, onchange: () => add(true) });
  const add = (quiet) => {
    const wanted = search.value.trim().toLowerCase();
    if (!wanted) return;
    const exact = labels.findIndex((text) => text.toLowerCase() === wanted);
    const found = exact >= 0 ? exact : quiet ? -1 : labels.findIndex((text) => text.toLowerCase().includes(wanted));
    if (found < 0) { if (!quiet) said.textContent = "No such perturbation."; return; }
    said.textContent = "";
    marked = [...marked.filter((i) => i !== found), found].slice(-6);
    by = "perturbation";
    colour.value = "perturbation";
    search.value = "";
    paint();
  };
  const said = el("span", { class: "status", role: "status" });
  const colour = choose([["control", "control or perturbed"], ["batch", "batch"], ["perturbation", "perturbation"]], by, (value) => { by = value; paint(); });
  const box = field("Mark perturbation", search);
  root.replaceChildren(el("div", { class: "controls" }, picker(view), field("Colour", colour), box, list, said), el("div", { class: "cells" }, holder, legend), axes);

  function groups() {
    if (by === "batch") return about.batches.map((name, b) => ({ name, colour: `--c${b % MOST_BATCHES}`, has: (i) => state.batch[i] === b }));
    if (by === "perturbation") return [{ name: "controls", colour: "--control", has: (i) => Number.isNaN(state.perturbation[i]) }, ...marked.map((p, k) => ({ name: labels[p], colour: `--c${k}`, has: (i) => state.perturbation[i] === p, front: true }))];
    return [{ name: "perturbed", colour: "--c0", has: (i) => !Number.isNaN(state.perturbation[i]) }, { name: "controls", colour: "--c5", has: (i) => Number.isNaN(state.perturbation[i]), front: true }];
  }

  function paint() {
    if (!state || !holder.clientWidth) return;
    const side = Math.min(holder.clientWidth, 640);
    const height = Math.min(side, 560);
    const context = sized(canvas, side, height);
    const pad = 12;
    const extent = (values) => [Math.min(...values), Math.max(...values)];
    const [x0, x1] = extent(state.x);
    const [y0, y1] = extent(state.y);
    const px = (i) => pad + (side - 2 * pad) * (state.x[i] - x0) / (x1 - x0 || 1);
    const py = (i) => height - pad - (height - 2 * pad) * (state.y[i] - y0) / (y1 - y0 || 1);
    state.place = { px, py };
    context.clearRect(0, 0, side, height);
    const every = groups();
    const of = new Int16Array(about.n).fill(-1);
    for (let i = 0; i < about.n; i++) of[i] = every.findIndex((group) => group.has(i));
    const layers = [[-1, css("--faint"), 1.6], ...every.map((group, g) => [g, css(group.colour), group.front ? 2.6 : 1.9])];
    layers.sort((a, b) => (a[0] >= 0 && every[a[0]].front ? 1 : 0) - (b[0] >= 0 && every[b[0]].front ? 1 : 0));
    for (const [g, shade, radius] of layers) {
      context.fillStyle = shade;
      context.globalAlpha = g < 0 ? 0.5 : 0.75;
      for (let i = 0; i < about.n; i++) if (of[i] === g) { context.beginPath(); context.arc(px(i), py(i), radius, 0, 7); context.fill(); }
    }
    context.globalAlpha = 1;
    const counts = every.map((_, g) => of.reduce((sum, value) => sum + (value === g), 0));
    legend.replaceChildren(...every.slice(0, 24).map((group, g) => el("li", {}, el("span", { class: "swatch", style: { background: `var(${group.colour})` }, "aria-hidden": "true" }), bdi(group.name), ` ${counts[g].toLocaleString("en")}`)),
      ...(every.length > 24 ? [el("li", {}, `and ${every.length - 24} more`)] : []),
      ...(by === "batch" && about.batches.length > MOST_BATCHES ? [el("li", { class: "caveat" }, "Colours repeat: point at a sample to see its batch.")] : []),
      ...(by === "perturbation" && !marked.length ? [el("li", { class: "caveat" }, "Name a perturbation to mark its samples.")] : []));
    canvas.setAttribute("aria-label", `Scatter plot of ${plural(about.n, "sample")}, ${state.axes.join(" against ")}, coloured by ${colour.selectedOptions[0].textContent}: ${every.slice(0, 8).map((group, g) => `${group.name} ${counts[g]}`).join(", ")}.`);
  }

  canvas.addEventListener("pointermove", (event) => {
    if (!state || !state.place) return;
    const area = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - area.left, event.clientY - area.top];
    let [best, least] = [-1, 100];
    for (let i = 0; i < about.n; i++) {
      const apart = (state.place.px(i) - x) ** 2 + (state.place.py(i) - y) ** 2;
      if (apart < least) [best, least] = [i, apart];
    }
    if (best < 0) return hideTip();
    const p = state.perturbation[best];
    showTip([el("b", {}, Number.isNaN(p) ? "control" : bdi(labels[p])), el("p", {}, "batch ", bdi(about.batches[state.batch[best]]))], event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", hideTip);

  async function draw() {
    const key = view.key;
    const ref = about.tables[key];
    if (!ref) { state = null; sized(canvas, 0, 0); axes.textContent = "No picture of this embedding."; return; }
    const [shared, own] = await Promise.all([unpack(about.shared), unpack(ref)]);
    if (key !== view.key) return;
    if (!list.childElementCount) list.replaceChildren(...labels.slice(0, 12000).map((text) => el("option", { value: text })));
    state = { x: own.x, y: own.y, perturbation: shared.perturbation, batch: shared.batch, axes: ref.axes };
    if (!marked.length) marked = frequent(shared.perturbation);
    const drawn = about.n < about.of ? `${about.n.toLocaleString("en")} of ${about.of.toLocaleString("en")} samples, drawn at random (seeded; up to a fifth controls)` : `all ${plural(about.n, "sample")}`;
    axes.textContent = `${ref.axes[0]} across, ${ref.axes[1]} upwards; ${drawn}.`;
    paint();
  }

  /** The perturbations with most samples here, to begin with. */
  function frequent(codes) {
    const counts = new Map();
    for (const code of codes) if (!Number.isNaN(code)) counts.set(code, (counts.get(code) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 4).map(([code]) => code);
  }

  onResize(holder, paint);
  onTheme.push(paint);
  view.on(draw);
  return draw();
}
