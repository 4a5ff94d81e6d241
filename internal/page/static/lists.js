// Operations and events: what is being done, and what has happened.
import { h } from "./dom.js";
import { refreshOperations, state } from "./store.js";
import { bar, pill, table } from "./ui.js";
import { progressText, time } from "./format.js";

const tones = { done: "good", failed: "bad", cancelled: "off", overtaken: "warn", "machine-ended": "warn" };

export function operationsView() {
  if (state.operations === null) refreshOperations();
  const all = state.operations || running();
  return [
    h("div", { class: "heading" }, h("h1", null, "Operations")),
    state.operations === false ? h("p", { class: "quiet" }, "This agent lists only what is under way.") : null,
    all.length ? table("Operations, newest first", ["Operation", "On", "State", "Since", "Asked for by"], all.map((o) => ({ key: o.id, cells: [
      h("span", null, h("strong", null, o.verb), o.medium ? " " + o.medium : ""),
      o.vm ? h("a", { href: "#/vm/" + encodeURIComponent(o.vm) }, o.vm + (o.drive ? " " + o.drive : "")) : o.image || "",
      progress(o), h("span", { class: "time" }, time(o.since)), o.by || "",
    ] }))) : h("p", { class: "quiet" }, state.operations === null && state.connection !== "live" ? "Loading…" : "Nothing is under way."),
  ];
}

function progress(o) {
  const ended = o.phase === "ended" || o.result;
  return h("div", null,
    ended ? pill(tones[o.result] || "off", o.result || "ended") : pill("busy", (o.phase || "running").replaceAll("-", " ")),
    !ended && o.progress ? [h("small", null, progressText(o.progress)), bar("progress", o.progress.bytes, o.progress.total)] : null,
    o.error ? h("small", null, o.error + (o.next ? " Next: " + o.next : "")) : o.reason ? h("small", null, o.reason) : null);
}

// running are the operations that the drives and images show, for an agent that lists none.
function running() {
  const all = [];
  for (const vm of (state.vms || new Map()).values()) {
    for (const d of vm.drives || []) if (d.operation) all.push(d.operation);
  }
  for (const i of state.images || []) {
    if (i.progress) all.push({ id: i.pool + "/" + i.name, verb: "add", image: "image:" + i.pool + "/" + i.name, phase: i.state, progress: i.progress, since: i.added });
  }
  return all;
}

const bad = ["failed", "image-failed", "vm-failed", "conflict", "volume-corrupt"];
const warn = ["missed", "vm-lost", "unsettled", "incomplete", "release-waits", "rolled-back", "tray-put-right"];
const tone = (type) => (bad.includes(type) ? "bad" : warn.includes(type) ? "warn" : ["started", "waiting"].includes(type) ? "busy" : "good");

export function eventsView() {
  return [
    h("div", { class: "heading" }, h("h1", null, "Events"), h("span", { class: "quiet" }, "newest first, the last 200")),
    state.events.length ? table("Events, newest first", ["Time", "Event", "On", "What"], state.events.map((e) => ({ key: e.id, cells: [
      h("span", { class: "time" }, time(e.time)), pill(tone(e.type), String(e.type).replaceAll("-", " ")),
      e.vm ? h("a", { href: "#/vm/" + encodeURIComponent(e.vm) }, e.vm + (e.drive ? " " + e.drive : "")) : "", e.detail || "",
    ] })), "brief") : h("p", { class: "quiet" }, "Nothing has happened yet."),
  ];
}
