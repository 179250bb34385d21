// A step’s draft tree as SVG: what came runs straight along the top, what was guessed and not used
// branches off below it.

const SVG = "http://www.w3.org/2000/svg";
const ROW = 40, GAP = 18, HEIGHT = 30, CHAR = 7.3, MAX_CHARS = 12;
const SMALLEST = 0.85; // of its size; a wider tree is scrolled

// `name` says whose tree it is to those who cannot see it.
export function draw(canvas, { tree, own }, name) {
  canvas.replaceChildren();
  if (!tree) return;
  const nodes = layout(readable(tree, own));
  const width = Math.max(...nodes.map((node) => node.x + node.width)) + 2;
  const height = Math.max(...nodes.map((node) => node.row)) * ROW + HEIGHT + 4;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.setAttribute("aria-label", described(tree, name));
  svg.style.minWidth = `${SMALLEST * width}px`;
  svg.append(...nodes.filter((node) => node.parent).map(edge), ...nodes.map(box));
  canvas.append(svg);
}

// Nodes as objects, with the token that the model drew itself as one more.
function readable(tree, own) {
  const nodes = [];
  const add = (text, parent, kind, share = "") => {
    const node = { label: visible(text), parent, kind, share, children: [] };
    nodes.push(node);
    if (kind === "lost") parent.children.push(node);
    else parent?.children.unshift(node);
  };
  add(tree.texts[0], null, "root");
  tree.texts.slice(1).forEach((text, before) => {
    const i = before + 1, kind = tree.accepted.includes(i) ? "came" : "lost";
    add(text, nodes[tree.parents[i]], kind, percent(tree.probabilities[i]));
  });
  if (own) add(own, nodes[tree.accepted.at(-1) ?? 0], "own");
  return nodes;
}

// A row for each leaf, a column for each depth, as wide as its widest token.
function layout(nodes) {
  const widths = [];
  let rows = 0;
  const place = (node, depth) => {
    Object.assign(node, { row: rows, depth });
    const chars = Math.max(node.label.length, node.share.length);
    widths[depth] = Math.max(widths[depth] ?? 0, chars * CHAR + 14);
    node.children.forEach((child, i) => {
      rows += i ? 1 : 0;
      place(child, depth + 1);
    });
  };
  place(nodes[0], 0);
  for (const node of nodes) {
    node.x = widths.slice(0, node.depth).reduce((sum, width) => sum + width + GAP, 2);
    node.width = widths[node.depth];
  }
  return nodes;
}

function edge({ parent, x, row, kind }) {
  const x0 = parent.x + parent.width, bend = (x0 + x) / 2;
  const [y0, y1] = [parent, { row }].map((node) => node.row * ROW + HEIGHT / 2 + 2);
  return make("path", { d: `M${x0} ${y0}C${bend} ${y0} ${bend} ${y1} ${x} ${y1}`, class: `edge ${kind}` });
}

function box({ label, share, kind, x, row, width }) {
  const group = make("g", { class: `node ${kind}`, transform: `translate(${x} ${row * ROW + 2})` });
  group.append(make("rect", { width, height: HEIGHT, rx: 6 }));
  group.append(make("text", { x: width / 2, y: share ? 14 : 19 }, label));
  group.append(make("text", { x: width / 2, y: 26, class: "share" }, share));
  return group;
}

function described({ texts, accepted }, name) {
  const came = accepted.map((node) => texts[node]).join("");
  return `${name}: ${texts.length - 1} tokens guessed, ${accepted.length} kept${came && `: ${came}`}.`;
}

// Spaces and line ends as signs, so that every token can be seen.
function visible(text) {
  const signs = { " ": "·", "\n": "⏎", "\t": "⇥" };
  const shown = text.replace(/ {3,}/g, (run) => `·${run.length}·`).replace(/\s/g, (c) => signs[c] ?? c);
  return shown.length > MAX_CHARS ? `${shown.slice(0, MAX_CHARS - 1)}…` : shown;
}

const percent = (share) => (share < 0.01 ? "<1%" : `${Math.round(100 * share)}%`);

function make(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(text);
  return element;
}
