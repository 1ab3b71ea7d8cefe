// Tables of many rows: only the rows in sight are in the page.

const ROW = 34;

/**
 * columns: [{ key, title, help, values (array or typed array) or value(i), text(value, i), node(i), number }]
 * Sorting puts missing values last, whichever the direction.
 */
class LongTable {
  constructor(holder, { columns, n, find, name, sort, down, empty }) {
    Object.assign(this, { columns, n, find, name, empty });
    this.sort = sort || null;
    this.down = down !== false;
    this.query = "";
    this.keep = null;
    this.status = el("span", { class: "status", role: "status" });
    this.head = el("thead");
    this.above = el("tr", { class: "space", "aria-hidden": "true" }, el("td", { colspan: columns.length }));
    this.below = el("tr", { class: "space", "aria-hidden": "true" }, el("td", { colspan: columns.length }));
    this.body = el("tbody");
    this.table = el("table", { class: "long" }, el("caption", { class: "sr" }, name), this.head, this.body);
    this.box = el("div", { class: "scroll long-box", tabindex: "0", role: "region", "aria-label": `${name}, scrolls` }, this.table);
    this.box.addEventListener("scroll", () => this.paint(), { passive: true });
    this.drawHead();
    this.update();
    holder.replaceChildren(this.box);
    new ResizeObserver(() => this.paint(true)).observe(this.box);
  }

  value(column, i) { return column.value ? column.value(i) : column.values[i]; }

  drawHead() {
    this.head.replaceChildren(el("tr", {}, this.columns.map((column) => {
      const sorted = this.sort === column.key;
      const button = el("button", { type: "button", class: "sort", "data-key": column.key, onclick: () => this.sortBy(column) },
        column.title, el("span", { class: "arrow", "aria-hidden": "true" }, sorted ? (this.down ? " ↓" : " ↑") : ""));
      if (column.help) withTip(button, () => [el("p", {}, column.help)]);
      return el("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": sorted ? (this.down ? "descending" : "ascending") : "none" }, column.fixed ? column.title : button);
    })));
  }

  sortBy(column) {
    this.down = this.sort === column.key ? !this.down : column.number && !column.lowFirst;
    this.sort = column.key;
    this.drawHead();
    this.update();
    this.head.querySelector(`button[data-key="${column.key}"]`).focus();
  }

  update() {
    const query = this.query.trim().toLowerCase();
    const rows = [];
    for (let i = 0; i < this.n; i++) if ((!this.keep || this.keep(i)) && (!query || this.find(i).toLowerCase().includes(query))) rows.push(i);
    const column = this.columns.find((one) => one.key === this.sort);
    if (column) {
      const sign = this.down ? -1 : 1;
      const values = new Map(rows.map((i) => [i, this.value(column, i)]));
      const missing = (value) => value === null || value === undefined || value === "" || Number.isNaN(value);
      const collate = new Intl.Collator("en", { numeric: true }).compare;
      rows.sort((a, b) => {
        const [x, y] = [values.get(a), values.get(b)];
        const lost = missing(x) - missing(y);
        if (lost || missing(x)) return lost || a - b;
        return sign * (column.number ? x - y : collate(x, y)) || a - b;
      });
    }
    this.rows = rows;
    this.status.textContent = rows.length < this.n ? `${rows.length.toLocaleString("en")} of ${this.n.toLocaleString("en")} shown` : `${this.n.toLocaleString("en")} in all`;
    this.table.setAttribute("aria-rowcount", rows.length + 1);
    this.box.scrollTop = 0;
    this.paint(true);
  }

  paint(again = false) {
    const height = this.box.clientHeight || 400;
    const start = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 8);
    const end = Math.min(this.rows.length, start + Math.ceil(height / ROW) + 16);
    if (!again && this.start === start && this.end === end) return;
    [this.start, this.end] = [start, end];
    this.above.style.height = `${start * ROW}px`;
    this.below.style.height = `${(this.rows.length - end) * ROW}px`;
    const made = [];
    for (let place = start; place < end; place++) {
      const i = this.rows[place];
      made.push(el("tr", { "aria-rowindex": place + 2 }, this.columns.map((column, c) => {
        const content = column.node ? column.node(i) : column.text ? column.text(this.value(column, i), i) : this.value(column, i);
        return el(c ? "td" : "th", { scope: c ? null : "row", class: column.number ? "number" : column.class }, content);
      })));
    }
    if (!made.length) made.push(el("tr", {}, el("td", { colspan: this.columns.length, class: "nothing" }, this.empty || "Nothing matches.")));
    this.body.replaceChildren(this.above, ...made, this.below);
  }

  /** All rows that are shown, as comma-separated text. */
  csv() {
    const quote = (value) => {
      const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(value);
      // A spreadsheet must not take a label for a formula.
      const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
      return /[",\n]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
    };
    const lines = [this.columns.map((column) => quote(column.title))];
    for (const i of this.rows) lines.push(this.columns.map((column) => quote(column.plain ? column.plain(i) : this.value(column, i))));
    return `${lines.map((line) => line.join(",")).join("\n")}\n`;
  }
}

