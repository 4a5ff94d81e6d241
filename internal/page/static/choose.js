// The dialog in which a disc is chosen for a drive.
import { h } from "./dom.js";
import { refreshImages, state } from "./store.js";
import { button, dialog, field, trouble } from "./ui.js";
import { boots, progressText, size } from "./format.js";
import { addImage } from "./addimage.js";
import { patience, patienceFields } from "./drive.js";

export const imageMedium = (i) => "image:" + i.pool + "/" + i.name;

// isDisc reports whether an image may be of use to a CD drive; what it is isn't known until
// it was looked at.
const isDisc = (i) => i.kind !== "disk";

// choose asks for a disc; start(drive, verb, request) begins the change.
export function choose(d, start, back) {
  refreshImages();
  const verb = d.medium ? "change" : "insert";
  const form = { search: "", medium: "", path: "", problem: null, busy: false };
  const add = addImage((image) => { form.medium = imageMedium(image); form.path = ""; });
  const submit = (close, draw) => async (e) => {
    e.preventDefault();
    const medium = form.path.trim() || form.medium;
    if (!medium || form.busy) {
      form.problem = medium ? form.problem : { detail: "no disc is chosen", next: "Choose an image of the list, or type where the disc is." };
      draw();
      return;
    }
    form.busy = true;
    form.problem = null;
    draw();
    try {
      await start(d, verb, { medium, ...patience(new FormData(e.target)) });
      close(true);
    } catch (problem) {
      form.busy = false;
      form.problem = problem;
      draw();
    }
  };
  dialog((d.medium ? "Change the disc of " : "Insert a disc into ") + d.vm + " " + d.name, ({ close, draw }) => [h("div", { class: "body" },
    h("form", { id: "choose", onsubmit: submit(close, draw) },
      field("Search", h("input", { type: "search", "data-first": true, autocomplete: "off", placeholder: "name, label, system", oninput: (e) => { form.search = e.target.value; draw(); } })),
      list(form, draw),
      field("Or another disc", h("input", {
        type: "text", autocomplete: "off", spellcheck: "false", placeholder: "/srv/iso/debian.iso", value: form.path,
        oninput: (e) => { form.path = e.target.value; draw(); },
      }), "A file on the host, or a volume such as lvm:vg0/debian."),
      h("details", { open: d.locked }, h("summary", null, "When the guest holds the drive's door"), patienceFields())),
    h("details", null, h("summary", null, "Add an image that isn't in the list"), add(draw))),
  form.problem ? h("div", { class: "last-word" }, trouble(form.problem)) : null,
  h("div", { class: "actions foot" },
    button("Cancel", close),
    h("button", { class: "button primary", type: "submit", form: "choose", disabled: form.busy }, form.busy ? "Working…" : d.medium ? "Change" : "Insert"))],
  { back, wide: true });
}

function list(form, draw) {
  const words = form.search.toLowerCase().split(/\s+/).filter(Boolean);
  const all = (state.images || []).filter(isDisc);
  const shown = all.filter((i) => {
    const text = [i.name, i.pool, i.volume_id, i.os_type, i.source].join(" ").toLowerCase();
    return words.every((w) => text.includes(w));
  });
  return h("fieldset", { class: "pick" },
    h("legend", null, "Images"),
    state.images === null ? h("p", { class: "quiet" }, "Loading…") : null,
    state.images && !all.length ? h("p", { class: "quiet" }, "The library has no images yet. Add one below, or type where a disc is.") : null,
    all.length && !shown.length ? h("p", { class: "quiet" }, "No image matches.") : null,
    shown.map((i) => option(i, form, draw)));
}

function option(i, form, draw) {
  const medium = imageMedium(i);
  const ready = i.state === "ready";
  return h("label", { class: "choice", key: medium },
    h("input", {
      type: "radio", name: "image", value: medium, disabled: !ready, checked: form.medium === medium && !form.path,
      onchange: () => { form.medium = medium; form.path = ""; draw(); },
    }),
    h("span", null,
      h("strong", null, i.name), " ",
      h("small", null, [
        i.volume_id ? "label " + i.volume_id : "", i.size ? size(i.size) : "", boots(i), i.os_type, i.site,
        ready ? "" : i.state === "failed" ? "failed: " + (i.failure ? i.failure.cause : "") : i.state + " " + progressText(i.progress),
      ].filter(Boolean).join(" · "))));
}
