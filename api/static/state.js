// The page's state and every change of it: pure functions from one plain state to the next. Who calls
// them draws the new one, and aborts a request whose run is gone. No DOM, no clock, no network here.

const SETTINGS = { system: "", temperature: 0.3, top_p: 1, length: null, drafts: "tree", plain: false, layer: true };
const TITLE_CHARS = 60;

export const fresh = (chats = [], settings = {}) => ({
  chats, // newest first: {id, title, kind: "chat" | "text", messages}
  current: null, // id of the chat on show; null: one that has not begun
  run: null, // what is being answered: {id, chat} or {id, lane}
  editing: null, // {index, typed}: which message is written anew, and what stood in the composer
  race: null, // {request, lanes: [reply, reply], done, problem}
  trail: [], // the steps of the latest answer, for the tree
  service: undefined, // what the service says of itself; null: not reached; undefined: not asked yet
  canChat: null, // whether its model has a chat template, as last heard
  settings: { ...SETTINGS, ...settings },
});

export const chatOf = (state, id = state.current) => state.chats.find((chat) => chat.id === id) ?? null;
// Whether what is written next is a text to continue: a chat stays what it began as.
export function isPlain(state) {
  const chat = chatOf(state);
  return chat ? chat.kind === "text" : state.settings.plain || state.canChat === false;
}

// What the server would be asked for the chat on show.
export function requested(state, seed) {
  const { kind, messages } = chatOf(state), { settings } = state;
  const said = messages.filter(({ text }) => text);
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  const turns = [];  // of two in turn, as many templates want it: an answer may have been stopped before its first word
  for (const { role, text } of said) turns.at(-1)?.role === role ? (turns.at(-1).content += `\n\n${text}`) : turns.push({ role, content: text });
  const asked = kind === "text" ? { prompt: said.map(({ text }) => text).join("") } : { messages: [...system, ...turns] };
  return { ...asked, ...sampled(state, seed), speculation: { mode: settings.drafts, show_tree: true } };
}

function sampled({ settings, service }, seed) {
  const { temperature, top_p, length } = settings;
  return { max_tokens: length ?? roomFor(service), temperature, top_p, seed, stream: true, stream_options: { include_usage: true } };
}

// Long enough for most answers, and half of the context stays for what is asked next.
export const roomFor = (service) => Math.min(1024, Math.floor((service?.context_size ?? 2048) / 2));

// --- answers -----------------------------------------------------------------------------------

const said = (text) => ({ role: "user", text });
const reply = () => ({ role: "assistant", text: "", marks: [], tokens: 0, steps: 0, guessed: 0, rate: 0, end: null, full: false, problem: "" });

export function send(state, text, id) {
  if (state.run || !text.trim()) return state;
  const kind = isPlain(state) ? "text" : "chat";
  const chat = chatOf(state) ?? { id, title: titled(text), kind, messages: [] };
  const kept = state.editing ? chat.messages.slice(0, state.editing.index) : chat.messages;
  const title = kept.length ? chat.title : titled(text);
  return begun(state, { ...chat, title, messages: [...kept, said(text), reply()] }, id);
}

// Another answer in place of the last one.
export function regenerate(state, id) {
  const chat = chatOf(state);
  if (state.run || !chat) return state;
  return begun(state, { ...chat, messages: [...chat.messages.slice(0, -1), reply()] }, id);
}

// The last answer goes on where it was cut.
export function resume(state, id) {
  const chat = chatOf(state), last = chat?.messages.at(-1);
  if (state.run || !last?.text || last.role !== "assistant") return state;
  const again = { ...last, end: null, problem: "", began: undefined };
  return begun(state, { ...chat, messages: [...chat.messages.slice(0, -1), again] }, id);
}

const begun = (state, chat, id) => ({
  ...replaced(state, chat), current: chat.id, run: { id, chat: chat.id }, editing: null, trail: [],
});

// What came: {text, steps, tokens, guessed, at, end, full}. A run that is no more changes nothing.
export function received(state, id, piece) {
  if (state.run?.id !== id) return state;
  const { lane } = state.run;
  const trail = lane === 0 ? [] : trailed(state, piece);
  if (lane === undefined) return { ...onLast(state, (message) => grown(message, piece)), trail };
  return { ...state, trail, race: { ...state.race, lanes: state.race.lanes.map((each, i) => (i === lane ? grown(each, piece) : each)) } };
}

