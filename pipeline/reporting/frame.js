"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));

  // Light or dark: the reader's system decides until the button is used.
  const theme = byId("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Tables of scores: a heading sorts, words by letter, figures from small to large and back.
  const scores = byId("scores");
  all("thead th", scores).forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const rising = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of all("thead th", scores)) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const figures = heading.classList.contains("figure");
      const value = (row) => {
        const text = row.cells[column].textContent.trim();
        return figures ? parseFloat(text.replace(/,/g, "")) : text;
      };
      const compare = (left, right) => {
        const a = value(left), b = value(right);
        if (figures) return (Number.isNaN(a) ? -Infinity : a) - (Number.isNaN(b) ? -Infinity : b);
        return a < b ? -1 : a > b ? 1 : 0;
      };
      const rows = all("tbody tr", scores).sort((a, b) => (rising ? 1 : -1) * compare(a, b));
      scores.tBodies[0].append(...rows);
    });
  });

  // On paper nothing can be opened: everything is printed open, and closed again.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    for (const entry of closed) entry.open = true;
  });
  addEventListener("afterprint", () => {
    for (const entry of closed) entry.open = false;
  });
})();
