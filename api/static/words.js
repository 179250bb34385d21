// What the page says, in words for people who have never heard of any of this.

const EVEN = 0.05; // a short run on a shared machine says no more than this
const FEW_TOKENS = 24;

export const shortly = (rate) => rate.toFixed(rate && rate < 10 ? 1 : 0);
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// How guessing works here, by what is loaded.
export function headline(service) {
  if (!service?.model) return "";
  if (service.medusa_mode === "off") return "Guessing ahead is switched off on this server: it writes one token at a time.";
  const checked = "The model checks every guess and keeps only what it would have written itself.";
  if (service.medusa_heads) return `Small extra layers, the ${service.medusa_heads} Medusa heads, guess the next words. ${checked}`;
  return `Words are guessed from what already stands in the text (prompt lookup; no Medusa heads are loaded). ${checked}`;
}

export function summary({ tokens, guessed, rate }) {
  if (!tokens) return "";
  const speed = rate ? ` · ${shortly(rate)} a second` : "";
  return `${plural(tokens, "token")} · ${guessed} guessed ahead${speed}`;
}

// Why an answer ended, where that needs a word.
export function ending({ end, tokens, full, problem }, service) {
  if (end === "failed") return problem;
  if (end === "stopped") return "You stopped this answer.";
  if (end !== "length") return "";
  if (full) return `This chat fills all ${service?.context_size ?? ""} tokens that the model can hold. Start a new chat to go on.`;
  return `Stopped at ${plural(tokens, "token")}.`;
}

export const canContinue = ({ end, full, text }) => Boolean(text) && !full && ["length", "stopped", "failed"].includes(end);

// What an answer waits for; the second before its first word needs none.
export function waiting(service, { text }) {
  if (!service) return "Waiting: the server cannot be reached.";
  if (!service.ready) return "Waiting: no model server answers. The answer goes on when one is back; Stop gives up.";
  return text ? "" : "Reading your message…";
}

export function trouble(service) {
  if (!service) return "The server cannot be reached. This page keeps trying.";
  return service.ready ? "" : "No model server answers. This page keeps trying.";
}

// The word on a race, from its two answers.
export function verdict([off, on], service) {
  if (Math.min(off.tokens, on.tokens) < FEW_TOKENS || !off.rate || !on.rate)
    return `Too short to compare: ${plural(on.tokens, "token")}. Ask for something longer.`;
  return `${speed(on.rate / off.rate, on, service)} ${sameText(off.text, on.text)}`;
}

function speed(ratio, on, service) {
  const times = `${ratio.toFixed(2)} times as fast`;
  const how = service?.medusa_heads ? "Medusa’s guesses" : "repeating words of the text (prompt lookup)";
  if (!on.guessed) {
    const why = service?.medusa_heads ? "Guessing would not pay here" : "Nothing in the text could be guessed from, and no Medusa heads are loaded";
    return `No gain (${times}). ${why}, so both answers were written one token at a time; what differs is noise.`;
  }
  const perStep = `${(on.tokens / Math.max(on.steps, 1)).toFixed(2)} tokens a step instead of one`;
  const more = ratio > on.tokens / Math.max(on.steps, 1) ? " That is more than steps explain: other work slowed the first run." : "";
  if (ratio > 1 + EVEN) return `With ${how}: ${times}, ${perStep}.${more}`;
  if (ratio > 1 - EVEN) return `Even (${times}). With ${how}: ${perStep}, but each step takes as much longer.`;
  return `Slower with ${how}: ${times}. A short run is noisy.`;
}

function sameText(a, b) {
  if (a === b) return "Both texts are identical.";
  let at = 0;
  while (a[at] === b[at]) at += 1;
  return `The texts part after ${plural(at, "character")}, where two words were all but equally likely; on CPUs EXACT=true rules that out.`;
}
