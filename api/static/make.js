// Elements, of nodes and texts only.

export function make(name, className = "", ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function button(className, label, onClick) {
  const element = make("button", className, label);
  element.type = "button";
  element.addEventListener("click", onClick);
  return element;
}

// A part that can be wider than the page, and is scrolled by keys, too.
export function scrolled(className, label, ...children) {
  const element = make("div", className, ...children);
  for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", label]]) element.setAttribute(name, value);
  return element;
}

// Through the clipboard, or the way that pages without TLS still have.
export async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", "unseen", text);
    from.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  from.focus();
  const label = from.textContent;
  if (label === "Copied") return;
  from.textContent = "Copied";
  setTimeout(() => (from.textContent = label), 1500);
}
