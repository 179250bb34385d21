// The tree of each step: it follows a running answer, and steps through a finished one.

import { point } from "./layer.js";
import { draw } from "./tree.js";

const DRAW_MS = 120, CALM_MS = 1000, REPLAY_MS = 450;
const EXAMPLE = {
  texts: [" on", " the", " a", " kitchen", " floor", " small", " floor"],
  parents: [-1, 0, 0, 1, 1, 2, 3],
  probabilities: [1, 0.82, 0.11, 0.46, 0.21, 0.04, 0.03],
  accepted: [1, 3],
};
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const ids = ["canvas", "tree-title", "step", "step-label", "replay"];
const [canvas, title, slider, label, button] = ids.map((id) => document.getElementById(id));

export class Player {
  #trail = []; #text = null; #drawn = -Infinity; #runs = false; #timer = null;

  constructor() {
    draw(canvas, { tree: EXAMPLE, own: " table" }, "For example");
    slider.addEventListener("input", () => this.#halt());
    button.addEventListener("click", () => (this.#timer ? this.#halt() : this.#replay(0)));
  }

  // The steps of the latest answer, and the element that holds its text.
  draw(trail, text, runs) {
    if (trail === this.#trail && runs === this.#runs) return;
    const starts = runs && !this.#runs;
    const ended = this.#runs && !runs;
    [this.#trail, this.#text, this.#runs] = [trail, text, runs];
    if (starts || !trail.length) this.#clear();
    if (trail.length) title.textContent = "How the answer was written";
    if (runs) this.#follow();
    else if (ended || trail.length) this.#end();
  }

  #clear() {
    this.#stop();
    point(null);
    slider.disabled = button.disabled = true;
    label.textContent = "Step";
    this.#drawn = -Infinity;
    if (this.#runs) canvas.replaceChildren();
  }

  // Draw the newest step, not so often that nobody could see it.
  #follow() {
    const now = performance.now();
    if (!this.#trail.length || now - this.#drawn < (calm.matches ? CALM_MS : DRAW_MS)) return;
    this.#drawn = now;
    draw(canvas, this.#trail.at(-1), `Step ${this.#trail.length}`);
  }

  // The answer has ended: show the step with most to see.
  #end() {
    const worth = this.#trail.map(({ tree }) => (tree ? interest(tree) : 0));
    if (!worth.some(Boolean)) return;
    slider.max = this.#trail.length - 1;
    slider.disabled = button.disabled = false;
    this.#go(worth.indexOf(Math.max(...worth)), false);
  }

  #go(index, points = true) {
    const step = this.#trail[index];
    draw(canvas, step, `Step ${index + 1}`);
    const range = points ? point(this.#text, step.from, step.to) : null;
    range?.startContainer.parentElement.scrollIntoView({ block: "nearest" });
    slider.value = index;
    label.textContent = `Step ${index + 1} of ${this.#trail.length}`;
  }

  #replay(index) {
    button.textContent = "Stop replay";
    this.#go(index);
    const next = index + 1 < this.#trail.length ? () => this.#replay(index + 1) : () => this.#stop();
    this.#timer = setTimeout(next, REPLAY_MS);
  }

  #halt() {
    this.#stop();
    this.#go(slider.valueAsNumber);
  }

  #stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
    button.textContent = "Replay slowly";
  }
}

// Some guesses that were kept, before all, and some branches that were not.
function interest({ parents, accepted }) {
  const kept = [0, ...accepted];
  const branches = parents.filter((parent, i) => kept.includes(parent) && !kept.includes(i));
  return (accepted.length && 4 + Math.min(accepted.length, 4)) + Math.min(branches.length, 4);
}
