// The controls: what a person does becomes the next state, and the next state is drawn.

import * as chats from "./chats.js";
import { Conversation } from "./conversation.js";
import * as layer from "./layer.js";
import { Player } from "./player.js";
import * as race from "./race.js";
import * as states from "./state.js";
import * as store from "./store.js";
import { ask, bearer } from "./stream.js";
import { watch } from "./tiles.js";
import { ending, headline, summary, trouble, verdict } from "./words.js";

const find = (id) => document.getElementById(id);
const put = (id, text) => find(id).textContent !== text && (find(id).textContent = text);
const prompt = find("prompt");
const fields = { system: "value", temperature: "valueAsNumber", top_p: "valueAsNumber", length: "valueAsNumber", drafts: "value", plain: "checked", layer: "checked" };
const newest = { controller: null, id: 0 };
let state = states.fresh(...store.load()), frame = null;

const conversation = new Conversation({
  parse,
  edit(index) {
    go(states.edit(state, index, prompt.value));
    type(states.chatOf(state).messages[index].text);
  },
  regenerate: () => answer(states.regenerate(state, nextId())),
  resume: () => answer(states.resume(state, nextId())),
});
const player = new Player();

// The next state, and what this browser keeps of it.
function go(next) {
  const before = state;
  show(next);
  for (const { id } of before.chats) if (!states.chatOf(state, id)) store.drop(id);
  for (const chat of state.chats) if (chat.id !== state.run?.chat && changed(before, chat)) store.keep(chat);
  if (before.settings !== state.settings) store.keepSettings(state.settings);
}

// Whoever answers for a run that is no more is told to stop.
function show(next) {
  if (state.run && state.run.id !== next.run?.id) newest.controller?.abort();
  state = next;
  frame ??= requestAnimationFrame(draw);
}

const changed = (before, chat) => states.chatOf(before, chat.id) !== chat || before.run?.chat === chat.id;
const nextId = () => (newest.id = Math.max(Date.now(), newest.id + 1));

async function answer(next) {
  if (next === state || !find("composer").reportValidity()) return;
  go(next);
  const { id } = state.run, { current } = state;
  prompt.focus();
  put("status", "Answering.");
  await follow(() => states.requested(state, id), id);
  const message = states.chatOf(state, current)?.messages.at(-1);
  if (message && state.current === current) put("status", [message.text, ending(message, state.service), summary(message)].filter(Boolean).join(" \n"));
}

async function startRace() {
  if (state.run) return go(states.stop(state));
  if (!find("composer").reportValidity()) return;
  const id = nextId();
  go(states.race(state, prompt.value, id, id));
  put("status", "Racing: first without guesses, then with them.");
  const first = await follow(() => states.raced(state), id, false);
  if (first) {
    go(states.secondLane(state, id));
    await follow(() => states.raced(state), id);
  }
  if (state.race?.done) put("status", verdict(state.race.lanes, state.service));
}

// Have the run answered to its end, and say whether it got there; `ends`: the run is over then.
async function follow(request, id, ends = true) {
  const controller = (newest.controller = new AbortController());
  try {
    const pieces = ask(request(), { key: find("key").value, signal: controller.signal, context: state.service?.context_size });
    for await (const piece of pieces) go(states.received(state, id, piece));
    if (ends) go(states.ended(state, id));
    return true;
  } catch (error) {
    if (error.name !== "AbortError") go(states.ended(state, id, explained(error)));
    return false;
  }
}

function explained(error) {
  if (error.status === 401) {
    showSettings(true);
    find("key").focus();
  }
  return error.status ? error.message : "The connection to the server broke.";
}

async function parse(text) {
  const headers = { "content-type": "application/json", ...bearer(find("key").value) };
  const response = await fetch("page/markdown", { method: "POST", headers, body: JSON.stringify({ text }) }).catch(() => null);
  return response?.ok ? (await response.json()).nodes : null;
}

// --- drawing -------------------------------------------------------------------------------------

function draw() {
  frame = null;
  const { run, service, settings, editing, race: raceState } = state;
  conversation.draw(state);
  chats.draw(state, { open: (id) => (go(states.open(state, id)), closed("chats")), remove });
  race.draw(state);
  player.draw(state.trail, raceState && (run?.lane !== undefined || !conversation.last) ? race.lane(1) : conversation.last, Boolean(run));
  layer.show(settings.layer);
  document.body.classList.toggle("busy", Boolean(run));
  document.body.classList.toggle("ready", Boolean(service?.ready));
  find("send").hidden = Boolean(run);
  find("stop").hidden = !run;
  put("race", run?.lane === undefined ? "Start the race" : "Stop the race");
  find("race").disabled = run && run.lane === undefined;
  find("editing").hidden = !editing;
  drawService(service, settings);
}

