// One request to the gateway as a stream of pieces.

// Yields {text, steps, tokens, guessed, at, end, full}: `steps` as {draft, own, tree}, `at` in ms.
// Throws a refusal, which has a status and is in the gateway's words, or what `fetch` throws when the
// connection breaks or `signal` aborts it.
export async function* ask(body, { key, signal, context }) {
  const path = body.messages ? "v1/chat/completions" : "v1/completions";
  const headers = { "content-type": "application/json", ...bearer(key) };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw await refusal(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw problem(chunk.error.message, 200);
    yield piece(chunk, context);
  }
  throw new TypeError("the stream ended early");
}

export const bearer = (key) => (key.trim() ? { authorization: `Bearer ${key.trim()}` } : {});

function piece({ choices: [choice], usage }, context) {
  const text = choice?.text ?? choice?.delta?.content ?? "", flags = choice?.from_draft ?? [];
  return {
    text,
    steps: text || flags.length ? stepsOf(text, flags, choice.draft_trees ?? []) : [],
    tokens: flags.length,
    guessed: flags.filter(Boolean).length,
    at: performance.now(),
    end: choice?.finish_reason ?? null,
    full: usage && context ? usage.total_tokens >= context : null,
  };
}

function stepsOf(text, flags, trees) {
  // Text is held back until a character is whole: the steps before had none to show.
  const silent = trees.slice(0, -1).map((tree) => ({ draft: "", own: "", tree }));
  const tree = trees.at(-1) ?? null;
  const split = trees.length === 1 ? draftLength(text, tree) : null;
  const length = split ?? (flags.some(Boolean) ? text.length : 0);
  return [...silent, { draft: text.slice(0, length), own: text.slice(length), tree }];
}

// Characters of a step's text that its accepted drafts make up; null where that cannot be told.
function draftLength(text, tree) {
  const draft = tree.accepted.map((node) => tree.texts[node]).join("");
  const shown = [draft, draft.trimStart()].find((each) => text.startsWith(each));
  return shown === undefined ? null : shown.length;
}

async function refusal(response) {
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? `The server answered with status ${response.status}.`;
  const wait = response.headers.get("retry-after");
  const long = said?.error?.code === "context_length_exceeded" ? " Start a new chat, or edit an earlier message." : "";
  return problem((wait ? `${message} It asks to wait ${wait} s.` : sentence(message)) + long, response.status);
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
const problem = (message, status) => Object.assign(new Error(message), { status });

// The data of server-sent events, without the comments that keep a connection alive.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks)
      for (const line of block.split(/\r?\n/)) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
