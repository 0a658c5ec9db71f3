"use strict";
// Sorts a table by the column whose heading is pressed, or that the address names, as in #sort=parameters.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const sort = (column, descending) => {
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("baseline"));
    const rest = [...table.tBodies[0].rows].filter((row) => row.classList.contains("baseline"));
    rows.sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      const order = a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : String(a).localeCompare(String(b));
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows, ...rest);
    headings.forEach((heading) => heading.removeAttribute("aria-sort"));
    headings[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sort(column, heading.getAttribute("aria-sort") === "ascending"));
  });
  const wanted = decodeURIComponent(location.hash).replace(/^#sort=/, "");
  const column = headings.findIndex((heading) => heading.textContent === wanted);
  if (column >= 0) sort(column, false);
}
