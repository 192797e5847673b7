// Filters: what does not match is hidden, in the maps and in the list of failing cells; rows left empty go too.
const links = [...document.querySelectorAll("a.c")];
const listed = [...document.querySelectorAll("#verdict li[data-of]")];
const shown = new Set(links.map((link) => Number(link.dataset.i)));

function fillFilters(cells) {
  const choices = { "f-model": "model", "f-method": "method", "f-status": "status" };
  for (const [id, field] of Object.entries(choices)) {
    for (const value of new Set(cells.map((cell) => cell[field]))) {
      byId(id).append(h("option", { value: field === "status" ? `=${value}` : value }, value));
    }
  }
}

// What the filters look at, from the page itself: no detail has to be unpacked for it.
function rowsOf() {
  const reasons = new Map(listed.map((item) => [Number(item.dataset.of), item.querySelector(".where").textContent]));
  return links.map((link) => {
    const index = Number(link.dataset.i);
    const head = link.closest("tr").querySelector("th");
    const column = link.closest("td").cellIndex;
    return {
      index,
      link,
      model: link.closest("[data-model]").dataset.model,
      method: head.querySelector("b").textContent,
      status: link.getAttribute("data-status"),
      fails: link.classList.contains("fails"),
      text: `${link.closest("[data-model]").dataset.model} ${head.textContent} ${
        link.closest("table").tHead.rows[0].cells[column].textContent
      } ${link.getAttribute("data-status")} ${reasons.get(index) || ""}`.toLowerCase(),
    };
  });
}

function startFilters() {
  const form = byId("filters");
  const rows = rowsOf();
  if (rows.length < 2) return;
  fillFilters(rows);
  form.hidden = false;
  const apply = () => {
    const words = byId("f-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [model, method, status] = ["f-model", "f-method", "f-status"].map((id) => byId(id).value);
    shown.clear();
    for (const row of rows) {
      const fits =
        (!model || row.model === model) &&
        (!method || row.method === method) &&
        (!status || (status === "fails" ? row.fails : status === `=${row.status}`)) &&
        words.every((word) => row.text.includes(word));
      row.link.hidden = !fits;
      if (fits) shown.add(row.index);
    }
    for (const line of document.querySelectorAll(".heat tbody tr")) {
      line.hidden = !line.querySelector("a.c:not([hidden])");
    }
    for (const map of document.querySelectorAll(".map")) map.hidden = !map.querySelector("a.c:not([hidden])");
    for (const item of listed) item.hidden = !shown.has(Number(item.dataset.of));
    byId("f-count").textContent = shown.size === rows.length ? `${rows.length} cells` : `${shown.size} of ${rows.length} cells`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, select, dialog")) return;
    event.preventDefault();
    byId("f-text").focus();
  });
  apply();
}

// Arrow keys go from cell to cell of one map.
function startArrows() {
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  document.addEventListener("keydown", (event) => {
    const link = event.target.closest?.("a.c");
    const move = moves[event.key];
    if (!link || !move || event.ctrlKey || event.metaKey || event.altKey) return;
    const lines = [...link.closest("tbody").rows].filter((line) => !line.hidden);
    let row = lines.indexOf(link.closest("tr")) + move[0];
    let column = link.closest("td").cellIndex + move[1];
    for (; lines[row]?.cells[column]; row += move[0], column += move[1]) {
      const next = lines[row].cells[column].querySelector("a.c:not([hidden])");
      if (next) {
        event.preventDefault();
        next.focus();
        return;
      }
    }
  });
}
