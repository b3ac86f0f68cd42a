// Sorts a table by the column whose heading is chosen.
"use strict";

function sortTable(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const text = heads[column].dataset.type === "text";
  const ascending = heads[column].ariaSort === "descending" || (heads[column].ariaSort === "none" && text);
  heads.forEach((head, i) => { head.ariaSort = i === column ? (ascending ? "ascending" : "descending") : "none"; });
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "nan" || y === "nan") return (x === "nan" ? -1 : 0) - (y === "nan" ? -1 : 0);
    return isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
  table.tBodies[0].append(...rows);
  table.classList.toggle("sorted", column > 0);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, i) => head.addEventListener("click", () => sortTable(table, i)));
}
