// An answer as it grows: its steps, which part of each was drafted, and how fast they came.

export class Answer {
  steps = [];
  tokens = 0;
  drafted = 0;
  text = "";
  #first = null;
  #last = null;

  add({ text, ids, flags, trees, at }) {
    if (!text && !ids.length) return;
    this.text += text;
    this.tokens += ids.length;
    this.drafted += flags.filter(Boolean).length;
    this.#last = { at, tokens: this.tokens };
    this.#first ??= this.#last;
    // Text is held back until a character is whole: the steps before had none to show.
    for (const tree of trees.slice(0, -1)) this.steps.push({ draft: "", own: "", tree });
    const tree = trees.at(-1) ?? null;
    const split = trees.length === 1 ? draftLength(text, tree) : null;
    const length = split ?? (flags.some(Boolean) ? text.length : 0);
    this.steps.push({ draft: text.slice(0, length), own: text.slice(length), tree });
  }

  get perStep() {
    return this.tokens / Math.max(this.steps.length, 1);
  }

  // Tokens a second behind the first step; 0 while there is nothing to divide by.
  get rate() {
    const ms = this.steps.length > 1 ? this.#last.at - this.#first.at : 0;
    return ms > 0 ? (1000 * (this.tokens - this.#first.tokens)) / ms : 0;
  }

  get summary() {
    if (!this.tokens) return "";
    const speed = this.rate ? `, ${shortly(this.rate)} tokens/s` : "";
    const steps = `${this.tokens} tokens in ${this.steps.length} steps, ${this.perStep.toFixed(2)} a step`;
    return `${steps}${speed}; ${this.drafted} were guessed ahead.`;
  }
}

export const shortly = (rate) => rate.toFixed(rate && rate < 10 ? 1 : 0);

// Characters of a step's text that its accepted drafts make up; null where that cannot be told.
function draftLength(text, tree) {
  const draft = tree.accepted.map((node) => tree.texts[node]).join("");
  const shown = [draft, draft.trimStart()].find((each) => text.startsWith(each));
  return shown === undefined ? null : shown.length;
}
