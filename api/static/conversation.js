// The messages of the chat on show. A row is drawn anew only where its message is another.

import { forget, paint } from "./layer.js";
import { button, copy, make } from "./make.js";
import { Prose } from "./prose.js";
import { chatOf } from "./state.js";
import { canContinue, ending, summary, waiting } from "./words.js";

export class Conversation {
  #rows = []; #chat = null; #list; #box; #welcome; #acts;

  // `acts`: parse, edit(index), regenerate(), resume().
  constructor(acts) {
    const ids = ["messages", "conversation", "welcome"];
    [this.#list, this.#box, this.#welcome] = ids.map((id) => document.getElementById(id));
    this.#acts = acts;
  }

  draw(state) {
    const chat = chatOf(state), messages = chat?.messages ?? [];
    const isNew = chat?.id !== this.#chat || messages.length !== this.#rows.length;
    const follows = isNew || this.#box.scrollHeight - this.#box.scrollTop - this.#box.clientHeight < 80;
    if (chat?.id !== this.#chat) this.#cut(0);
    this.#chat = chat?.id;
    this.#cut(messages.length);
    messages.forEach((message, index) => this.#row(message, index).draw(state, message, index === messages.length - 1));
    this.#welcome.hidden = messages.length > 0;
    if (follows) this.#box.scrollTop = this.#box.scrollHeight;
  }

  // The text of the last answer.
  get last() {
    return this.#rows.at(-1)?.body ?? null;
  }

  #row(message, index) {
    const row = this.#rows[index];
    if (row?.role === message.role) return row;
    this.#cut(index);
    const made = message.role === "user" ? new Question(index, this.#acts) : new Reply(this.#acts);
    this.#rows.push(made);
    this.#list.append(made.element);
    return made;
  }

  #cut(length) {
    for (const { element, body } of this.#rows.splice(length)) {
      forget(body);
      element.remove();
    }
  }
}

class Question {
  role = "user";

  constructor(index, acts) {
    this.body = Object.assign(make("div", "body"), { dir: "auto" });
    const copied = button("quiet", "Copy", () => copy(this.body.textContent, copied));
    this.change = button("quiet", "Edit", () => acts.edit(index));
    this.element = make("li", "message user", make("h2", "unseen", "You"), this.body, make("div", "actions", copied, this.change));
  }

  draw(state, { text }) {
    if (this.body.textContent !== text) this.body.textContent = text;
    this.change.disabled = Boolean(state.run);
  }
}

class Reply {
  role = "assistant";

  constructor(acts) {
    this.body = Object.assign(make("div", "body prose"), { dir: "auto" });
    this.prose = new Prose(this.body, acts.parse, () => this.message && paint(this.body, this.message.marks));
    this.said = make("p", "said");
    this.figures = make("span", "figures");
    this.copied = button("quiet", "Copy", () => copy(this.message.text, this.copied));
    this.again = button("quiet", "Regenerate", acts.regenerate);
    this.more = button("quiet strong", "Continue", acts.resume);
    const actions = make("div", "actions", this.more, this.copied, this.again, this.figures);
    this.element = make("li", "message assistant", make("h2", "unseen", "Answer"), this.body, this.said, actions);
  }

  draw(state, message, isLast) {
    const runs = isLast && state.run?.chat === state.current && state.current !== null;
    this.message = message;
    this.prose.show(message.text);
    this.element.classList.toggle("running", runs);
    this.element.setAttribute("aria-busy", runs);
    this.#say(runs ? waiting(state.service, message) : ending(message, state.service), message.end === "failed");
    this.figures.textContent = runs || message.text ? summary(message) : "";
    this.copied.hidden = !message.text;
    this.more.hidden = runs || !isLast || !canContinue(message);
    this.again.hidden = !isLast || runs;
    this.again.textContent = message.text ? "Regenerate" : "Try again";
    this.again.classList.toggle("strong", !message.text);
    this.again.disabled = this.more.disabled = Boolean(state.run);
  }

  #say(text, failed) {
    if (this.said.textContent !== text) this.said.textContent = text;
    this.said.hidden = !text;
    this.said.classList.toggle("failed", failed);
  }
}
