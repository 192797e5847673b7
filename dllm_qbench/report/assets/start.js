// What happens on this page: a cell opens and closes, the theme turns, charts further down are drawn when seen.
const dialog = byId("cell");
let opened = null;
let opener = null;
let views = [];

const cellHref = (id) => `#cell=${encodeURIComponent(id).replaceAll("%2F", "/")}`;

function forget() {
  views.forEach((view) => view?.finalize());
  views = [];
}

async function open(find) {
  let data;
  try {
    data = await details();
  } catch (error) {
    fill({ status: "infra", method: "Details", scheme: "", task: "cannot be shown", model: "" }, [h("p", { class: "why" }, error.message)]);
    return;
  }
  const index = find(data.cells);
  if (index < 0) return;
  const cell = data.cells[index];
  opened = index;
  const { parts, charts } = about(cell, data);
  forget();
  fill(cell, parts);
  const mine = index;
  for (const chart of charts) {
    try {
      const view = await draw(chart.figure, chart.spec);
      if (opened === mine) views.push(view);
      else view?.finalize();
    } catch (error) {
      chart.figure.querySelector(".plot").replaceChildren(h("p", { class: "why" }, `This chart cannot be drawn: ${error.message}`));
    }
    if (opened !== mine) return;
  }
}

function fill(cell, parts) {
  byId("d-status").className = `verdict-of t-${signOf(cell.status)}`;
  byId("d-status").replaceChildren(sign(cell.status), cell.status);
  byId("d-name").replaceChildren(h("b", null, `${cell.method} ${cell.scheme}`), ` ${cell.task}`);
  byId("d-of").textContent = cell.model;
  byId("d-body").replaceChildren(...parts);
  if (!dialog.open) {
    opener = document.activeElement;
    dialog.showModal();
    document.documentElement.classList.add("still");
  }
  byId("d-body").scrollTop = 0;
  byId("d-name").focus();
}

// The link to the cell that was looked at last, in the map if it is shown there.
function linkOf(index) {
  return index === null ? null : document.querySelector(`a.c[data-i="${index}"]:not([hidden])`);
}

dialog.addEventListener("close", () => {
  document.documentElement.classList.remove("still");
  const back = linkOf(opened);
  // From the list of failing cells or the comparison one comes back to that list, unless one has walked on.
  const same = opener?.isConnected && back && opener.hash === back.hash;
  (same ? opener : back || opener)?.focus?.();
  opened = null;
  forget();
  byId("d-body").replaceChildren();
  if (location.hash.startsWith("#cell=")) history.replaceState(null, "", "#");
});

function fromHash() {
  if (!location.hash.startsWith("#cell=")) {
    if (dialog.open) dialog.close();
    return;
  }
  let id;
  try {
    id = decodeURIComponent(location.hash.slice(6));
  } catch {
    return;
  }
  open((cells) => cells.findIndex((cell) => cell.id === id));
}

// Worst first, as the cells come, among those that the filters show.
function step(by) {
  if (opened === null) return;
  const order = [...shown].sort((a, b) => a - b);
  const at = order.indexOf(opened);
  const next = order[(at + by + order.length) % order.length];
  if (next === undefined || next === opened) return;
  open((cells) => {
    history.replaceState(null, "", cellHref(cells[next].id));
    return next;
  });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#cell="]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  history.pushState(null, "", link.getAttribute("href"));
  link.focus();
  fromHash();
});
window.addEventListener("hashchange", fromHash);
byId("d-close").addEventListener("click", () => dialog.close());
byId("d-before").addEventListener("click", () => step(-1));
byId("d-next").addEventListener("click", () => step(1));
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});
dialog.addEventListener("keydown", (event) => {
  if (event.target.closest("summary, .scroll") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});

// The theme is the system's until somebody turns it; nothing is stored.
const theme = byId("theme");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const now = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
function nameTheme() {
  const other = now() === "dark" ? "Light" : "Dark";
  theme.textContent = other;
  theme.setAttribute("aria-label", `${other} theme`);
}
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = now() === "dark" ? "light" : "dark";
  nameTheme();
});
dark.addEventListener("change", nameTheme);
theme.hidden = false;
nameTheme();

// Everything that is folded is printed.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("main details:not([open])")];
  folded.forEach((one) => (one.open = true));
});
window.addEventListener("afterprint", () => folded.forEach((one) => (one.open = false)));

const roofline = byId("roofline");
if (roofline && "IntersectionObserver" in window) {
  const watch = new IntersectionObserver(
    async (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      try {
        await draw(roofline, (await details()).roofline);
      } catch (error) {
        roofline.querySelector(".plot").replaceChildren(h("p", { class: "why" }, error.message));
      }
    },
    { rootMargin: "300px" },
  );
  watch.observe(roofline);
}

startFilters();
startArrows();
fromHash();
