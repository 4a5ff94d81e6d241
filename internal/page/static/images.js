// The library.
import { h } from "./dom.js";
import { del, imagePath, post } from "./api.js";
import { outcome, refreshImages, roleNote, state, whyNot } from "./store.js";
import { bar, button, confirm, dialog, note, pill, say, table, trouble } from "./ui.js";
import { boots, progressText, size, time } from "./format.js";
import { addImage, failure } from "./addimage.js";

const tones = { ready: "good", failed: "bad", removing: "warn" };
const key = (i) => "image:" + i.pool + "/" + i.name;

export function imagesView() {
  const why = whyNot();
  return [
    h("div", { class: "heading" }, h("h1", null, "Images"), button("Add an image…", add, { kind: "primary", why, id: "add-image" })),
    roleNote() ? note("info", h("p", null, roleNote())) : null,
    state.images === null ? h("p", { class: "quiet" }, "Loading…") : null,
    state.images && !state.images.length ? h("p", { class: "quiet" }, "The library has no images yet.") : null,
    state.images && state.images.length ? table("Images of the library", ["Image", "State", "What it is", "Used by", "Actions"],
      state.images.map((i) => ({ key: key(i), cells: [named(i), stateOf(i), what(i), users(i), actions(i, why)] }))) : null,
  ];
}

function add() {
  const form = addImage(() => {});
  dialog("Add an image", ({ close, draw }) => h("div", { class: "body" }, form(draw), h("div", { class: "actions" }, button("Close", close))), { back: "add-image" });
}

const named = (i) => h("span", null, h("strong", null, i.name), i.pinned ? pill("off", "pinned") : null, h("small", null, "pool " + i.pool));

function stateOf(i) {
  const p = i.progress;
  return h("div", null,
    pill(tones[i.state] || "busy", i.state),
    p && i.state !== "ready" ? [h("small", null, progressText(p)), bar("progress of " + i.name, p.bytes, p.total)] : null,
    i.failure ? failure(i) : null);
}

function what(i) {
  return h("small", null, [
    i.volume_id ? "label " + i.volume_id : "", i.size ? size(i.size) : "", i.format, i.kind === "disk" ? "disk image" + (i.virtual_size ? " of " + size(i.virtual_size) : "") : boots(i),
    i.os_type, i.site, i.integrity, i.signer ? "signed by " + i.signer : "", i.source ? "from " + i.source : "", time(i.added) ? "added " + time(i.added) : "",
  ].filter(Boolean).join(" · "));
}

function users(i) {
  return i.users && i.users.length ? h("ul", { class: "plain" }, i.users.map((u) => h("li", { key: u }, u))) : h("span", { class: "quiet" }, "nobody");
}

function actions(i, why) {
  const o = state.outcomes.get(key(i));
  const busy = o && o.busy ? "This takes a moment." : "";
  const does = (label, verb, ok) => button(label, () => act(i, verb, ok), { kind: "small", why: why || busy, "aria-label": label + " " + i.name });
  const moving = ["allocated", "downloading", "verifying"].includes(i.state);
  return h("div", null,
    h("div", { class: "actions" },
      moving ? does("Cancel", "cancel", "Cancelled.") : null,
      i.state === "failed" ? does("Retry", "retry", "It goes on.") : null,
      i.state === "ready" ? [
        i.pinned ? does("Unpin", "unpin", "Unpinned.") : does("Pin", "pin", "Pinned: it is never removed to make room."),
        does(busy ? "Verifying…" : "Verify", "verify", "It was read, and is as it was added."),
      ] : null,
      moving ? null : button("Remove…", () => remove(i), { kind: "small danger", why: why || busy, "aria-label": "Remove " + i.name })),
    o && o.text ? note("good", h("p", null, o.text)) : null,
    o && o.problem ? trouble(o.problem, { onclose: () => outcome(key(i), null) }) : null);
}

async function act(i, verb, ok) {
  outcome(key(i), { busy: verb === "verify" });
  try {
    await post(imagePath(i.pool, i.name) + "/" + verb);
    // What the row shows by itself needs no other word.
    outcome(key(i), verb === "verify" ? { text: ok } : null);
    say(i.name + ": " + ok);
  } catch (problem) {
    outcome(key(i), { problem });
  }
  refreshImages();
}

function remove(i) {
  const used = i.users && i.users.length;
  confirm({
    title: "Remove " + i.name + "?",
    text: [used ? "It is used by " + i.users.join(", ") + ". The agent refuses to remove what is in use." : "The image is removed from pool " + i.pool + ". It has to be added anew to be used again."],
    label: "Remove", back: "main",
    act: async () => {
      await del(imagePath(i.pool, i.name));
      say(i.name + " was removed.");
      await refreshImages();
    },
  });
}
