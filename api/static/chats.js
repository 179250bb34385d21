// The list of chats that this browser keeps.

import { button, make } from "./make.js";

const list = document.getElementById("chat-list");
let shown = null;

export function draw({ chats, current, run }, acts) {
  const now = JSON.stringify([chats.map(({ id, title }) => [id, title]), current, run?.chat]);
  if (now === shown) return;
  shown = now;
  list.replaceChildren(...chats.map((chat) => item(chat, chat.id === current, acts)));
  document.getElementById("no-chats").hidden = chats.length > 0;
}

function item({ id, title }, isCurrent, acts) {
  const opens = Object.assign(button("chat", title, () => acts.open(id)), { dir: "auto" });
  if (isCurrent) opens.setAttribute("aria-current", "true");
  const removes = button("quiet remove", "", () => acts.remove(id, title));
  removes.append(make("span", "", "×"));
  removes.setAttribute("aria-label", `Delete chat: ${title}`);
  removes.title = "Delete this chat";
  return make("li", "", opens, removes);
}
