"use strict";
// Sorts and filters the comparison, and draws the figures with plotly. The page is complete without it.
document.documentElement.classList.add("js");

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].textContent.trim();
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows];
      const numbers = rows.every((row) => /^(-|–|[-+]?\d)/.test(value(row, column)) || value(row, column) === "");
      const key = (row) => {
        const text = value(row, column);
        if (!numbers) return text.toLocaleLowerCase();
        const number = Number.parseFloat(text);
        return Number.isNaN(number) ? null : number;
      };
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null); // missing values stay last
        const order = numbers ? x - y : x.localeCompare(y);
        return up ? order : -order;
      });
      body.append(...rows);
    });
  });
  const field = document.querySelector(`input[data-filters="${table.id}"]`);
  const count = document.querySelector(`[data-counts="${table.id}"]`);
  if (!field) continue;
  const filter = () => {
    const words = field.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLocaleLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${body.rows.length} rows`;
  };
  field.addEventListener("input", filter);
  filter();
}

const drawn = [];
for (const figure of document.querySelectorAll("figure[data-figure]")) {
  const spec = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const place = figure.querySelector(".plot");
  const options = { responsive: true, displayModeBar: false, doubleClick: "reset+autosize" };
  Plotly.newPlot(place, spec.data, spec.layout, options).then(() => figure.classList.add("drawn"));
  drawn.push(place);
}
for (const details of document.querySelectorAll("details.numbers")) details.open = false;

window.addEventListener("beforeprint", () => {
  for (const place of drawn) Plotly.relayout(place, { width: 640 });
});
window.addEventListener("afterprint", () => {
  for (const place of drawn) Plotly.relayout(place, { width: null, autosize: true });
});
