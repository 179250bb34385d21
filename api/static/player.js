// The panel of the draft tree: it follows a running answer, and steps through a finished one.

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
  #answer; #view; #drawn; #timer = null;

  constructor() {
    draw(canvas, { tree: EXAMPLE, own: " table" }, "For example");
    slider.addEventListener("input", () => this.#halt());
    button.addEventListener("click", () => (this.#timer ? this.#halt() : this.#replay(0)));
  }

  // Follow another answer and its text.
  follow(answer, view) {
    this.#stop();
    this.#view?.mark(-1);
    [this.#answer, this.#view, this.#drawn] = [answer, view, -Infinity];
    slider.disabled = button.disabled = true;
    canvas.replaceChildren();
    title.textContent = "The draft tree of each step";
    label.textContent = "Step";
  }

  // Draw the newest step, not so often that nobody could see it.
  update() {
    const { steps } = this.#answer, now = performance.now();
    if (!steps.length || now - this.#drawn < (calm.matches ? CALM_MS : DRAW_MS)) return;
    this.#drawn = now;
    draw(canvas, steps.at(-1), `Step ${steps.length}`);
  }

  // The answer has ended: show the step with most to see.
  end() {
    const { steps } = this.#answer;
    const worth = steps.map(({ tree }) => (tree ? interest(tree) : 0));
    if (!worth.some(Boolean)) return;
    slider.max = steps.length - 1;
    slider.disabled = button.disabled = false;
    this.#go(worth.indexOf(Math.max(...worth)));
  }

  #go(index, replaying = false) {
    const { steps } = this.#answer;
    draw(canvas, steps[index], `Step ${index + 1}`);
    this.#view.mark(index, replaying);
    slider.value = index;
    label.textContent = `Step ${index + 1} of ${steps.length}`;
  }

  #replay(index) {
    button.textContent = "Stop replay";
    this.#go(index, true);
    const next = index + 1 < this.#answer.steps.length ? () => this.#replay(index + 1) : () => this.#stop();
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

// Some guesses that were kept, and some branches that were not.
function interest({ parents, accepted }) {
  const kept = [0, ...accepted];
  const branches = parents.filter((parent, i) => kept.includes(parent) && !kept.includes(i));
  return Math.min(accepted.length, 4) + Math.min(branches.length, 4);
}