function save(text, name) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const saveButton = (table, name) => el("button", { type: "button", onclick: () => save(table().csv(), name) }, "Save rows as CSV");

/** Choice of the embedding and post-processing that all parts below the levels show. */
function picker(view, available) {
  const models = view.models.map((model, i) => [i, model.label]).filter(([i]) => view.pairs.some(([m]) => m === i));
  const one = el("span", { class: "fields" });
  const draw = () => {
    const posts = view.pairs.filter(([m]) => m === view.model).map(([, p]) => [p, postTitle(view.posts[p])]);
    one.replaceChildren(
      field("Embedding", choose(models, view.model, (value) => view.choose(Number(value), view.post))),
      field("Post-processing", choose(posts, view.post, (value) => view.choose(view.model, Number(value)))));
  };
  draw();
  view.on(() => {
    const label = one.contains(document.activeElement) ? [...one.querySelectorAll("select")].indexOf(document.activeElement) : -1;
    draw();
    if (label >= 0) one.querySelectorAll("select")[label].focus();
  });
  return one;
}

const PERTURBATION_COLUMNS = {
  cosine: ["Consistency", "Mean cosine between samples of the perturbation (level 3)", fmt, false],
  p: ["p", "Share of the null that is as consistent: small is consistent", fmtP, true],
  p_adjusted: ["p adjusted", "The same, adjusted by Benjamini-Hochberg", fmtP, true],
  energy: ["Magnitude", "Energy distance to the controls", fmt, false],
  energy_p: ["p of magnitude", "Share of the null with so large an energy distance", fmtP, true],
  linear: ["Linear probe", "Share of its test samples that the linear probe names right (mean over seeds)", fmt, false],
  knn: ["kNN", "Share of its test samples that their neighbours name right", fmt, false],
};