export function ended(state, id, problem = "") {
  if (state.run?.id !== id) return state;
  if (state.run.lane !== undefined) return { ...state, run: null, race: { ...state.race, done: !problem, problem } };
  return { ...onLast(state, (message) => ({ ...message, end: problem ? "failed" : message.end ?? "stopped", problem })), run: null };
}

// By the person, or because the page shows something else now, or nothing any more.
export const stop = (state) => (state.run ? ended(state, state.run.id, state.run.lane === undefined ? "" : "Stopped.") : state);

function grown(message, { text, steps, tokens, guessed, at, end, full }) {
  const marks = [...message.marks];
  let from = message.text.length;
  for (const { draft, own } of steps) {
    if (draft) marks.push([from, from + draft.length]);
    from += draft.length + own.length;
  }
  const timed = tokens ? { began: message.began ?? { at, tokens: message.tokens + tokens } } : {};
  const total = message.tokens + tokens, began = timed.began ?? message.began;
  const ms = began ? at - began.at : 0;
  return {
    ...message, ...timed, marks, text: message.text + text, tokens: total, steps: message.steps + steps.length, end: end ?? message.end,
    guessed: message.guessed + guessed, full: full ?? message.full, rate: ms > 0 && tokens ? (1000 * (total - began.tokens)) / ms : message.rate,
  };
}

function trailed({ trail, run, race, chats }, { steps }) {
  let at = (run.lane === undefined ? chatOf({ chats }, run.chat).messages.at(-1) : race.lanes[run.lane]).text.length;
  const more = steps.map((step) => ({ ...step, from: at, to: (at += step.draft.length + step.own.length) }));
  return [...trail, ...more];
}

// --- the race: one request without guesses, then the same with them ------------------------------

export function race(state, typed, id, seed) {
  if (state.run) return state;
  const last = chatOf(state)?.messages.findLast(({ role }) => role === "user");
  const asked = typed.trim() ? typed : last?.text ?? "What is a black hole?";
  const request = { ...(isPlain(state) ? { prompt: asked } : { messages: [{ role: "user", content: asked }] }), ...sampled(state, seed) };
  return { ...state, run: { id, lane: 0 }, race: { asked, request, lanes: [reply(), reply()], done: false, problem: "" }, trail: [] };
}

export const secondLane = (state, id) => (state.run?.id === id ? { ...state, run: { id, lane: 1 } } : state);

export const raced = ({ race, run }) => ({ ...race.request, speculation: { mode: run.lane ? "auto" : "off", show_tree: true } });

// --- chats ---------------------------------------------------------------------------------------

export const open = (state, id) => ({ ...stop(state), current: id, editing: null, trail: [] });
export const begin = (state) => open(state, null);

export function remove(state, id) {
  const left = state.current === id ? begin(state) : state;
  return { ...left, chats: left.chats.filter((chat) => chat.id !== id) };
}

// What another page keeps of a chat, or null: it has dropped it. One that is answered here goes on as `other`.
export function synced(state, id, chat, other) {
  const own = chatOf(state, id), runs = state.run?.chat === id;
  if (!chat) return runs ? state : remove(state, id);
  if (!runs) return { ...replaced(state, chat), trail: state.current === id ? [] : state.trail };
  return { ...replaced(replaced(state, chat), { ...own, id: other }), current: other, run: { ...state.run, chat: other } };
}

export const edit = (state, index, typed) => (state.run || !chatOf(state) ? state : { ...state, editing: { index, typed: state.editing?.typed ?? typed } });
export const cancelEdit = (state) => ({ ...state, editing: null });

// A text is no chat: where the two would mix, a new one begins, and what is shown is what is sent.
export function configure(state, changes) {
  const next = { ...state, settings: { ...state.settings, ...changes } };
  return chatOf(state) && (changes.plain ?? isPlain(state)) !== isPlain(state) ? begin(next) : next;
}

export const served = (state, service) => ({ ...state, service, canChat: service?.chat ?? state.canChat });

const titled = (text) => {
  const line = text.trim().split("\n")[0];
  return line.length > TITLE_CHARS ? `${line.slice(0, TITLE_CHARS - 1).trimEnd()}…` : line;
};

const replaced = (state, chat) => ({ ...state, chats: [chat, ...state.chats.filter((each) => each.id !== chat.id)] });

function onLast(state, change) {
  const chats = state.chats.map((chat) =>
    chat.id === state.run.chat ? { ...chat, messages: [...chat.messages.slice(0, -1), change(chat.messages.at(-1))] } : chat);
  return { ...state, chats };
}
