// The same prompt without drafts and with those that pay, one after the other, and an honest word.

import { Answer, shortly } from "./answer.js";
import { TextView } from "./text.js";

const EVEN = 0.05; // a short run on a shared machine says no more than this
const FEW_TOKENS = 24;

export class Lane {
  answer = new Answer();

  constructor(name, prompt) {
    const lane = document.getElementById(`lane-${name}`);
    this.parts = [".speed b", "meter", ".note"].map((part) => lane.querySelector(part));
    this.view = new TextView(lane.querySelector(".text"), prompt);
    this.show(1);
  }

  // `most`: tokens/s at the full length of the bar.
  show(most) {
    const [speed, bar, note] = this.parts, { rate, summary } = this.answer;
    speed.textContent = rate ? shortly(rate) : "–";
    bar.value = rate / Math.max(most, 1);
    note.textContent = summary;
  }
}

export function verdict(off, on, heads) {
  if (Math.min(off.tokens, on.tokens) < FEW_TOKENS || !off.rate || !on.rate) {
    return `${on.tokens} tokens are too few to compare. Try again, or another prompt.`;
  }
  return `${speed(on.rate / off.rate, on, heads)} ${sameText(off.text, on.text)}`;
}

function speed(ratio, on, heads) {
  const times = `${ratio.toFixed(2)} times the speed`;
  const perStep = `${on.perStep.toFixed(2)} tokens a step instead of one`;
  if (!on.drafted) {
    const why = heads ? "drafts would not have paid on this machine" : "no Medusa heads are loaded";
    return `No gain here (${times}): ${why}, so the server decoded plainly. What differs is noise.`;
  }
  const more = ratio > on.perStep ? " That is more than steps explain: other work slowed the first run." : "";
  if (ratio > 1 + EVEN) return `With Medusa: ${times}, ${perStep}.${more}`;
  if (ratio > 1 - EVEN) return `Even (${times}): ${perStep}, and a step costs as much more.`;
  return `Medusa lost here: ${times}. A short run is noisy.`;
}

function sameText(a, b) {
  if (a === b) return "The two texts are identical.";
  let at = 0;
  while (a[at] === b[at]) at += 1;
  return `The texts part after ${at} characters, at a near tie; on CPUs EXACT=true rules that out.`;
}
