// One request to the gateway as a stream of chunks.

// Yields {text, ids, flags, trees, at}, `at` in ms. Throws a refusal, which has a status and is in
// the gateway's words, or what `fetch` throws when the connection breaks or `signal` aborts it.
export async function* ask(path, body, { key, signal }) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw await refusal(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw problem(chunk.error.message, 200);
    const [choice] = chunk.choices;
    yield {
      text: choice.text ?? choice.delta.content ?? "",
      ids: choice.token_ids ?? [],
      flags: choice.from_draft ?? [],
      trees: choice.draft_trees ?? [],
      at: performance.now(),
    };
  }
  throw new TypeError("the stream ended early");
}

async function refusal(response) {
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? `The gateway answered with status ${response.status}.`;
  const wait = response.headers.get("retry-after");
  return problem(wait ? `${message} It asks to wait ${wait} s.` : message, response.status);
}

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
