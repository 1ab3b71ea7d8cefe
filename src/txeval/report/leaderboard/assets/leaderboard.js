"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("on");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Sort by a column: what has no score is last in both directions; baselines and published rows stay in their groups.
  for (const button of all("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const table = button.closest("table");
      const place = Number(head.dataset.place);
      const higher = head.dataset.higher === "1";
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : higher;
      for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      for (const body of all("tbody", table)) {
        const rows = all("tr:not(.group)", body);
        const value = (row) => {
          const cell = row.children[place];
          if (place === 0) return cell.dataset.label;
          return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
        };
        const compare = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === null || y === null) return (x === null) - (y === null);
          const order = typeof x === "string" ? x.localeCompare(y) : x - y;
          return descending ? -order : order;
        };
        rows.map((row, i) => [row, i]).sort((a, b) => compare(a[0], b[0]) || a[1] - b[1]).forEach(([row]) => body.append(row));
      }
      say(table, `Sorted by ${button.textContent}, ${descending ? "highest" : "lowest"} first.`);
    });
  }

  const say = (within, text) => {
    const status = within.closest("section").querySelector("[role=status]");
    if (status) status.textContent = text;
  };

  // Show the models whose name or source holds all words.
  const search = document.getElementById("search");
  if (search) {
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const section of all("section.board")) {
        let shown = 0;
        for (const row of all("tbody tr:not(.group)", section)) {
          const text = row.children[0].textContent.toLowerCase();
          row.hidden = !words.every((word) => text.includes(word));
          shown += !row.hidden;
        }
        say(section.firstElementChild, words.length ? `${shown} rows match.` : "");
      }
    });
  }

  const brief = document.getElementById("brief");
  if (brief) brief.addEventListener("change", () => root.classList.toggle("brief", !brief.checked));

  const which = document.getElementById("which");
  if (which) {
    which.addEventListener("change", () => {
      for (const section of all("section.board")) section.hidden = which.value !== "" && section.id !== which.value;
    });
  }

  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const name = () => { theme.setAttribute("aria-pressed", String(dark())); };
  if (theme) {
    name();
    theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  }
})();