function perturbationPart(view, root) {
  const about = view.perturbations;
  if (!about) { root.replaceChildren(el("p", { class: "hole-note" }, "The results folder has no numbers of single perturbations.")); return; }
  const holder = el("div");
  const panel = el("div", { class: "panel", role: "region", "aria-label": "One perturbation", hidden: true });
  const search = el("input", { type: "search", placeholder: "gene or label", oninput: debounce(() => { if (table) { table.query = search.value; table.update(); } }) });
  const only = el("input", { type: "checkbox", onchange: () => { if (table) { filter(); table.update(); } } });
  const status = el("span");
  const controls = el("div", { class: "controls" }, picker(view), field("Find perturbation", search),
    about.columns.includes("p_adjusted") && field("Only consistent (adjusted p < 0.05)", only), status, saveButton(() => table, "perturbations.csv"));
  root.replaceChildren(controls, holder, panel);
  for (const note of view.notes) root.append(el("p", { class: "caveat" }, note));
  if (view.no_maps) root.append(el("p", { class: "caveat" }, `Neighbours are missing: ${view.no_maps}`));
  let table = null;
  let numbers = {};
  const filter = () => { table.keep = only.checked ? (i) => numbers.p_adjusted && numbers.p_adjusted[i] < 0.05 : null; };

  async function draw() {
    const key = view.key;
    const ref = about.tables[key];
    const near = view.neighbours[key];
    const [shared, own, close] = await Promise.all([unpack(about.shared), ref ? unpack(ref) : {}, near && near.k ? unpack(near) : null]);
    if (key !== view.key) return;
    numbers = own;
    const columns = [{
      key: "label", title: "Perturbation", values: about.labels,
      node: (i) => el("button", { type: "button", class: "name", onclick: () => open(i) }, bdi(about.labels[i])),
    }];
    columns.push({ key: "n", title: "Samples", values: shared.n, number: true, text: (value) => (Number.isNaN(value) ? "–" : Math.round(value).toLocaleString("en")) });
    for (const name of about.columns) {
      if (!own[name]) continue;
      const [title, help, text, lowFirst] = PERTURBATION_COLUMNS[name];
      columns.push({ key: name, title, help, values: own[name], number: true, text, lowFirst });
    }
    if (close) {
      const name = (i) => { const j = close.index[i * near.k]; return Number.isNaN(j) ? "" : about.labels[j]; };
      columns.push({ key: "near", title: "Closest", help: "Perturbation of highest cosine between mean profiles", value: name, class: "near",
        node: (i) => { const j = close.index[i * near.k]; return Number.isNaN(j) ? "–" : [bdi(about.labels[j]), ` ${fmt(close.cosine[i * near.k])}`]; } });
    }
    const before = table;
    table = new LongTable(holder, {
      columns, n: about.labels.length, name: "Perturbations", sort: before ? before.sort : own.cosine ? "cosine" : "label", down: before ? before.down : Boolean(own.cosine),
      find: (i) => `${about.labels[i]} ${about.targets[i] || ""}`,
    });
    table.query = search.value;
    filter();
    table.update();
    status.replaceChildren(table.status);
  }

  async function open(i) {
    const rows = [];
    for (const [m, p] of view.pairs) {
      if (view.models[m].baseline === false || m === view.model) {
        const ref = about.tables[`${m},${p}`];
        if (ref && (p === view.models[m].post || (m === view.model && p === view.post))) rows.push([m, p, await unpack(ref)]);
      }
    }
    const near = view.neighbours[view.key];
    const close = near && near.k ? await unpack(near) : null;
    const jump = (j) => el("button", { type: "button", class: "chip", onclick: () => open(j) }, bdi(about.labels[j]), ` ${fmt(close.cosine[i * near.k + closeIndex(j)])}`);
    const list = close ? [...Array(near.k).keys()].map((k) => close.index[i * near.k + k]).filter((j) => !Number.isNaN(j)) : [];
    const closeIndex = (j) => list.indexOf(j);
    const names = about.columns.filter((name) => rows.some(([, , own]) => own[name]));
    const gene = about.targets[i] || "";
    panel.hidden = false;
    panel.replaceChildren(...[
      el("div", { class: "panel-head" }, el("h3", { tabindex: "-1" }, bdi(about.labels[i])), el("button", { type: "button", onclick: () => { panel.hidden = true; } }, "Close")),
      gene && gene !== about.labels[i] && el("p", {}, "Target gene: ", bdi(gene)),
      list.length > 0 && el("p", {}, `Closest in ${view.models[view.model].label}, ${postTitle(view.posts[view.post])} (cosine): `, list.map((j) => [jump(j), " "])),
      await relationsOf(view, gene),
      rows.length > 0 && el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "This perturbation in every embedding, scrolls sideways" },
        el("table", { class: "plain" }, el("caption", {}, "In every embedding, with its usual best post-processing"),
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Embedding"), names.map((name) => el("th", { scope: "col", class: "number" }, PERTURBATION_COLUMNS[name][0])))),
          el("tbody", {}, rows.map(([m, p, own]) => el("tr", {}, el("th", { scope: "row" }, bdi(view.models[m].label), `, ${postTitle(view.posts[p])}`),
            names.map((name) => el("td", { class: "number" }, own[name] ? PERTURBATION_COLUMNS[name][2](own[name][i]) : "–"))))))),
    ].filter(Boolean));
    panel.querySelector("h3").focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest" });
  }

  view.on(draw);
  return draw();
}

const LINKS = ["missed", "most similar", "most opposite"];

