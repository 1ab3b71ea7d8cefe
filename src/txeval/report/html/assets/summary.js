// The table of all embeddings on all levels.

/** A view with lookups; `on` and `choose` keep the embedding and post-processing that all parts show. */
class View {
  constructor(data, root) {
    Object.assign(this, data);
    this.root = root;
    this.byKey = new Map(data.cells.map((cell) => [`${cell[0]},${cell[1]},${cell[2]}`, cell]));
    this.picked = new Map(data.chosen.map((row) => [`${row[0]},${row[1]}`, this.pickedCell(row)]));
    this.listeners = [];
    const real = data.models.findIndex((model) => !model.baseline);
    this.model = real < 0 ? 0 : real;
    this.post = data.models[this.model].post;
    const choice = data.choice;
    if (choice) [this.model, this.post] = choice;
    if (!this.hasPair(this.model, this.post) && data.pairs.length) [this.model, this.post] = this.pairFor(this.model);
  }

  hasPair(model, post) { return this.pairs.some(([m, p]) => m === model && p === post); }

  pairFor(model) {
    const mine = this.pairs.filter(([m]) => m === model);
    return mine.find(([, p]) => p === this.post) || mine.find(([, p]) => p === this.models[model].post) || mine[0] || this.pairs[0];
  }

  choose(model, post) {
    [this.model, this.post] = this.hasPair(model, post) ? [model, post] : this.pairFor(model);
    for (const listener of this.listeners) listener();
  }

  on(listener) { this.listeners.push(listener); }

  get key() { return `${this.model},${this.post}`; }

  text(number) { return number < 0 ? "" : this.texts[number]; }

  cell(column, model, post) { return this.byKey.get(`${column},${model},${post}`); }

  /** The score that the summary shows: a cell with the chosen value; `posts` are the post-processings behind it. */
  pickedCell([column, model, value, sd, low, high, posts]) {
    const cell = [...this.cell(column, model, posts.length ? posts[0] : 0)];
    [cell[3], cell[4], cell[5], cell[6]] = [value, sd, low, high];
    cell.posts = posts;
    return cell;
  }

  /** The post-processings behind a cell, as text. */
  postsOf(cell, name) { return (cell.posts || [cell[2]]).map((post) => name(this.posts[post])).join(" | "); }

  /** The cell that stands for a model: that of the summary, else of the best post-processing (the first of equals). */
  best(column, model) {
    const picked = this.picked.get(`${column},${model}`);
    if (picked) return picked;
    const { higher } = this.columns[column];
    let found = null;
    for (let post = 0; post < this.posts.length; post++) {
      const cell = this.cell(column, model, post);
      if (cell && isNumber(cell[3]) && (!found || (higher ? cell[3] > found[3] : cell[3] < found[3]))) found = cell;
    }
    return found || this.cell(column, model, this.models[model].post) || this.cell(column, model, 0);
  }

  /** 0 at what is known without information, 1 at the best embedding, negative below. */
  position(column, value) {
    const { floor, top, higher } = this.columns[column];
    const span = top - floor;
    if (!isNumber(value) || !isNumber(span)) return NaN;
    if (span === 0 || (span < 0) === higher) return value === floor ? 0 : -1;
    return Math.max(-1, Math.min(1, (value - floor) / span));
  }
}

