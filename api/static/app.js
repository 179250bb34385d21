// The controls: what is asked, what runs, and what is said about it.

import { Answer } from "./answer.js";
import { Player } from "./player.js";
import { Lane, verdict } from "./race.js";
import { ask } from "./stream.js";
import { TextView, make } from "./text.js";
import { watch } from "./tiles.js";

const find = (id) => document.getElementById(id);
const put = (id, text) => (find(id).textContent = text);
const tasks = document.querySelectorAll("input[name=task]");
const player = new Player();
let service = null, running = null, turns = []; // what is served, what can be aborted, the chat

// A request for the prompt as the controls have it.
function request(mode, seed) {
  const prompt = find("prompt").value;
  const messages = [...turns, { role: "user", content: prompt }];
  return {
    ...(find("chat").checked ? { messages } : { prompt }),
    max_tokens: find("max-tokens").valueAsNumber,
    temperature: find("temperature").valueAsNumber,
    seed,
    stream: true,
    speculation: { mode, show_tree: true },
  };
}

// Have a request answered; what has come is shown once a frame.
async function run(body, view, answer, show) {
  let frame = null;
  const draw = () => {
    frame = null;
    view.show(answer.steps);
    player.update();
    show();
  };
  const path = body.messages ? "v1/chat/completions" : "v1/completions";
  player.follow(answer, view);
  try {
    for await (const chunk of ask(path, body, { key: find("key").value, signal: running.signal })) {
      answer.add(chunk);
      frame ??= requestAnimationFrame(draw);
    }
  } finally {
    cancelAnimationFrame(frame);
    draw();
    player.end();
  }
}

async function generate() {
  look("single");
  const body = request(find("mode").value, Date.now());
  const view = body.messages ? nextTurn() : new TextView(find("transcript"), body.prompt);
  const answer = new Answer();
  try {
    await run(body, view, answer, () => put("summary", answer.summary));
  } finally {
    if (body.messages) endTurn(body.messages, answer.text, view);
  }
  put("status", `Done. ${answer.summary}`);
  if (answer.drafted || body.speculation.mode !== "auto") return;
  put("summary", `${answer.summary} To see trees, let drafts be made always.`);
}

async function race() {
  look("lanes");
  put("verdict", "One after the other, on the same prompt.");
  const seed = Date.now();
  const lead = find("chat").checked ? "" : find("prompt").value;
  const lanes = ["off", "on"].map((name) => new Lane(name, lead));
  const [off, on] = lanes.map((lane) => lane.answer);
  const show = () => lanes.forEach((lane) => lane.show(Math.max(off.rate, on.rate)));
  put("status", "Running without Medusa, then with it.");
  await run(request("off", seed), lanes[0].view, off, show);
  await run(request("auto", seed), lanes[1].view, on, show);
  for (const id of ["verdict", "status"]) put(id, verdict(off, on, service?.medusa_heads));
}

// Start or, by the same button, stop.
async function toggle(button, work) {
  if (running) return running.abort();
  if (!find("form").reportValidity()) return;
  const label = button.textContent;
  running = new AbortController();
  button.textContent = "Stop";
  find("problem").hidden = true;
  enable(button);
  try {
    await work();
  } catch (error) {
    report(error);
  } finally {
    running = null;
    button.textContent = label;
    enable();
  }
}

// While something runs, only its own button works.
function enable(own = null) {
  document.body.classList.toggle("busy", Boolean(own));
  for (const other of [find("generate"), find("race")]) other.disabled = own && other !== own;
  for (const task of tasks) task.disabled = own || (task === find("chat") && !service?.chat);
}

function report(error) {
  if (error.name === "AbortError") return put("status", "Stopped.");
  put("problem", error.status ? error.message : "The connection to the gateway broke. Try again.");
  find("problem").hidden = false;
  if (error.status === 401) find("key-label").hidden = false;
}

function nextTurn() {
  if (!turns.length) find("transcript").replaceChildren();
  const reply = make("div", "turn");
  find("transcript").append(make("div", "turn user", find("prompt").value), reply);
  reply.scrollIntoView({ block: "nearest" });
  return new TextView(reply);
}

// What was answered, if only in part, is part of the chat; what was refused may be sent again.
function endTurn(messages, content, { element }) {
  if (content) {
    turns = [...messages, { role: "assistant", content }];
    find("prompt").value = "";
  } else {
    element.previousSibling.remove();
    element.remove();
  }
  chooseTask();
}

function look(id) {
  for (const each of ["single", "lanes"]) find(each).hidden = each !== id;
  put("summary", "");
}

function chooseTask() {
  put("prompt-label", find("chat").checked ? "Your message" : "Text to continue");
  find("clear").hidden = !find("chat").checked || !turns.length;
}

// The service's word on itself, every few seconds; null when it cannot be reached.
function onService(now) {
  service = now;
  const heads = now?.medusa_heads ? `${now.medusa_heads} Medusa heads` : "no Medusa heads";
  put("model-name", now?.model ? `${now.model}, ${heads}` : "no model");
  document.body.classList.toggle("ready", now?.ready ?? false);
  const trouble = now ? `No model server is ready: ${now.reason}.` : "The gateway cannot be reached.";
  const words = now?.ready ? now.warnings.join(" ") : `${trouble} This page keeps looking.`;
  if (find("banner").textContent !== words) put("banner", words);
  find("banner").hidden = !words;
  find("max-tokens").max = now?.context_size ?? "";
  if (now?.chat === false) find("complete").checked = true;
  chooseTask();
  if (!running) enable();
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  toggle(find("generate"), generate);
});
find("race").addEventListener("click", () => toggle(find("race"), race));
find("clear").addEventListener("click", () => {
  turns = [];
  find("transcript").replaceChildren();
  chooseTask();
  find("prompt").focus();
});
find("form").addEventListener("change", chooseTask);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  const runs = event.key === "Enter" && (event.ctrlKey || event.metaKey);
  if (runs && !running) find("form").requestSubmit(find("generate"));
});
find("curl").prepend(`curl ${location.origin}`);
watch(onService);
