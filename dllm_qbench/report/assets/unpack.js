// Elements are made, never parsed: a record's text reaches the document only as text.
const SVG = "http://www.w3.org/2000/svg";

function put(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(4)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);

const SIGNS = new Set(
  [...document.querySelectorAll(".signs symbol")].map((symbol) => symbol.id.slice(2)),
);
const signOf = (status) => (SIGNS.has(status) ? status : "unknown");
const sign = (status) =>
  s("svg", { class: `sign s-${signOf(status)}`, "aria-hidden": "true" }, s("use", { href: `#i-${signOf(status)}` }));

// A name may break after a dot; a recipe's, which has less room, after a low line too.
const broken = (name, where) => name.split(where).map((part, index) => (index ? [h("wbr"), part] : part));
const moduleName = (name) => h("code", { class: "module" }, broken(name, /(?<=\.)/));

function number(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}
const percent = (share, digits = 0) => (share === null || share === undefined ? "–" : `${number(100 * share, digits)} %`);
const interval = (ends) => (ends ? `[${number(ends[0])}, ${number(ends[1])}]` : "");

async function unpacked(id) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error(
      "This browser cannot unpack the cells' details (it has no DecompressionStream): any browser from 2023 on can." +
        " The verdict, the failing cells and the map above are complete without them.",
    );
  }
  const text = atob(byId(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function once(make) {
  let made = null;
  return () => (made ??= make());
}

const details = once(async () => JSON.parse(await unpacked("details")));