function drawService(service, { length }) {
  const plain = states.isPlain(state);
  put("model-name", service ? (service.name || service.model || "no model yet") : "connecting…");
  put("how", headline(service));
  put("trouble-text", trouble(service));
  find("trouble").hidden = service === undefined || !trouble(service);
  put("reason", service?.reason ?? "");
  find("why").hidden = !service?.reason;
  put("warnings", service?.warnings?.join(" ") ?? "");
  find("length").placeholder = `${states.roomFor(service)}`;
  find("length").max = service?.context_size ?? "";
  find("length-note").textContent = length ? "" : `Empty: ${states.roomFor(service)}, so that it fits the model.`;
  find("plain").disabled = state.canChat === false;
  find("plain").checked = plain;
  prompt.placeholder = plain ? "Write the beginning of a text" : "Ask anything";
  put("prompt-label", plain ? "Text to continue" : "Your message");
  put("title", plain ? "Which text shall go on?" : "What would you like to know?");
  find("examples").hidden = plain;
}

// --- what a person does --------------------------------------------------------------------------

function submit(event) {
  event.preventDefault();
  if (state.run || !prompt.value.trim()) return;
  const next = states.send(state, prompt.value, nextId());
  type("");
  answer(next);
}

function type(text) {
  prompt.value = text;
  prompt.focus();
}

function cancelEdit() {
  type(state.editing.typed);
  go(states.cancelEdit(state));
}

function remove(id, title) {
  if (!confirm(`Delete the chat “${title}” from this browser?`)) return;
  go(states.remove(state, id));
  find("new-chat").focus();
}

function closed(id) {
  const drawer = find(id);
  if (drawer.matches(":popover-open")) drawer.hidePopover();
  if (!matchMedia("(pointer: coarse)").matches) prompt.focus();
}

function showSettings(wanted) {
  find("settings").hidden = !wanted;
  find("settings-button").setAttribute("aria-expanded", wanted);
  show(state); // the chat's end moves now, and not under a click later
}

function configure() {
  const settings = Object.fromEntries(Object.entries(fields).map(([name, kind]) => [name, find(name)[kind]]));
  if (find("plain").disabled) delete settings.plain;
  if (find("composer").checkValidity()) go(states.configure(state, { ...settings, length: settings.length || null }));
}

function onKey(event) {
  if (event.key !== "Escape" || document.querySelector(":popover-open")) return;
  if (state.run) go(states.stop(state));
  else if (state.editing) cancelEdit();
  else showSettings(false);
}

find("composer").addEventListener("submit", submit);
find("settings").addEventListener("invalid", () => showSettings(true), true); // the browser then says there what is wrong
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find("composer").requestSubmit();
});
if (!CSS.supports("field-sizing", "content")) prompt.addEventListener("input", () => (prompt.rows = Math.min(prompt.value.split("\n").length, 10)));
document.addEventListener("keydown", onKey);
for (const id of ["settings", "layer"]) find(id).addEventListener("change", configure);
find("settings-button").addEventListener("click", () => showSettings(find("settings").hidden));
find("stop").addEventListener("click", () => {
  go(states.stop(state));
  put("status", "Stopped.");
  prompt.focus();
});
find("new-chat").addEventListener("click", () => {
  go(states.begin(state));
  closed("chats");
  prompt.focus();
});
find("cancel-edit").addEventListener("click", cancelEdit);
find("race").addEventListener("click", startRace);
for (const example of find("examples").querySelectorAll("button"))
  example.addEventListener("click", () => (type(example.textContent), find("composer").requestSubmit()));
for (const leaves of ["beforeunload", "pagehide"]) addEventListener(leaves, () => go(states.stop(state))); // before the browser breaks the answer off
matchMedia("(min-width: 70rem)").addEventListener("change", () => document.querySelectorAll(":popover-open").forEach((each) => each.hidePopover()));

for (const [name, kind] of Object.entries(fields)) if (state.settings[name] !== null) find(name)[kind] = state.settings[name];
find("layer-label").hidden = !layer.supported;
find("curl").prepend(`curl ${location.origin}`);
draw();
watch((service) => go(states.served(state, service)));
store.watch((id, chat) => show(states.synced(state, id, chat, nextId())));
