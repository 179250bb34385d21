// The text of an answer, a span a step. Model output only ever becomes text nodes.

export class TextView {
  #spans = [];

  constructor(element, prompt = "") {
    this.element = element;
    this.box = element.closest(".text"); // a chat's answers share one
    element.replaceChildren(make("span", "prompt", prompt));
  }

  show(steps) {
    const { scrollHeight, scrollTop, clientHeight } = this.box;
    for (const step of steps.slice(this.#spans.length)) {
      const span = make("span", "step", step.own);
      if (step.draft) span.prepend(make("mark", "", step.draft));
      this.element.append(span);
      this.#spans.push(span);
    }
    if (scrollHeight - scrollTop - clientHeight < 40) this.box.scrollTop = this.box.scrollHeight;
  }

  // Point at one step, -1: none. While replaying, the steps behind it are not there yet.
  mark(index, replaying = false) {
    this.#spans.forEach((span, i) => {
      span.classList.toggle("current", i === index);
      span.classList.toggle("future", replaying && i > index);
    });
    if (!replaying) return;
    const top = this.#spans[index].offsetTop - this.box.offsetTop;
    const { scrollTop, clientHeight } = this.box;
    this.box.scrollTop = Math.min(top - 12, Math.max(scrollTop, top + 60 - clientHeight));
  }
}

export function make(name, className = "", text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.append(text);
  return element;
}
