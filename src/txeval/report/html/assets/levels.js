// One level: post-processings side by side, seeds, and the distribution over its units.

const MOST_ROWS = 12;

function mark(shape, x, y, r, attributes) {
  if (shape === "square") return svg("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, ...attributes });
  if (shape === "diamond") return svg("path", { d: `M${x} ${y - r * 1.3}L${x + r * 1.3} ${y}L${x} ${y + r * 1.3}L${x - r * 1.3} ${y}Z`, ...attributes });
  if (shape === "triangle") return svg("path", { d: `M${x} ${y - r * 1.25}L${x + r * 1.2} ${y + r}L${x - r * 1.2} ${y + r}Z`, ...attributes });
  return svg("circle", { cx: x, cy: y, r, ...attributes });
}

function postMark(view, post) {
  const name = view.posts[post];
  const [colour, shape] = POST_MARKS[name] || [`--c${(post + 3) % 7}`, "circle"];
  return { fill: `var(${colour})`, shape };
}

function rowLabel(text, y, width) {
  const most = Math.max(6, Math.floor((width - 10) / 7.4));
  const chars = [...text];
  const shown = chars.length > most ? `${chars.slice(0, most - 1).join("")}…` : text;
  // Isolated from the direction of the text around it, as <bdi> is in HTML.
  return svg("text", { x: width - 8, y, class: "row-label", "text-anchor": "end", "dominant-baseline": "middle", direction: "ltr", style: { "unicode-bidi": "isolate" } },
    svg("title", {}, text), shown);
}

function axis(low, high, x, top, bottom, title, width) {
  const wanted = width < 420 ? 3 : 6;
  return svg("g", { class: "axis" }, ticks(low, high, wanted).map(([value, text]) => [
    svg("line", { x1: x(value), x2: x(value), y1: top, y2: bottom }),
    svg("text", { x: x(value), y: bottom + 14, "text-anchor": "middle" }, text),
  ]), svg("text", { x: (x(low) + x(high)) / 2, y: bottom + 32, "text-anchor": "middle", class: "title" }, title));
}

function reference(value, x, top, bottom, kind, text) {
  if (!isNumber(value)) return null;
  return withTip(svg("line", { x1: x(value), x2: x(value), y1: top, y2: bottom, class: kind }), () => [el("b", {}, text), el("p", {}, fmt(value))]);
}

function dotPlot(view, column, holder, more) {
  const about = view.columns[column];
  const models = view.models.map((_, i) => i).filter((m) => { const cell = view.best(column, m); return cell && isNumber(cell[3]); });
  const score = (m) => view.best(column, m)[3] * (about.higher ? -1 : 1);
  models.sort((a, b) => view.models[a].baseline - view.models[b].baseline || score(a) - score(b));
  if (!models.length) {
    const reasons = [...new Set(view.cells.filter((cell) => cell[0] === column).map((cell) => view.text(cell[11])).filter(Boolean))];
    holder.replaceChildren(el("p", { class: "hole-note" }, "No score: ", reasons.join("; ") || "not in the run"));
    return;
  }
  const draw = (width) => {
    const shown = more.all ? models : models.slice(0, MOST_ROWS);
    const left = width < 520 ? 96 : 170;
    const right = 14;
    const step = view.posts.length > 1 ? 34 : 24;
    const top = 8;
    const bottom = top + shown.length * step;
    const values = [about.chance, about.random];
    for (const m of shown) for (let p = 0; p < view.posts.length; p++) { const cell = view.cell(column, m, p); if (cell) values.push(cell[3], cell[5], cell[6], ...cell[15].map((one) => one[1])); }
    const known = values.filter(isNumber);
    let [low, high] = [Math.min(...known), Math.max(...known)];
    const pad = (high - low || Math.abs(high) || 1) * 0.04;
    low -= pad; high += pad;
    const x = (value) => left + (width - left - right) * (value - low) / (high - low);
    const parts = [axis(low, high, x, top, bottom, about.label + (about.higher ? "" : " (lower is better)"), width)];
    shown.forEach((m, i) => {
      const y = top + (i + 0.5) * step;
      if (i % 2) parts.push(svg("rect", { x: 0, y: y - step / 2, width, height: step, class: "band" }));
    });
    parts.push(reference(about.chance, x, top, bottom, "ref-chance", "chance"), reference(about.random, x, top, bottom, "ref-random", about.ceiling ? "random baseline: mixes perfectly" : "random baseline"));
    shown.forEach((m, i) => {
      const y = top + (i + 0.5) * step;
      parts.push(rowLabel(view.models[m].label, y, left));
      view.posts.forEach((_, p) => {
        const cell = view.cell(column, m, p);
        if (!cell || !isNumber(cell[3])) return;
        const at = y + (view.posts.length > 1 ? (p - (view.posts.length - 1) / 2) * 7 : 0);
        const { fill, shape } = postMark(view, p);
        const group = svg("g", { class: "point" },
          svg("rect", { x: x(cell[3]) - 9, y: at - 5, width: 18, height: 10, fill: "transparent" }),
          isNumber(cell[5]) && svg("line", { x1: x(cell[5]), x2: x(cell[6]), y1: at, y2: at, stroke: fill, class: "whisker" }),
          cell[15].map((one) => isNumber(one[1]) && svg("line", { x1: x(one[1]), x2: x(one[1]), y1: at - 4, y2: at + 4, stroke: fill, class: "seed" })),
          mark(shape, x(cell[3]), at, 3.6, { fill, class: "dot" }));
        parts.push(withTip(group, () => cellTip(view, cell, column)));
      });
    });
    const best = shown.filter((m) => !view.models[m].baseline)[0];
    const says = best === undefined ? "" : ` Best: ${view.models[best].label}, ${fmt(view.best(column, best)[3])}.`;
    const picture = svg("svg", { width, height: bottom + 42, viewBox: `0 0 ${width} ${bottom + 42}`, role: "img", "aria-label": `${about.label} of ${plural(shown.length, "embedding")} under every post-processing.${says} The numbers are in the table below.` }, parts);
    holder.replaceChildren(picture);
    if (models.length > MOST_ROWS) holder.append(el("button", { type: "button", class: "more", onclick: () => { more.all = !more.all; draw(width); } }, more.all ? "Show the first only" : `Show all ${models.length} embeddings`));
  };
  onResize(holder, draw);
}

function postLegend(view) {
  const item = (...content) => [el("span", { class: "item" }, content), " "];
  const line = (kind, text) => item(el("span", { class: `key-line ${kind}`, "aria-hidden": "true" }), ` ${text}`);
  return el("p", { class: "legend" }, view.posts.map((name, p) => {
    const { fill, shape } = postMark(view, p);
    return item(svg("svg", { width: 14, height: 12, "aria-hidden": "true" }, mark(shape, 7, 6, 4, { fill })), ` ${postTitle(name)}`);
  }), line("interval", "95 % interval"), line("seed", "single seeds"), line("chance", "chance"), line("random", "random baseline"));
}

function numbersTable(view, column) {
  const about = view.columns[column];
  const text = (cell) => {
    if (!cell) return "not in the run";
    if (!isNumber(cell[3])) return `– ${view.text(cell[11])}`;
    return fmt(cell[3]) + (isNumber(cell[4]) ? ` ± ${fmt(cell[4])}` : "") + (isNumber(cell[5]) ? ` (${fmt(cell[5])} to ${fmt(cell[6])})` : "");
  };
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${about.label}: all numbers, scrolls sideways` },
    el("table", { class: "plain" }, el("caption", {}, `${about.label}: mean ± standard deviation over seeds (95 % interval)`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Embedding"), view.posts.map((name) => el("th", { scope: "col" }, postTitle(name))))),
      el("tbody", {}, view.models.map((model, m) => el("tr", {}, el("th", { scope: "row" }, bdi(model.label)), view.posts.map((_, p) => el("td", {}, text(view.cell(column, m, p)))))))));
}

function ridges(view, found, post, holder, more) {
  const rows = [];
  for (const row of found.rows) if (row[1] === (post === "usual" ? view.models[row[0]].post : post)) rows.push(row);
  if (!rows.length) { holder.replaceChildren(el("p", { class: "hole-note" }, "No numbers under this post-processing.")); return; }
  rows.sort((a, b) => view.models[a[0]].baseline - view.models[b[0]].baseline || b[5] - a[5]);
  const base = rows.find((row) => view.models[row[0]].baseline);
  const draw = (width) => {
    const shown = more.all ? rows : rows.slice(0, MOST_ROWS);
    const left = width < 520 ? 96 : 170;
    const right = 14;
    const step = 30;
    const top = 10;
    const bottom = top + shown.length * step;
    const x = (value) => left + (width - left - right) * (value - found.low) / (found.high - found.low);
    const shape = (row, y) => {
      const most = Math.max(...row[2]);
      const bin = (found.high - found.low) / row[2].length;
      const points = row[2].map((count, i) => `L${x(found.low + i * bin).toFixed(1)} ${(y - (step - 5) * count / most).toFixed(1)}L${x(found.low + (i + 1) * bin).toFixed(1)} ${(y - (step - 5) * count / most).toFixed(1)}`);
      return `M${x(found.low)} ${y}${points.join("")}L${x(found.high)} ${y}Z`;
    };
    const parts = [axis(found.low, found.high, x, top, bottom, found.title, width)];
    shown.forEach((row, i) => {
      const y = top + (i + 1) * step;
      const model = view.models[row[0]];
      parts.push(rowLabel(model.label, y - step / 2 + 4, left));
      const group = svg("g", {},
        svg("path", { d: shape(row, y), class: model.baseline ? "ridge base" : "ridge" }),
        base && row !== base && svg("path", { d: shape(base, y), class: "ridge ghost" }),
        svg("line", { x1: x(row[5]), x2: x(row[5]), y1: y - step + 5, y2: y, class: "median" }));
      parts.push(withTip(group, () => [el("b", {}, bdi(model.label), ", ", postTitle(view.posts[row[1]])), el("dl", {},
        el("dt", {}, several(found.unit)), el("dd", {}, row[3].toLocaleString("en")), el("dt", {}, "median"), el("dd", {}, fmt(row[5])),
        el("dt", {}, "5 % to 95 %"), el("dd", {}, `${fmt(row[4])} to ${fmt(row[6])}`))]));
    });
    const says = shown.map((row) => `${view.models[row[0]].label}: median ${fmt(row[5])}`).slice(0, 6).join("; ");
    holder.replaceChildren(svg("svg", { width, height: bottom + 42, viewBox: `0 0 ${width} ${bottom + 42}`, role: "img", "aria-label": `Distribution over ${several(found.unit)}: ${found.title}. ${says}` }, parts));
    if (rows.length > MOST_ROWS) holder.append(el("button", { type: "button", class: "more", onclick: () => { more.all = !more.all; draw(width); } }, more.all ? "Show the first only" : `Show all ${rows.length} embeddings`));
  };
  onResize(holder, draw);
}

function levelPart(view, task, root) {
  const columns = view.columns.map((_, i) => i).filter((i) => view.columns[i].task === task);
  const first = columns.find((i) => view.columns[i].headline);
  let column = first === undefined ? columns[0] : first;
  const plot = el("div", { class: "plot" });
  const numbers = el("details", { class: "numbers" }, el("summary", {}, "The numbers as a table"));
  const about = el("p", { class: "about" });
  const redraw = () => {
    about.textContent = view.columns[column].summary;
    const fresh = el("div", { class: "plot" });
    root.querySelector(".plot").replaceWith(fresh);
    dotPlot(view, column, fresh, { all: false });
    numbers.replaceChildren(numbers.firstChild);
    if (numbers.open) numbers.append(numbersTable(view, column));
  };
  numbers.addEventListener("toggle", () => { if (numbers.open && numbers.childElementCount === 1) numbers.append(numbersTable(view, column)); });
  const name = (i) => view.columns[i].label + (view.columns[i].headline ? "" : " (further score)");
  const scores = el("div", {},
    el("h4", {}, view.posts.length > 1 ? "Post-processings side by side" : "Scores"),
    el("div", { class: "controls" }, columns.length > 1 && field("Score", choose(columns.map((i) => [i, name(i)]), column, (value) => { column = Number(value); redraw(); }))),
    about, plot, postLegend(view), numbers);
  root.replaceChildren(scores);
  redraw();
  if (!view.cells.some((cell) => columns.includes(cell[0]) && isNumber(cell[3]))) {
    const reasons = [...new Set(view.cells.filter((cell) => columns.includes(cell[0])).map((cell) => view.text(cell[11])).filter(Boolean))];
    root.replaceChildren(el("p", { class: "hole-note" }, "No score: ", reasons.join("; ") || "not in the run"));
  }
  const found = view.distributions[task];
  if (!found) return;
  let post = "usual";
  const more = { all: false };
  let ridge = el("div", { class: "ridges" });
  const options = [["usual", "best of each"], ...view.posts.map((title, i) => [i, postTitle(title)])];
  root.append(el("div", {}, el("h4", {}, `Distribution over ${several(found.unit)}`),
    el("div", { class: "controls" }, view.posts.length > 1 && field("Post-processing", choose(options, post, (value) => {
      post = value === "usual" ? value : Number(value);
      const fresh = el("div", { class: "ridges" });
      ridge.replaceWith(fresh);
      ridge = fresh;
      ridges(view, found, post, ridge, more);
    }))), ridge,
    el("p", { class: "legend" }, "Line: median. Dashed outline: the random baseline.")));
  ridges(view, found, post, ridge, more);
}
