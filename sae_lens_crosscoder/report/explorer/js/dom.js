// Elements are made here and nowhere else. Data reach the page as text nodes, attributes and numbers, never as markup.
const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const name in attributes) {
    const value = attributes[name];
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars") node.style.cssText = declarations(value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  add(node, children);
  return node;
}

// All at once, because every change of a style is parsed and checked by itself.
function declarations(vars) {
  let text = "";
  for (const name in vars) text += `--${name}:${vars[name]};`;
  return text;
}

// One by one: a browser would first gather several in a fragment.
function add(node, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(node, child);
    else if (child !== null && child !== undefined) node.append(child);
  }
}

const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG_NAMESPACE, tag), attributes, children);
const soft = (...children) => html("span", { class: "soft" }, ...children);
const token = (text, title) => html("span", { class: "token", title }, text.trim() || "\u2423");

// A link that the script follows: in a sandboxed frame, the browser would take "#..." for an address of its parent's.
function link(state, ...children) {
  const follow = (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    go(state);
  };
  return html("a", { href: `#${hashOf(state)}`, onclick: follow }, ...children);
}

const dot = (name) => html("i", { class: `dot ${name}` });
