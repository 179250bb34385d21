// The two lanes of a race, and the word on it.

import { forget, paint } from "./layer.js";
import { summary, shortly, verdict } from "./words.js";

const find = (id) => document.getElementById(id);
const lanes = ["off", "on"].map((name) => find(`lane-${name}`));
let drawn = null;

export function draw({ race, run, service }) {
  if (race === drawn && !race) return;
  drawn = race;
  find("lanes").hidden = !race;
  if (!race) return;
  const most = Math.max(...race.lanes.map(({ rate }) => rate), 1);
  race.lanes.forEach((answer, i) => drawLane(lanes[i], answer, most));
  find("raced").textContent = race.asked;
  const going = run?.lane === undefined ? "" : ["First without guesses…", "Now with guesses…"][run.lane];
  find("verdict").textContent = race.done ? verdict(race.lanes, service) : race.problem || going;
}

function drawLane(lane, answer, most) {
  const [speed, bar, text, note] = ["b", "meter", ".text", ".note"].map((part) => lane.querySelector(part));
  speed.textContent = answer.rate ? shortly(answer.rate) : "–";
  bar.value = answer.rate / most;
  note.textContent = summary({ ...answer, rate: 0 });
  const follows = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
  if (!text.firstChild) text.append(new Text(""));
  text.firstChild.data = answer.text;
  text.firstChild.at = 0;
  if (answer.text) paint(text, answer.marks);
  else forget(text);
  if (follows) text.scrollTop = text.scrollHeight;
}

export const lane = (i) => lanes[i].querySelector(".text");
