// The parts that all views are made of.
import { h, patch, forget } from "./dom.js";
import { whenChanged } from "./store.js";

// say tells a screen reader what has come out.
export function say(text) {
  const at = document.getElementById("said");
  at.textContent = "";
  setTimeout(() => { at.textContent = text; }, 50); // the same text twice is said twice
}

// button does something; why is what keeps it from that, "" for nothing. What it does is
// done once at a time.
export function button(label, onclick, { why = "", kind = "", title = "", ...more } = {}) {
  return h("button", {
    type: "button", class: ("button " + kind).trim(), disabled: Boolean(why), title: why || title || null, onclick, ...more,
  }, label);
}

// pill is a state in a word; its mark has a shape of its own, as colour is never the only sign.
const marks = { good: "●", busy: "◐", warn: "▲", bad: "✕", off: "○" };
export function pill(tone, text) {
  return h("span", { class: "pill " + tone }, h("span", { "aria-hidden": "true" }, marks[tone] + " "), text);
}

// trouble shows a problem: what stopped it, and what to do.
export function trouble(problem, { onclose, title, key } = {}) {
  if (!problem) return null;
  return h("div", { class: "note bad", role: "alert", key },
    h("p", null, h("strong", null, title || "That didn't work: "), problem.detail || problem.message || String(problem)),
    problem.next ? h("p", null, h("strong", null, "Next: "), problem.next) : null,
    onclose ? button("Dismiss", onclose, { kind: "small" }) : null);
}

export const note = (tone, ...children) => h("div", { class: "note " + tone }, ...children);

// bar is how far something is; without a total it only says that it moves.
export function bar(label, done, total) {
  return h("progress", { "aria-label": label, max: total || null, value: total ? done : null });
}

// facts are names and values; those without a value are left out.
export function facts(...rows) {
  return h("dl", { class: "facts" }, rows.filter((r) => r && r[1] !== "" && r[1] !== null && r[1] !== undefined)
    .map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))));
}

// table has a heading for each column; on a phone each row is a card, and each cell says
// what it is.
export function table(caption, columns, rows, kind = "") {
  // A phone lays it out as blocks, which would take the roles away.
  return h("table", { class: ("cards " + kind).trim(), role: "table" },
    h("caption", { class: "unseen" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((c) => h("th", { scope: "col", role: "columnheader" }, c)))),
    h("tbody", { role: "rowgroup" }, rows.map(({ key, cells }) => h("tr", { key, role: "row" },
      cells.map((cell, i) => (i === 0
        ? h("th", { scope: "row", role: "rowheader", "data-label": columns[i] }, cell)
        : h("td", { role: "cell", "data-label": columns[i] }, cell)))))));
}

// dialog opens a modal one. build({close, draw}) describes what is in it, and is asked again
// whenever something changes. The focus goes back to where it was; after close(true), which
// says that something was done, and where that can't be, to the element with the id `back`:
// the button that opened it may be another one soon.
export function dialog(title, build, { back = "", wide = false, onclose } = {}) {
  const opener = document.activeElement;
  const box = document.createElement("dialog");
  const id = "dialog-" + Math.random().toString(36).slice(2);
  box.setAttribute("aria-labelledby", id);
  box.className = wide ? "wide" : "";
  let done = false;
  const close = (well) => {
    done = well === true;
    box.close();
  };
  const draw = () => patch(box,
    h("header", null, h("h2", { id }, typeof title === "function" ? title() : title),
      h("button", { type: "button", class: "button quiet", "aria-label": "Close", onclick: close }, "✕")),
    build({ close, draw }));
  const stop = whenChanged(draw);
  box.addEventListener("close", () => {
    stop();
    forget(box);
    box.remove();
    const usable = opener && opener.isConnected && !opener.disabled && opener !== document.body;
    const to = usable && !done ? opener : document.getElementById(back);
    if (to) to.focus();
    if (onclose) onclose();
  });
  draw();
  document.body.append(box);
  box.showModal();
  const first = box.querySelector("[data-first]");
  if (first) first.focus();
  return { close, draw };
}

// confirm asks before something that can't be taken back. act may throw a problem, which is
// shown here.
export function confirm({ title, text, label, act, back }) {
  let busy = false, problem = null;
  dialog(title, ({ close, draw }) => h("div", { class: "body" },
    [].concat(text).map((t) => h("p", null, t)),
    trouble(problem),
    h("div", { class: "actions" },
      button("Cancel", close, { "data-first": true }),
      button(busy ? "Working…" : label, async () => {
        busy = true;
        problem = null;
        draw();
        try {
          await act();
          close(true);
        } catch (e) {
          busy = false;
          problem = e;
          draw();
        }
      }, { kind: "danger", why: busy ? "It is under way." : "" }))), { back });
}

// field is a label with its input.
export function field(label, input, hint) {
  return h("label", { class: "field" }, h("span", null, label), input, hint ? h("small", null, hint) : null);
}
