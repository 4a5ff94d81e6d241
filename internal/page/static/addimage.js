// How an image gets into the library from here: as an upload, or from a URL.
import { h } from "./dom.js";
import { imagePath, post, upload } from "./api.js";
import { refreshImages, roleNote, state, whyNot } from "./store.js";
import { bar, button, field, note, say, trouble } from "./ui.js";
import { progressText, size } from "./format.js";

// suggest is a name that the library takes, made of a file's.
export function suggest(file) {
  return file.replace(/\.(iso|img|qcow2|raw)(\.(gz|xz|zst|bz2))?$/i, "").toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+|[-.]+$/g, "").slice(0, 60);
}

const lastPart = (url) => url.split(/[?#]/)[0].split("/").filter(Boolean).pop() || "";

// addImage is the part of a view in which an image is added; ready(image) is called with one
// that has become ready. What it returns draws it.
export function addImage(ready) {
  const at = { how: "upload", file: null, name: "", url: "", checksum: "", problem: null, sending: null, sent: 0, over: false, waiting: null };
  return (draw) => {
    arrived(at, ready, draw);
    const why = whyNot();
    return h("div", { class: "addimage" },
      roleNote() ? note("info", h("p", null, roleNote())) : null,
      h("div", { class: "tabs", role: "group", "aria-label": "Where the image comes from" },
        [["upload", "Upload a file"], ["url", "From a URL"]].map(([how, text]) => button(text, () => { at.how = how; at.problem = null; draw(); }, { kind: "small", "aria-pressed": String(at.how === how) }))),
      at.how === "upload" ? uploadForm(at, ready, draw, why) : urlForm(at, draw, why),
      trouble(at.problem),
      progress(at, draw));
  };
}

const name = (at, draw) => field("Name in the library", h("input", {
  type: "text", autocomplete: "off", spellcheck: "false", value: at.name, oninput: (e) => { at.name = e.target.value; draw(); } }));

function uploadForm(at, ready, draw, why) {
  const take = (file) => {
    if (!file) return;
    at.file = file;
    at.name = suggest(file.name);
    at.problem = null;
    draw();
  };
  return h("form", { key: "upload", onsubmit: (e) => { e.preventDefault(); send(at, ready, draw); } },
    h("label", {
      class: "drop" + (at.over ? " over" : ""),
      ondragover: (e) => { e.preventDefault(); if (!at.over) { at.over = true; draw(); } },
      ondragleave: () => { at.over = false; draw(); },
      ondrop: (e) => { e.preventDefault(); at.over = false; take(e.dataTransfer.files[0]); },
    },
    h("span", null, at.file ? at.file.name + ", " + size(at.file.size) : "Drop a file here, or choose one"),
    h("input", { type: "file", "aria-label": "File to upload", onchange: (e) => take(e.target.files[0]) })),
    name(at, draw),
    h("div", { class: "actions" },
      h("button", { class: "button", type: "submit", title: why || null, disabled: Boolean(why) || !at.file || !at.name || Boolean(at.sending) }, "Upload")));
}

async function send(at, ready, draw) {
  if (!at.file || at.sending) return;
  at.problem = null;
  at.sent = 0;
  const named = at.name;
  at.sending = upload(imagePath("-", named), at.file, (sent) => { at.sent = sent; draw(); });
  draw();
  try {
    const image = await at.sending;
    say("Image " + image.name + " is ready.");
    at.file = null;
    await refreshImages();
    ready(image);
  } catch (problem) {
    at.problem = problem;
    refreshImages();
  }
  at.sending = null;
  draw();
}

function urlForm(at, draw, why) {
  return h("form", { key: "url", onsubmit: (e) => { e.preventDefault(); register(at, draw); } },
    field("URL", h("input", { type: "url", required: true, autocomplete: "off", placeholder: "https://…/debian.iso", value: at.url, oninput: (e) => {
      if (!at.name || at.name === suggest(lastPart(at.url))) at.name = suggest(lastPart(e.target.value));
      at.url = e.target.value;
      draw();
    } })),
    name(at, draw),
    field("Checksum", h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "sha256:… or file:https://…/SHA256SUMS", oninput: (e) => { at.checksum = e.target.value; } }), "The image is compared with it, and refused when it differs."),
    h("div", { class: "actions" }, h("button", { class: "button", type: "submit", title: why || null, disabled: Boolean(why) || !at.url || !at.name }, "Download")));
}

async function register(at, draw) {
  at.problem = null;
  try {
    const body = { name: at.name, urls: [at.url.trim()] };
    if (at.checksum.trim()) body.checksum = at.checksum.trim();
    const image = await post("/v1/images", body);
    at.waiting = image.pool + "/" + image.name;
    await refreshImages();
  } catch (problem) {
    at.problem = problem;
  }
  draw();
}

const waited = (at) => (state.images || []).find((i) => i.pool + "/" + i.name === at.waiting);

// arrived hands on an image that was waited for.
function arrived(at, ready) {
  const image = at.waiting && waited(at);
  if (!image || image.state !== "ready") return;
  at.waiting = null;
  at.arrived = image.name;
  say("Image " + image.name + " is ready.");
  ready(image);
}

function progress(at) {
  if (at.sending) {
    const total = at.file ? at.file.size : 0;
    return h("div", { class: "note busy" },
      h("p", null, at.sent < total ? "Uploading " + at.name + ": " + size(at.sent) + " of " + size(total) : "All of " + at.name + " was sent; it is being verified."),
      bar("upload of " + at.name, at.sent < total ? at.sent : 0, at.sent < total ? total : 0),
      button("Cancel the upload", () => at.sending.cancel(), { kind: "small" }));
  }
  const image = at.waiting && waited(at);
  if (!image) return at.arrived ? note("good", h("p", null, at.arrived + " is ready.")) : null;
  if (image.state === "failed") return failure(image);
  return h("div", { class: "note busy" },
    h("p", null, image.name + ": " + image.state + (image.progress ? ", " + progressText(image.progress) : "")),
    bar("download of " + image.name, image.progress && image.progress.bytes, image.progress && image.progress.total));
}

// failure is why an image can't be used, and what to do.
export function failure(image) {
  const f = image.failure || { cause: "it is not known why", remedy: "" };
  return h("div", { class: "note bad", role: "alert" },
    h("p", null, h("strong", null, image.name + " failed: "), f.cause),
    f.remedy ? h("p", null, h("strong", null, "Next: "), f.remedy) : null);
}
