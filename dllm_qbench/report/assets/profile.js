// The four kinds of chart of a cell: each returns a figure and the specification to draw in it, or null.
const UNTOUCHED = 80;

function layerOf(name) {
  const found = /\.(\d+)\./.exec(`${name}.`);
  return found ? found[1] : null;
}

// Where each layer starts, thinned to a dozen labels.
function layerTicks(modules) {
  const starts = [];
  let last = null;
  modules.forEach((name, position) => {
    const layer = layerOf(name);
    if (layer !== null && layer !== last) starts.push([position, layer]);
    last = layer ?? last;
  });
  const every = Math.ceil(starts.length / 12);
  return starts.filter((_, index) => index % every === 0);
}

function sqnrChart(template, modules, seen, stored, suspect, title, hint) {
  const rows = modules
    .map((module, position) => ({ position, module, seen: seen[position] ?? null, stored: stored?.[position] ?? null }))
    // Up here a module is as good as untouched, now and before: no news, and it would flatten all others.
    .filter((row) => Math.min(row.seen ?? UNTOUCHED, row.stored ?? row.seen ?? UNTOUCHED) < UNTOUCHED);
  if (!rows.length) return null;
  const marked = suspect === null || suspect === undefined ? [] : [{ position: suspect, label: modules[suspect] }];
  const spec = filled(template, { modules: rows, suspect: marked }, `${title} by module, in forward order, in dB.`);
  const ticks = layerTicks(modules);
  spec.params = [
    { name: "ticks", value: Object.fromEntries(ticks.map(([position, layer]) => [position, `layer ${layer}`])) },
    { name: "side", value: suspect > modules.length / 2 ? "right" : "left" },
  ];
  spec.encoding.x.axis.values = ticks.map(([position]) => position);
  spec.encoding.x.scale.domain = [0, modules.length - 1];
  const worst = rows.filter((row) => row.seen !== null).sort((a, b) => a.seen - b.seen)[0];
  const at = marked.length ? rows.find((row) => row.position === suspect) : null;
  const told = worst ? `Lowest: ${worst.module}, ${number(worst.seen)} dB.` : "";
  const sentence = at
    ? `Suspect: ${at.module}, ${number(at.seen)} dB; ${number(at.stored)} dB in the baseline. ${told}`
    : told;
  const keys = [key("line-1", "this run"), stored ? key("dash-2", "baseline") : null, marked.length ? key("rule-f", "suspect") : null];
  const figures = rows.map((row) => [row.module, row.seen, row.stored]);
  return { figure: figure(title, [h("span", null, hint), " ", keys.filter(Boolean)], sentence, ["module", "this run, dB", "baseline, dB"], figures), spec };
}

function maskChart(template, bins) {
  const rows = bins
    .filter((bin) => bin.log10_kl.every((value) => value !== null))
    .map((bin) => ({ ratio: bin.ratio, low: bin.log10_kl[0], middle: bin.log10_kl[1], high: bin.log10_kl[2] }));
  if (!rows.length) return null;
  const first = rows[0];
  const last = rows[rows.length - 1];
  const sentence =
    `Median log10 KL: ${number(first.middle, 2)} with ${percent(first.ratio)} of the tokens masked,` +
    ` ${number(last.middle, 2)} with ${percent(last.ratio)}.`;
  const title = "Divergence by mask ratio";
  const figures = rows.map((row) => [percent(row.ratio), row.middle, row.low, row.high]);
  return {
    figure: figure(
      title,
      [key("line-1", "median"), key("area-1", "quartiles")],
      sentence,
      ["masked", "median", "lower quartile", "upper quartile"],
      figures,
    ),
    spec: filled(template, { bins: rows }, `${title}. ${sentence}`),
  };
}

// Whole steps on the axis, a dozen of them at most.
function stepped(spec, steps) {
  const every = Math.ceil(steps / 12);
  spec.encoding.x.axis.values = Array.from({ length: Math.ceil(steps / every) }, (_, index) => 1 + index * every);
  return spec;
}

function trajectoryChart(template, trajectory) {
  if (!trajectory || !trajectory.flips.length) return null;
  const series = [["flips", trajectory.flips], ["diverged", trajectory.diverged]];
  const rows = series.flatMap(([name, shares]) => shares.map((share, index) => ({ step: index + 1, series: name, share })));
  const last = trajectory.diverged.at(-1);
  const sentence =
    `${percent(last)} of ${trajectory.items} sequences have left full precision's path by the last step;` +
    ` ${percent(trajectory.sequence_match)} end as full precision's do.`;
  const title = "Trajectory by denoising step";
  const figures = trajectory.flips.map((share, index) => [index + 1, percent(share, 1), percent(trajectory.diverged[index], 1)]);
  return {
    figure: figure(
      title,
      [key("line-1", "diverged by then"), key("line-2", "tokens committed otherwise")],
      sentence,
      ["step", "committed otherwise", "diverged by then"],
      figures,
    ),
    spec: stepped(filled(template, { steps: rows }, `${title}. ${sentence}`), trajectory.flips.length),
  };
}

function kindsChart(template, kinds) {
  const rows = kinds
    .filter((kind) => kind.items > 0)
    .map((kind) => ({
      kind: kind.kind,
      items: kind.items,
      reference: kind.reference / kind.items,
      quantized: kind.quantized / kind.items,
    }));
  if (!rows.length) return null;
  const worst = [...rows].sort((a, b) => b.reference - b.quantized - (a.reference - a.quantized))[0];
  const sentence = `Most lost: ${worst.kind}, ${percent(worst.reference)} → ${percent(worst.quantized)} of ${worst.items} items.`;
  const title = "Right answers by kind of item";
  const figures = rows.map((row) => [row.kind, row.items, percent(row.reference, 1), percent(row.quantized, 1)]);
  return {
    figure: figure(
      title,
      [key("ring-2", "full precision"), key("dot-1", "quantized")],
      sentence,
      ["kind", "items", "full precision", "quantized"],
      figures,
    ),
    spec: Object.assign(filled(template, { kinds: rows }, `${title}. ${sentence}`), { height: 26 * rows.length }),
  };
}