/** The known relationships of one gene under the chosen embedding. */
async function relationsOf(view, gene) {
  const about = view.relations;
  if (!about || !gene) return null;
  const number = about.genes.indexOf(gene);
  const ref = about.tables[view.key];
  if (number < 0 || !ref) return null;
  const [shared, own] = await Promise.all([unpack(about.shared), unpack(ref)]);
  const items = [];
  for (let i = 0; i < shared.a.length && items.length < 40; i++) {
    if (shared.a[i] !== number && shared.b[i] !== number) continue;
    const other = about.genes[shared.a[i] === number ? shared.b[i] : shared.a[i]];
    items.push(el("li", { class: own.link[i] > 0 ? "found" : "missed" }, bdi(other), ` (${about.databases[shared.database[i]]}): ${own.link[i] > 0 ? `found, ${LINKS[own.link[i]]}` : "missed"}, cosine ${fmt(own.cosine[i])}`));
  }
  return items.length ? [el("h4", {}, "Known relationships"), el("ul", { class: "links" }, items)] : null;
}

function relationPart(view, root) {
  const about = view.relations;
  if (!about) {
    const hole = view.cells.find((cell) => view.columns[cell[0]].task === "relationships" && cell[11] >= 0);
    root.replaceChildren(el("p", { class: "hole-note" }, "No table: ", hole ? view.text(hole[11]) : "level 5 is not in this run", "."));
    return;
  }
  const holder = el("div");
  const counts = el("p", { class: "about", role: "status" });
  let table = null;
  let shown = { database: "", link: "" };
  const search = el("input", { type: "search", placeholder: "gene", oninput: debounce(() => { table.query = search.value; table.update(); }) });
  const status = el("span");
  root.replaceChildren(el("div", { class: "controls" }, picker(view),
    field("Database", choose([["", "all"], ...about.databases.map((name, i) => [i, name])], "", (value) => { shown.database = value; filter(); })),
    field("Show", choose([["", "found and missed"], ["found", "found"], ["missed", "missed"]], "", (value) => { shown.link = value; filter(); })),
    field("Find gene", search), status, saveButton(() => table, "relationships.csv")), counts, holder);
  let shared, own;
  const filter = () => {
    table.keep = (i) => (shown.database === "" || shared.database[i] === Number(shown.database)) && (!shown.link || (own.link[i] > 0) === (shown.link === "found"));
    table.update();
  };
  async function draw() {
    const key = view.key;
    const ref = about.tables[key];
    if (!ref) { holder.replaceChildren(el("p", { class: "hole-note" }, "No numbers for this embedding and post-processing.")); counts.textContent = ""; return; }
    const both = await Promise.all([unpack(about.shared), unpack(ref)]);
    if (key !== view.key) return;
    [shared, own] = both;
    const per = about.databases.map(() => [0, 0]);
    for (let i = 0; i < shared.database.length; i++) { per[shared.database[i]][1]++; if (own.link[i] > 0) per[shared.database[i]][0]++; }
    counts.textContent = `Found: ${about.databases.map((name, i) => `${name} ${per[i][0].toLocaleString("en")} of ${per[i][1].toLocaleString("en")}`).join(", ")}. By chance it would be one in ten.`;
    const gene = (codes) => (i) => about.genes[codes[i]];
    const columns = [
      { key: "a", title: "Gene", value: gene(shared.a), node: (i) => bdi(about.genes[shared.a[i]]) },
      { key: "b", title: "Gene", value: gene(shared.b), node: (i) => bdi(about.genes[shared.b[i]]) },
      { key: "database", title: "Database", value: (i) => about.databases[shared.database[i]] },
      { key: "cosine", title: "Cosine", values: own.cosine, number: true, text: fmt },
      ...(own.rank ? [{ key: "rank", title: "Rank", help: "Rank of the cosine among all pairs: 0 most opposite, 1 most similar", values: own.rank, number: true, text: fmt }] : []),
      { key: "link", title: "Found", value: (i) => (own.link[i] > 0 ? `found: ${LINKS[own.link[i]]}` : "missed"),
        node: (i) => el("span", { class: own.link[i] > 0 ? "found" : "missed" }, own.link[i] > 0 ? `✓ ${LINKS[own.link[i]]}` : "missed") },
    ];
    const before = table;
    table = new LongTable(holder, { columns, n: shared.a.length, name: "Known relationships", sort: before ? before.sort : "cosine", down: before ? before.down : true, find: (i) => `${about.genes[shared.a[i]]} ${about.genes[shared.b[i]]}` });
    table.query = search.value;
    filter();
    status.replaceChildren(table.status);
  }
  view.on(draw);
  return draw();
}