function cellTip(view, cell, column) {
  const about = view.columns[column];
  if (!cell) return [el("b", {}, about.label), el("p", {}, "not in the run")];
  const lines = [];
  const add = (name, value) => { if (value) lines.push(el("dt", {}, name), el("dd", {}, value)); };
  const hole = !isNumber(cell[3]);
  add("score", hole ? "–" : fmt(cell[3]) + (isNumber(cell[4]) ? ` ± ${fmt(cell[4])} over seeds` : ""));
  if (hole) add("why not", view.text(cell[11]));
  if (isNumber(cell[5])) add("95 % interval", `${fmt(cell[5])} to ${fmt(cell[6])} (over ${view.text(cell[14]) || "units"})`);
  else if (!hole) add("no interval", view.text(cell[14]) || "none was computed");
  if (isNumber(cell[7])) add("chance", fmt(cell[7]));
  if (isNumber(about.random)) add("random baseline", fmt(about.random) + (about.ceiling ? " (mixes perfectly)" : ""));
  if (cell[8] !== null) add("samples", cell[8].toLocaleString("en"));
  if (cell[9] !== null) add(several(view.text(cell[10]) || "group"), cell[9].toLocaleString("en"));
  if (cell[15].length) add("seeds", cell[15].map((one) => fmt(one[1])).join(", "));
  add("left out", view.text(cell[12]));
  return [
    el("b", {}, bdi(view.models[cell[1]].label), ", ", view.postsOf(cell, postTitle)),
    el("p", {}, about.label, about.higher ? "" : " (lower is better)", ". ", about.summary),
    el("dl", {}, lines),
  ];
}

/** A short bar with interval, chance and random baseline on the range of a column. */
function strip(view, column, cell, range) {
  const [low, high] = range;
  const place = (value) => `${(100 * (value - low) / (high - low || 1)).toFixed(1)}%`;
  const about = view.columns[column];
  return el("span", { class: "mini", "aria-hidden": "true" },
    isNumber(about.chance) && el("i", { class: "chance", style: { left: place(about.chance) } }),
    isNumber(about.random) && el("i", { class: "random", style: { left: place(about.random) } }),
    isNumber(cell[5]) && el("i", { class: "whisker", style: { left: place(cell[5]), right: `calc(100% - ${place(cell[6])})` } }),
    el("i", { class: "here", style: { left: place(cell[3]) } }));
}

