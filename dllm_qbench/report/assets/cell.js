// The view of one cell.
function bandDrawing(cell) {
  const bar = cell.bar;
  if (!bar) return null;
  const at = (value) => `${value}%`;
  return s(
    "svg",
    { class: "bar", role: "img", "aria-label": `drop ${number(cell.drop)} % ${interval(cell.interval)}, band ${cell.band || "none"}` },
    s("line", { class: "axis", x1: "0", x2: "100%", y1: 13, y2: 13 }),
    bar.allowed && s("rect", { class: "allowed", x: at(bar.allowed[0]), width: at(bar.allowed[1] - bar.allowed[0]), y: 5, height: 16, rx: 3 }),
    s("line", { class: "zero", x1: at(bar.zero), x2: at(bar.zero), y1: 3, y2: 23 }),
    bar.interval && s("line", { class: "interval", x1: at(bar.interval[0]), x2: at(bar.interval[1]), y1: 13, y2: 13 }),
    s("circle", { class: "drop", cx: at(bar.drop), cy: 13, r: 4.5 }),
    bar.limits.map(([where, label]) => s("text", { x: at(where), y: 34, "text-anchor": "middle" }, label)),
  );
}

const fact = (name, ...value) => h("div", null, h("dt", null, name), h("dd", null, value));

function facts(cell) {
  const fidelity = cell.fidelity || {};
  const against = cell.discordant.against_baseline;
  const given = (name, digits, unit) =>
    fidelity[name] === null || fidelity[name] === undefined ? null : `${number(fidelity[name], digits)}${unit}`;
  const shown = [
    ["logit SQNR", given("logit_sqnr", 1, " dB")],
    ["NLL of the true tokens", given("nll_difference", 4, " nats more")],
    ["same top token", fidelity.agreement === undefined ? null : percent(fidelity.agreement, 1)],
  ];
  return h(
    "section",
    { class: "facts" },
    h("h3", null, "Drop and band"),
    cell.drop === null
      ? h("p", { class: "why" }, "No accuracy was measured.")
      : h("p", { class: "big" }, h("b", null, number(cell.drop)), " % ", h("span", null, interval(cell.interval))),
    bandDrawing(cell),
    h(
      "dl",
      null,
      fact("band", cell.band || "none"),
      cell.reference === null ? null : fact("accuracy", `${number(cell.reference)} → ${number(cell.quantized)} %`),
      fact("items", String(cell.items)),
      cell.items ? fact("lost, gained", `${cell.discordant.lost}, ${cell.discordant.gained}`) : null,
      against ? fact("against the baseline's answers", `${against.lost}, ${against.gained}`) : null,
      shown.filter(([, text]) => text !== null).map(([name, text]) => fact(name, text)),
    ),
  );
}

function contributor(one) {
  if (typeof one === "string") return h("li", null, one);
  const moved = [`${number(one.seen)} dB, ${number(one.stored)} in the baseline`];
  if (typeof one.share === "number") moved.push(`${percent(one.share)} of the change`);
  return h("li", null, moduleName(String(one.module)), ` ${moved.join("; ")}`);
}

function broke(cell) {
  const place = cell.place;
  const parts = [h("h3", null, place?.first ? "What broke first" : "What was found")];
  if (place?.first) parts.push(h("p", { class: "broke" }, moduleName(place.first)));
  if (cell.error) parts.push(h("p", { class: "why" }, cell.error));
  if (place?.why) parts.push(h("p", { class: "why" }, place.why));
  if (cell.symptom) parts.push(h("p", { class: "why" }, h("b", null, "Looks like "), cell.symptom));
  if (cell.text) parts.push(h("p", { class: "why" }, cell.text));
  if (place?.contributors?.length > 1) {
    parts.push(h("h4", null, "Most of the change comes from"), h("ul", { class: "sources" }, place.contributors.map(contributor)));
  }
  const found = cell.findings.map((one) => h("li", { class: `t-${signOf(one.status)}` }, sign(one.status), h("span", null, one.text)));
  found.push(...cell.audit_findings.map((text) => h("li", { class: "t-degraded" }, sign("degraded"), h("span", null, text))));
  if (found.length) parts.push(h("h4", null, "Because"), h("ul", { class: "found" }, found));
  return h("section", { class: `broken${cell.fails ? " bad" : ""}` }, parts);
}

