// The document is made to look like a description of it, and only what differs is touched:
// focus, scroll positions and what somebody is typing stay. Strings become text nodes and
// nothing else, so that no text of the API can ever be markup.

const was = Symbol("described as");
const listens = Symbol("listened to");
const onGone = Symbol("to do when it goes");

// h describes an element. Props: `key` (tells siblings apart), `class`, `on…` (handlers),
// `mount(element)`, whose result is called when the element goes, `own` (its children are
// left alone), and attributes; null and false leave one out. value and checked are set when
// the description of them changes, not when a person has changed them.
export function h(tag, props, ...children) {
  return { tag, props: props || {}, children: children.flat(Infinity) };
}

// patch makes the children of an element as described. Null, false and "" hold a place, so
// that what comes and goes doesn't move its siblings.
export function patch(parent, ...described) {
  const children = described.flat(Infinity);
  const keyed = new Map();
  for (const node of parent.childNodes) {
    const key = keyOf(node[was]);
    if (key !== undefined) keyed.set(key, node);
  }
  const wanted = new Set(children.map(keyOf));
  for (const [key, node] of keyed) {
    if (!wanted.has(key)) remove(node);
  }
  let at = parent.firstChild;
  for (const child of children) {
    const key = keyOf(child);
    let node = key === undefined ? at : keyed.get(key);
    if (!node || !fits(node, child)) {
      if (node && key === undefined && keyOf(node[was]) === undefined) {
        at = node.nextSibling; // it is replaced
        remove(node);
      }
      node = make(child);
    }
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
    update(node, child);
  }
  while (at) {
    const next = at.nextSibling;
    remove(at);
    at = next;
  }
}

function keyOf(v) {
  return v && v.props ? v.props.key : undefined;
}

function fits(node, v) {
  if (!v || !v.tag) return node.nodeType === Node.TEXT_NODE && keyOf(node[was]) === undefined;
  return node.nodeType === Node.ELEMENT_NODE && node[was] && node[was].tag === v.tag && keyOf(node[was]) === v.props.key;
}

function make(v) {
  if (!v || !v.tag) return document.createTextNode("");
  const node = document.createElement(v.tag);
  node[was] = { tag: v.tag, props: {} };
  return node;
}

function update(node, v) {
  if (!v || !v.tag) {
    const text = v === null || v === undefined || v === false || v === true ? "" : String(v);
    if (node.data !== text) node.data = text;
    return;
  }
  const before = node[was].props;
  const fresh = !node[was].done;
  node[was] = { tag: v.tag, props: v.props, done: true };
  for (const name of Object.keys(before)) {
    if (!(name in v.props)) set(node, name, null);
  }
  // An input's type comes before its value.
  for (const [name, value] of Object.entries(v.props)) {
    if (name !== "value" && before[name] !== value) set(node, name, value);
  }
  if (!v.props.own) patch(node, v.children);
  if ("value" in v.props && before.value !== v.props.value) node.value = v.props.value;
  if (fresh && v.props.mount) node[onGone] = v.props.mount(node);
}

function set(node, name, value) {
  if (name === "key" || name === "mount" || name === "own") return;
  if (name.startsWith("on")) {
    const type = name.slice(2);
    node[listens] ||= new Set();
    if (value && !node[listens].has(type)) {
      node[listens].add(type);
      node.addEventListener(type, (e) => dispatch(node, name, e));
    }
    return;
  }
  if (name === "checked" || name === "indeterminate") {
    node[name] = Boolean(value);
    return;
  }
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : String(value));
}

function dispatch(node, name, event) {
  const handler = node[was].props[name];
  if (handler) return handler(event);
}

function remove(node) {
  forget(node);
  node.remove();
}

// forget tells an element and all in it that they go.
export function forget(node) {
  for (const child of node.childNodes) forget(child);
  const gone = node[onGone];
  node[onGone] = undefined;
  if (gone) gone();
}