function summaryTable(view, holder, controls) {
  const settings = { post: "best", all: false, filter: "", sort: null, down: true };
  const status = el("span", { class: "status", role: "status" });
  const posts = [["best", "best of each"], ...view.posts.map((name, i) => [i, postTitle(name)])];
  const search = el("input", { type: "search", placeholder: "name", oninput: debounce(() => { settings.filter = search.value.toLowerCase(); draw(); }) });
  const everything = el("input", { type: "checkbox", onchange: () => { settings.all = everything.checked; settings.sort = null; draw(); } });
  controls.replaceChildren(
    field("Post-processing", choose(posts, "best", (value) => { settings.post = value === "best" ? value : Number(value); draw(); })),
    field("Find embedding", search),
    field("All scores", everything),
    status);

  function draw() {
    const columns = view.columns.map((_, i) => i).filter((i) => settings.all || view.columns[i].headline);
    columns.sort((a, b) => view.columns[a].level - view.columns[b].level || a - b);
    const pick = (column, model) => settings.post === "best" ? view.best(column, model) : view.cell(column, model, settings.post);
    let rows = view.models.map((_, i) => i).filter((i) => view.models[i].label.toLowerCase().includes(settings.filter));
    const shown = rows.length;
    if (settings.sort !== null) {
      const sign = settings.down ? -1 : 1;
      const value = (i) => { const cell = pick(settings.sort, i); return cell && isNumber(cell[3]) ? cell[3] : null; };
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
      });
    }
    const best = new Map(columns.map((c) => {
      const values = view.models.map((model, i) => (model.baseline ? null : pick(c, i))).filter((cell) => cell && isNumber(cell[3])).map((cell) => cell[3]);
      return [c, values.length > 1 ? (view.columns[c].higher ? Math.max(...values) : Math.min(...values)) : null];
    }));
    const ranges = new Map(columns.map((c) => {
      const values = [view.columns[c].chance, view.columns[c].random];
      for (let m = 0; m < view.models.length; m++) { const cell = pick(c, m); if (cell) values.push(cell[3], cell[5], cell[6]); }
      const known = values.filter(isNumber);
      return [c, known.length ? [Math.min(...known), Math.max(...known)] : [0, 1]];
    }));
    const groups = [];
    for (const c of columns) {
      const { task, level } = view.columns[c];
      if (groups.length && groups[groups.length - 1].task === task) groups[groups.length - 1].n++;
      else groups.push({ task, level, n: 1, title: view.levels.find((one) => one.task === task).title });
    }
    const head = [
      el("tr", {}, el("td"), groups.map((group) => el("th", { colspan: group.n, scope: "colgroup" }, `${group.level} ${group.title}`))),
      el("tr", {}, el("th", { scope: "col" }, "Embedding"), columns.map((c) => {
        const about = view.columns[c];
        const sorted = settings.sort === c;
        const button = el("button", { type: "button", class: "sort", onclick: () => {
          settings.down = sorted ? !settings.down : about.higher;
          settings.sort = c;
          draw();
          holder.querySelector(`button[data-column="${c}"]`).focus();
        }, "data-column": c }, about.label, el("span", { class: "arrow", "aria-hidden": "true" }, sorted ? (settings.down ? " ↓" : " ↑") : ""));
        withTip(button, () => [el("b", {}, about.label), el("p", {}, about.summary, about.higher ? "" : " Lower is better.")]);
        return el("th", { scope: "col", "aria-sort": sorted ? (settings.down ? "descending" : "ascending") : "none" }, button,
          !about.higher && el("small", {}, "lower is better"));
      })),
    ];
    const body = rows.map((m) => el("tr", { class: view.models[m].baseline ? "baseline" : null },
      el("th", { scope: "row" }, bdi(view.models[m].label)),
      columns.map((c) => {
        const cell = pick(c, m);
        const options = { tabindex: "-1" };
        const hole = !cell || !isNumber(cell[3]);
        if (hole) return withTip(el("td", { ...options, class: "hole" }, "–", el("span", { class: "sr" }, ` ${cell ? view.text(cell[11]) : "not in the run"}`)), () => cellTip(view, cell, c));
        const place = view.position(c, cell[3]);
        const top = best.get(c) === cell[3] && !view.models[m].baseline;
        const made = el("td", { ...options, class: `cell${isNumber(place) ? (place >= 0 ? " above" : " below") : ""}${top ? " best" : ""}`, style: isNumber(place) ? { "--t": Math.abs(place).toFixed(3) } : {} },
          el("span", { class: "value" }, fmt(cell[3])), top && el("span", { class: "star" }, "★", el("span", { class: "sr" }, " best")),
          settings.post === "best" && view.posts.length > 1 && el("small", {}, view.postsOf(cell, shortPost)),
          strip(view, c, cell, ranges.get(c)));
        made.dataset.column = c;
        made.dataset.model = m;
        return withTip(made, () => cellTip(view, cell, c));
      })));
    const chance = el("tr", { class: "baseline" }, el("th", { scope: "row" }, "chance"),
      columns.map((c) => el("td", {}, isNumber(view.columns[c].chance) ? fmt(view.columns[c].chance) : "")));
    const caption = settings.post === "best" ? "Best post-processing of every embedding" : `Every embedding with ${postTitle(view.posts[settings.post])}`;
    const table = el("table", { class: "heat" }, el("caption", { class: "sr" }, caption), el("thead", {}, head), el("tbody", {}, body, chance));
    holder.replaceChildren(table);
    rove(table);
    status.textContent = shown < view.models.length ? `${shown} of ${view.models.length} embeddings` : "";
  }
  draw();
}

/** Arrow keys move between the cells of a table; one of them can be reached with Tab. */
function rove(table) {
  const cells = [...table.tBodies[0].rows].map((row) => [...row.cells].filter((cell) => cell.hasAttribute("tabindex")));
  const grid = cells.filter((row) => row.length);
  if (!grid.length) return;
  grid[0][0].tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const row = grid.findIndex((line) => line.includes(event.target));
    if (row < 0) return;
    const column = grid[row].indexOf(event.target);
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!move) return;
    const next = (grid[row + move[0]] || [])[column + move[1]];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
