// What this browser keeps: each chat under a key of its own, so that two open pages don't undo each other.

const CHAT = "medusa.chat.", SETTINGS = "medusa.settings";

export function load() {
  const chats = keys().filter((key) => key.startsWith(CHAT)).map(read).filter((chat) => chat?.messages);
  return [chats.sort((a, b) => b.changed - a.changed), read(SETTINGS) ?? {}];
}

export const keep = (chat) => write(CHAT + chat.id, { ...chat, changed: Date.now() });
export const drop = (id) => attempt(() => localStorage.removeItem(CHAT + id));
export const keepSettings = (settings) => write(SETTINGS, settings);
// Tells of each chat that another page keeps, or has dropped: null.
export const watch = (tell) => addEventListener("storage", ({ key }) => key?.startsWith(CHAT) && tell(Number(key.slice(CHAT.length)), read(key)));

const keys = () => attempt(() => Object.keys(localStorage)) ?? [];
const read = (key) => attempt(() => JSON.parse(localStorage.getItem(key)));
const write = (key, value) => attempt(() => localStorage.setItem(key, JSON.stringify(value)));

// A browser may forbid storage, or have no room left: the page works without.
function attempt(work) {
  try {
    return work();
  } catch {
    return null;
  }
}