function answers(cell, items) {
  const discordant = cell.discordant;
  if (!discordant.lost && !discordant.gained) return null;
  const against = discordant.against_baseline;
  const one = (item) => {
    const told = items[cell.task]?.[item.item];
    const lost = item.reference_correct;
    const answer = (name, text, correct) =>
      h("div", null, h("dt", null, name), h("dd", null, sign(correct ? "equivalent" : "degraded"), h("span", { class: "visually-hidden" }, correct ? "right: " : "wrong: "), h("code", null, text === "" ? "(empty)" : text)));
    return h(
      "li",
      null,
      h("p", null, h("b", { class: lost ? "t-degraded" : "t-equivalent" }, lost ? "lost" : "gained"), " ", h("span", { class: "of" }, item.item, item.kind ? ` · ${item.kind}` : "")),
      told ? h("pre", null, told.prompt) : null,
      h(
        "dl",
        null,
        told ? h("div", null, h("dt", null, "expected"), h("dd", null, h("code", null, told.expected))) : null,
        answer("full precision", item.reference, item.reference_correct),
        answer("quantized", item.quantized, item.quantized_correct),
      ),
    );
  };
  const shown = discordant.shown.length;
  return h(
    "section",
    null,
    h("h3", null, "Answers that differ in being right"),
    h(
      "p",
      { class: "sentence" },
      `${discordant.lost} lost, ${discordant.gained} gained against full precision`,
      against ? `; ${against.lost} lost, ${against.gained} gained against the baseline's own answers` : "",
      shown < discordant.lost + discordant.gained ? `. The first ${shown} are shown.` : ".",
    ),
    h("ol", { class: "answers" }, discordant.shown.map(one)),
  );
}

const pairs = (title, rows) =>
  rows.length
    ? h("section", null, h("h3", null, title), h("table", { class: "plain pairs" }, h("tbody", null, rows.map(([name, value]) => h("tr", null, h("th", { scope: "row" }, broken(name, /(?<=[._])/)), h("td", null, value))))))
    : null;

function chartsOf(cell, data) {
  const templates = data.charts;
  const modules = data.profiles[cell.model] || [];
  const layers = cell.layers;
  const made = [
    sqnrChart(templates.sqnr, modules, layers.local, layers.local_baseline, layers.suspect, "Own error of each module", "fed with full precision's inputs"),
    sqnrChart(templates.sqnr, modules, layers.sqnr, layers.baseline, layers.suspect, "Accumulated error", "everything before it quantized too"),
    maskChart(templates.mask_ratio, cell.mask_ratio),
    trajectoryChart(templates.trajectory, cell.trajectory),
    kindsChart(templates.kinds, cell.kinds),
  ];
  made.slice(0, 2).forEach((one) => one?.figure.classList.add("wide"));
  return made.filter(Boolean);
}

function about(cell, data) {
  const charts = chartsOf(cell, data);
  const versions = cell.versions === null ? [] : data.environments[cell.versions] || [];
  const audits = cell.audits.length ? [["audits", cell.audits.join(", ")]] : [];
  const seconds = cell.seconds === null ? [] : [["seconds", number(cell.seconds)]];
  const parts = [
    h("div", { class: "first-row" }, broke(cell), facts(cell)),
    charts.length ? h("section", null, h("h3", null, "Inside the model"), h("div", { class: "charts" }, charts.map((one) => one.figure))) : null,
    answers(cell, data.items),
    h(
      "div",
      { class: "tables" },
      pairs("Recipe", cell.recipe),
      pairs("Provenance", [...cell.provenance, ...audits, ...seconds]),
      pairs("Measured with", versions),
    ),
    h("details", { class: "full" }, h("summary", null, "Full message"), h("pre", null, cell.message)),
  ];
  return { parts: parts.filter(Boolean), charts };
}
