// Colours over texts that change nothing about them: what was guessed ahead, and the step on show.
// A text node that says where it begins in its answer (`at`) can be coloured.

const names = ["guessed", "step"];
export const supported = Boolean(globalThis.CSS?.highlights);
const [guessed, step] = names.map(() => (supported ? new Highlight() : new Set()));
const painted = new Map(); // element to its ranges
let on = true;

if (supported) CSS.highlights.set("step", step);

export function show(wanted) {
  on = wanted && supported;
  if (supported) on ? CSS.highlights.set("guessed", guessed) : CSS.highlights.delete("guessed");
}

export function paint(element, marks) {
  forget(element);
  const ranges = rangesOf(element, marks);
  for (const range of ranges) guessed.add(range);
  painted.set(element, ranges);
}

export function forget(element) {
  for (const range of painted.get(element) ?? []) guessed.delete(range);
  painted.delete(element);
}

// The step from..to of this text; none where there is no element.
export function point(element, from, to) {
  step.clear();
  if (element) for (const range of rangesOf(element, [[from, to]])) step.add(range);
  return step.values().next().value ?? null;
}

function rangesOf(element, marks) {
  const ranges = [], walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  let first = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.at === undefined || !node.length) continue;
    const end = node.at + node.length;
    while (first < marks.length && marks[first][1] <= node.at) first += 1;
    for (let i = first; i < marks.length && marks[i][0] < end; i += 1) {
      const [from, to] = marks[i];
      ranges.push(new StaticRange({
        startContainer: node, startOffset: Math.max(from - node.at, 0), endContainer: node, endOffset: Math.min(to - node.at, node.length),
      }));
    }
  }
  return ranges;
}
