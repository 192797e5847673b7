// Charts. The library is unpacked and run when the first of them is drawn, as a script whose hash the policy knows.
const library = once(async () => {
  const script = document.createElement("script");
  script.textContent = await unpacked("library");
  document.head.append(script);
  if (!window.vegaEmbed) throw new Error("The chart library did not start.");
  return window.vegaEmbed;
});

// The library's own tooltip brings a style element and stays below an open dialog: this one does neither.
function tooltip(host) {
  const box = h("div", { class: "tip", role: "presentation", hidden: true });
  host.append(box);
  return (_handler, event, _item, value) => {
    if (!value) {
      box.hidden = true;
      return;
    }
    box.replaceChildren(
      ...Object.entries(value).map(([name, text]) => h("p", null, h("span", null, name), " ", h("b", null, String(text)))),
    );
    box.hidden = false;
    const at = host.getBoundingClientRect();
    const left = Math.min(event.clientX - at.left + 12, at.width - box.offsetWidth - 4);
    box.style.left = `${Math.max(0, left)}px`;
    box.style.top = `${event.clientY - at.top + 14}px`;
  };
}

async function draw(figure, spec) {
  const embed = await library();
  const plot = figure.querySelector(".plot");
  if (!plot.isConnected) return null;
  const view = await embed(plot, spec, {
    actions: false,
    ast: true,
    defaultStyle: false,
    renderer: "svg",
    tooltip: tooltip(figure),
  });
  plot.classList.add("drawn");
  return view;
}

// A figure with its key and, for those who do not see it, a table of what it shows.
function figure(title, key, sentence, head, rows) {
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", null, h("b", null, title), " ", h("span", { class: "keys" }, key)),
    h("div", { class: "plot" }),
    h("p", { class: "sentence" }, sentence),
    h("details", { class: "table" }, h("summary", null, "Figures"), table(head, rows, title)),
  );
}

function table(head, rows, label) {
  const cellOf = (value, index) => {
    const text = typeof value === "number" ? number(value, Number.isInteger(value) ? 0 : 2) : value ?? "–";
    return index ? h("td", { class: "n" }, text) : h("th", { scope: "row" }, text);
  };
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}: figures` },
    h(
      "table",
      { class: "plain" },
      h("thead", null, h("tr", null, head.map((name, index) => h("th", { scope: "col", class: index ? "n" : null }, name)))),
      h("tbody", null, rows.map((row) => h("tr", null, row.map(cellOf)))),
    ),
  );
}

const key = (shape, text) => h("span", { class: "one-key" }, h("span", { class: `key ${shape}` }), ` ${text}`);

function filled(template, datasets, description) {
  const spec = structuredClone(template);
  Object.assign(spec.datasets, datasets);
  spec.description = description;
  return spec;
}
