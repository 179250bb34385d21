// An answer as Markdown. The gateway reads it, now and then while it grows; what has come since stands
// behind it as it is. Of what the gateway says only known elements are made: markup is text.

import { button, copy, make, scrolled } from "./make.js";

const CALM_MS = 300, SHARE = 20, MOST_KNOWN = 200; // reading may take a twentieth of the time
const TAGS = new Set("p h1 h2 h3 h4 h5 h6 ul ol li blockquote table thead tbody tr th td em strong s code br hr a pre".split(" "));
const LINK = /^(https?:\/\/|mailto:)/i;
const known = new Map(); // Markdown that was read before, such as that of a chat opened again

export class Prose {
  #read = ""; #busy = false; #due = 0; #text = ""; #tail = new Text(""); #changed;

  // `parse`: Markdown to nodes, null where that failed. `changed` is called behind each drawing.
  constructor(element, parse, changed) {
    Object.assign(this, { element, parse });
    this.#changed = changed;
    element.append(this.#tail);
  }

  show(text) {
    if (text === this.#text) return;
    this.#text = text;
    if (known.has(text)) this.#draw(text, known.get(text));
    else if (!text.startsWith(this.#read)) this.#draw("", []);
    this.#follow();
    this.#refresh();
  }

  #follow() {
    this.#tail.data = this.#text.slice(this.#read.length);
    this.#tail.at = this.#read.length;
    this.#changed();
  }

  async #refresh() {
    if (this.#busy || this.#text === this.#read || !this.#text.trim()) return;
    this.#busy = true;
    const late = this.#due - performance.now();
    if (late > 0) await new Promise((resolve) => setTimeout(resolve, late));
    const text = this.#text, began = performance.now();
    const nodes = this.element.isConnected ? await this.parse(text) : null;
    this.#due = performance.now() + Math.max(CALM_MS, SHARE * (performance.now() - began));
    this.#busy = false;
    if (!nodes) return;
    known.set(text, nodes);
    if (known.size > MOST_KNOWN) known.delete(known.keys().next().value);
    if (!this.#text.startsWith(text)) return this.#refresh();
    this.#draw(text, nodes);
    this.#follow();
    this.#refresh();
  }

  #draw(text, nodes) {
    const focused = document.activeElement, had = this.element.contains(focused) && !focused.matches("button");
    this.#read = text;
    this.element.replaceChildren(...nodes.map((node) => Object.assign(built(node), { dir: "auto" })));
    deepest(this.element).append(this.#tail);
    if (had) this.element.querySelector("[tabindex]")?.focus();
  }
}

// Where the text goes on: in the last paragraph, item or cell.
function deepest(element) {
  const last = element.lastElementChild;
  if (!last) return element;
  const inside = last.matches("p, li, ul, ol, blockquote, .code, pre, h1, h2, h3, h4, h5, h6");
  if (last.matches(".code")) return last.querySelector("code");
  return inside ? deepest(last) : element;
}

function built(node) {
  if (node.text !== undefined) return leaf(node);
  if (!TAGS.has(node.tag)) return new Text("");
  const children = node.children.map(built);
  if (node.tag === "pre") return code(node.language, children);
  const element = make(node.tag, "", ...children);
  if (node.tag === "table") return scrolled("table", "Table", element);
  if (node.tag === "a") link(element, node.href);
  if (node.start > 1) element.start = node.start;
  return element;
}

function leaf({ text, at, kind }) {
  const node = new Text(text);
  node.at = at;
  return kind ? make("span", `is-${kind}`, node) : node;
}

function link(element, href) {
  if (!LINK.test(href)) return;
  Object.assign(element, { href, target: "_blank", rel: "noopener noreferrer" });
}

function code(language, children) {
  const inner = make("code", "", ...children);
  const own = button("quiet", "Copy", () => copy(inner.textContent, own));
  own.setAttribute("aria-label", "Copy code");
  const head = make("div", "code-head", make("span", "", language || "code"), own);
  const box = scrolled("code-body", `Code${language ? `, ${language}` : ""}`, make("pre", "", inner));
  return make("div", "code", head, box);
}
