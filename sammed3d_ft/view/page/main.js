// The page: loads the scan, keeps the state of the display, and turns clicks and keys into requests to the server.

import { bytes, framed, get, post, ServerGone } from "./server.js";
import { apply, between, Volume } from "./volume.js";
import { Plane } from "./plane.js";
import { Projection } from "./projection.js";
import { drawHint, drawTable } from "./panel.js";
import { fail, offer, offering, question, showHelp, withdrawOffer } from "./dialogs.js";

const $ = (id) => document.getElementById(id);
const PET_WINDOWS = [5, 7, 10, 15, 20];
const CT_WINDOWS = [["soft tissue", -160, 240], ["lung", -1350, 150], ["bone", -500, 1300]];
const FAR_MM = 15; // a click farther from the lesion's mask is probably another lesion
const DRAG_PIXELS = 4; // less than that is a click

const view = {
  pet: null, ct: null, toCt: null, modality: "PT", // pet: the image that is segmented, even if it is a CT
  layer: "PT", petWindow: [0, 10], ctWindow: [-160, 240], opacity: 0.7,
  at: [0, 0, 0], centre: [0, 0, 0], zoom: 1,
  labels: null, lesions: [], clicks: [], pending: [], rows: new Map(), proposals: [], proposal: null,
  active: 1, next: 1, tool: "1", masks: true, filled: false, notSuv: null, unsaved: false, undoable: false,
};
const planes = ["axial", "coronal", "sagittal"].map((name) => new Plane($(name), name, view));
const projection = new Projection($("projection"), view);
let revision = 0, current = 0, cases = [], folder = "", gone = false, pane = planes[0], spinning = null;

// Drawing, at most once a frame

let stale = { image: true, overlay: true, projection: true }, drawing = false;
function draw(...parts) {
  for (const part of parts.length ? parts : ["image", "overlay", "projection"]) stale[part] = true;
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const began = performance.now();
    const { image, overlay, projection: rays } = stale;
    stale = {};
    for (const plane of planes) {
      if (image) plane.drawImage();
      if (overlay || image) plane.drawOverlay();
    }
    if (rays) projection.draw();
    document.body.dataset.drawMs = String(performance.now() - began); // for measurements
  });
}
const moved = () => draw("image", "overlay", "projection");

function drawPanel() {
  drawTable(view, { choose, remove, look: lookAt, accept, dismiss });
  drawHint(view);
  $("undo").disabled = !view.undoable;
  $("reset").disabled = !view.clicks.some((click) => click.lesion === view.active);
  $("save").classList.toggle("saved", !view.unsaved);
  $("propose").disabled = view.modality !== "PT" || Boolean(view.notSuv);
  for (const button of $("tools").children) button.setAttribute("aria-checked", String(button.dataset.tool === view.tool));
}

function drawBar() {
  for (const button of $("layers").children) {
    const layer = button.dataset.layer;
    button.hidden = view.modality === "CT" ? layer !== "CT" : layer !== "PT" && !view.ct;
    button.setAttribute("aria-checked", String(layer === view.layer));
  }
  $("pet-field").hidden = view.modality === "CT" || view.layer === "CT";
  $("ct-field").hidden = view.layer === "PT";
  $("opacity-field").hidden = view.layer !== "fused";
  $("opacity").value = Math.round(view.opacity * 100);
  const windows = view.notSuv ? [["not in SUV", "own"]] : PET_WINDOWS.map((high) => [`SUV 0–${high}`, String(high)]);
  fillSelect($("pet-window"), windows, view.notSuv ? "own" : String(view.petWindow[1]));
  fillSelect($("ct-window"), CT_WINDOWS.map(([name], n) => [name, String(n)]),
    String(CT_WINDOWS.findIndex(([, low]) => low === view.ctWindow[0])));
}

function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([text, key]) => new Option(text, key)));
  select.value = value;
}

function say(text, bad = false) {
  $("message").textContent = text;
  $("message").classList.toggle("bad", bad);
}

function working(text) {
  $("busy").hidden = !text;
  $("busy-text").textContent = text ? `${text}…` : "";
}

function readout(voxel) {
  if (!view.pet) return;
  const place = voxel.map((v) => Math.floor(v + 0.5));
  if (!view.pet.holds(place)) return void ($("readout").textContent = " ");
  const mm = apply(view.pet.affine, place).map((v) => v.toFixed(1)).join(", ");
  const value = view.pet.at(place);
  let text = `voxel ${place.join(", ")}   RAS ${mm} mm   `;
  if (view.modality === "CT") text += `${value.toFixed(0)} HU`;
  else text += view.notSuv ? `PET ${value.toPrecision(4)} (not SUV)` : `SUV ${value.toFixed(2)}`;
  if (view.ct && view.modality !== "CT") {
    const m = (view.toCt ??= between(view.pet, view.ct));
    const there = apply(m, place).map((v) => Math.floor(v + 0.5));
    text += view.ct.holds(there) ? `   ${view.ct.at(there)} HU` : "   outside the CT";
  }
  $("readout").textContent = text;
}

// Loading

async function open() {
  let state;
  for (;;) {
    state = await get("/state");
    if (state.phase !== "reading") break;
    working("reading the scan");
    $("name").textContent = state.name;
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
  current = state.current;
  showCases(state.cases);
  $("name").textContent = state.name;
  $("name").title = state.name;
  $("patient").textContent = state.patient ?? "";
  document.title = `${state.name} – lesion viewer`;
  if (state.phase === "failed") {
    working("");
    return fail("The scan cannot be opened", state.error, cases.length
      ? "Choose another case above, or correct the input and restart the viewer."
      : "Correct the input and restart the viewer.");
  }
  folder = state.folder;
  view.modality = state.modality;
  view.notSuv = state.not_suv;
  const buffer = await bytes(`/volume/${state.modality}`), { shape, affine } = state.volumes[state.modality];
  const data = state.modality === "CT" ? new Int16Array(buffer) : new Float32Array(buffer);
  view.pet = new Volume(data, shape, affine);
  view.ct = state.modality === "CT" ? view.pet : null;
  view.toCt = null;
  view.layer = state.modality;
  if (view.notSuv) view.petWindow = [0, brightest(data)];
  view.labels = new Uint16Array(data.length);
  projection.forget();
  view.at = shape.map((n) => Math.floor(n / 2));
  resetView();
  Object.assign(view, { proposals: [], proposal: null, rows: new Map(), pending: [] });
  take(state);
  view.active = view.next;
  say(view.notSuv ?? state.notes.join("; "), Boolean(view.notSuv));
  drawBar();
  draw();
  requestAnimationFrame(() => requestAnimationFrame(() => (document.body.dataset.first ??= String(performance.now()))));
  if (view.lesions.length || state.revision) await reloadLabels();
  watch();
}

// For a PET that is not in SUV: the 99.5th percentile of a sample of its voxels.
function brightest(data) {
  const step = Math.max(1, Math.floor(data.length / 50000)), some = [];
  for (let n = 0; n < data.length; n += step) some.push(data[n]);
  some.sort((a, b) => a - b);
  return some[Math.floor(some.length * 0.995)] || 1;
}

let watching = 0;
async function watch() {
  const own = ++watching;
  while (own === watching) {
    let state;
    try {
      state = await get("/state");
    } catch (error) {
      return problem(error);
    }
    if (own !== watching) return;
    working(state.busy || (view.pending.length ? "computing" : ""));
    if (state.error) say(state.error, true);
    try {
      if (!view.ct && state.volumes?.CT) await loadCt(state.volumes.CT, own);
      if (own === watching && state.revision > revision && !view.pending.length && !acting) await reloadLabels();
    } catch (error) {
      problem(error);
    }
    const quick = state.busy || (state.ct_expected && !view.ct);
    await new Promise((resolve) => setTimeout(resolve, quick ? 250 : 1500));
  }
}

async function loadCt({ shape, affine }, own) {
  const volume = new Volume(new Int16Array(await bytes("/volume/CT")), shape, affine);
  if (own !== watching) return;
  view.ct = volume;
  view.toCt = null;
  view.layer = "fused";
  drawBar();
  draw();
}

// Applies the server's update of clicks and lesions.
function take(news) {
  Object.assign(view, {
    clicks: news.clicks, lesions: news.lesions, next: news.next, unsaved: news.unsaved, undoable: news.undoable,
  });
  drawPanel();
}

function paste(box, labels) {
  if (!box || !labels) return;
  const [[x0, y0, z0], [x1, y1, z1]] = box, { strides } = view.pet, length = z1 - z0;
  for (let x = x0, n = 0; x < x1; x++) {
    for (let y = y0; y < y1; y++, n += length) {
      view.labels.set(labels.subarray(n, n + length), x * strides[0] + y * strides[1] + z0);
    }
  }
}

async function reloadLabels() {
  const [{ head, labels }, state] = [await framed("/labels"), await get("/state")];
  if (!view.pet || state.current !== current) return; // another case was opened meanwhile
  view.labels.fill(0);
  paste(head.box, labels);
  revision = head.revision;
  take(state);
  draw("overlay", "projection");
  await reloadTable();
}

async function reloadTable() {
  const { rows } = await get("/table");
  if (!view.pet) return;
  view.rows = new Map(rows.map((row) => [row.lesion_id, row]));
  drawPanel();
}

function problem(error) {
  if (error instanceof ServerGone) {
    if (!gone) fail("The viewer has stopped", `All clicks are saved${folder && ` in ${folder}`}.`,
      "Re-run the same command and open the new link.");
    gone = true;
    watching++;
    working("");
  } else {
    say(error.message, true);
    if (!view.pet && !gone) fail("Access refused", error.message, "");
  }
}

// Requests that change something; sent one at a time, in order.

let acting = 0, last = Promise.resolve();
function change(path, body, after) {
  acting++;
  last = last.then(async () => {
    try {
      const { head, labels } = await framed(path, body);
      if (head.revision > revision + 1) await reloadLabels(); // another window changed something
      else {
        paste(head.box, labels);
        revision = head.revision;
      }
      take(head);
      await after?.(head);
      drawPanel();
      draw("overlay", "projection");
      document.body.dataset.changed = String(performance.now());
      if (acting === 1) await reloadTable();
    } catch (error) {
      problem(error);
    } finally {
      acting--;
      if (!view.pending.length) working("");
    }
  });
  return last;
}

// Clicks

const known = (lesion) => view.clicks.some((one) => one.lesion === lesion) || view.lesions.some((one) => one.number === lesion);

function mmFrom(voxel, box) {
  return Math.hypot(...voxel.map((v, axis) =>
    Math.max(box[0][axis] - v, v - (box[1][axis] - 1), 0) * view.pet.spacing[axis]));
}

async function mark(voxel, label) {
  if (!view.pet || gone) return;
  if (!view.pet.holds(voxel)) return;
  move(voxel, false);
  if (view.notSuv) return say(view.notSuv, true);
  if (label === 0 && !known(view.active)) return say("Background clicks correct a lesion: choose or click one first.", true);
  const box = view.lesions.find((one) => one.number === view.active)?.box;
  if (label === 1 && box && mmFrom(voxel, box) > FAR_MM) {
    return offerNew(voxel, `This is ${mmFrom(voxel, box).toFixed(0)} mm from lesion ${view.active}.`, false);
  }
  send(voxel, label, view.active, false);
}

async function offerNew(voxel, text, outside) {
  const choice = await offer(text, [["New lesion (Enter)", "new"], [`Add to lesion ${view.active}`, "add"], ["Cancel (Esc)", null]]);
  if (choice === "new") send(voxel, 1, view.next, false);
  else if (choice === "add") send(voxel, 1, view.active, outside);
  pane.element.focus({ preventScroll: true });
}

function send(voxel, label, lesion, anyway) {
  const waiting = { voxel, label, lesion };
  view.pending.push(waiting);
  view.active = lesion;
  working("computing");
  say("");
  draw("overlay");
  const done = () => {
    view.pending = view.pending.filter((one) => one !== waiting);
  };
  return change("/click", { voxel, label, lesion, anyway }, (news) => {
    done();
    if (!news.outside) return;
    if (label) offerNew(voxel, `This is outside the crops of lesion ${lesion}.`, true);
    else say(`A background click there has no effect: it is outside the crops of lesion ${lesion}.`, true);
  }).finally(() => {
    done();
    if (!known(view.active)) view.active = view.next;
    drawPanel();
    draw("overlay");
  });
}

function choose(lesion) {
  view.active = lesion;
  const click = view.clicks.find((one) => one.lesion === lesion && one.label === 1);
  const box = view.lesions.find((one) => one.number === lesion)?.box;
  if (click) move(click.voxel.map((v) => Math.round(v)), true);
  else if (box) move(inside(lesion, box), true);
  drawPanel();
}

// A voxel of the lesion in the middle slice of its box.
function inside(lesion, [first, end]) {
  const { strides } = view.pet, code = view.lesions.find((one) => one.number === lesion).code;
  const z = Math.floor((first[2] + end[2] - 1) / 2);
  const found = [];
  for (let x = first[0]; x < end[0]; x++) {
    for (let y = first[1]; y < end[1]; y++) if (view.labels[x * strides[0] + y * strides[1] + z] === code) found.push([x, y, z]);
  }
  return found[Math.floor(found.length / 2)] ?? first.map((a, axis) => Math.floor((a + end[axis] - 1) / 2));
}

function step(by) {
  const numbers = view.lesions.map((one) => one.number).sort((a, b) => a - b);
  if (!numbers.length) return;
  const n = numbers.indexOf(view.active);
  choose(numbers[n < 0 ? (by > 0 ? 0 : numbers.length - 1) : (n + by + numbers.length) % numbers.length]);
}

function startNext() {
  view.active = view.next;
  setTool("1");
  say(`The next click starts lesion ${view.active}.`);
}

function undo() {
  if (view.undoable) change("/undo", {}, () => {
    if (!known(view.active)) view.active = view.next;
  });
}

function reset() {
  if (view.clicks.some((click) => click.lesion === view.active)) change("/reset", { lesion: view.active });
}

function remove(lesion) {
  if (!known(lesion)) return;
  change("/remove", { lesion }, () => {
    if (view.active === lesion) view.active = view.next;
    say(`Lesion ${lesion} was deleted; Undo restores it.`);
  });
}

// Proposals

async function propose() {
  if ($("propose").disabled) return;
  if (view.proposals.length) return lookAt(view.proposals[(view.proposals.indexOf(view.proposal) + 1) % view.proposals.length]);
  working("searching for uptake");
  try {
    view.proposals = (await post("/propose")).proposals;
    if (!view.proposals.length) say("Nothing to propose: no uptake of SUV 4 or more outside the lesions.");
    else lookAt(view.proposals[0]);
  } catch (error) {
    problem(error);
  }
  working("");
  drawPanel();
  draw("overlay", "projection");
}

function lookAt(proposal) {
  view.proposal = proposal;
  move(proposal.voxel, true);
  drawPanel();
}

function dismiss(proposal) {
  const n = view.proposals.indexOf(proposal);
  if (n < 0) return;
  view.proposals = view.proposals.filter((one) => one !== proposal);
  view.proposal = view.proposals[Math.min(n, view.proposals.length - 1)] ?? null;
  if (view.proposal) lookAt(view.proposal);
  drawPanel();
  draw("overlay", "projection");
}

function accept(proposal) {
  if (!view.proposals.includes(proposal)) return;
  view.proposals = view.proposals.filter((one) => one !== proposal);
  view.proposal = null;
  move(proposal.voxel, true);
  send(proposal.voxel, 1, view.next, false);
}

// Navigation

function move(voxel, recentre) {
  view.at = voxel.map((v, axis) => Math.min(Math.max(Math.round(v), 0), view.pet.shape[axis] - 1));
  if (recentre && view.zoom > 1.01 && planes.some((plane) => {
    const [x, y] = plane.toScreen(view.at), [w, h] = plane.size;
    return x < 15 || y < 15 || x > w - 15 || y > h - 15;
  })) view.centre = [...view.at];
  readout(view.at);
  moved();
}

function scroll(plane, by) {
  const at = [...view.at];
  at[plane.w] += by;
  move(at, false);
}

function nudge(u, v) {
  if (pane === projection) return u && turn(u);
  const at = [...view.at];
  at[pane.u] += u;
  at[pane.v] += v;
  move(at, true);
}

function turn(by) {
  projection.turn(by);
  draw("projection");
}

function zoom(factor, plane, x, y) {
  const before = plane && plane.toVoxel(x, y);
  view.zoom = Math.min(Math.max(view.zoom * factor, 1), 24);
  if (view.zoom === 1) view.centre = view.pet.shape.map((n) => (n - 1) / 2);
  else if (plane) {
    const after = plane.toVoxel(x, y);
    for (const axis of [plane.u, plane.v]) view.centre[axis] += before[axis] - after[axis];
  }
  draw("image", "overlay");
}

function resetView() {
  view.zoom = 1;
  view.centre = view.pet.shape.map((n) => (n - 1) / 2);
  draw();
}

function spin() {
  if (spinning) clearInterval(spinning);
  spinning = spinning ? null : setInterval(() => turn(1), 160);
  $("spin").textContent = spinning ? "❚❚" : "▶";
}

// Display

function setPet(high) {
  if (view.notSuv) return say(`No SUV window: ${view.notSuv}`, true);
  view.petWindow = [0, high];
  drawBar();
  draw();
}

function setCt(n) {
  view.ctWindow = CT_WINDOWS[n].slice(1);
  drawBar();
  draw();
}

function setLayer(layer) {
  if (view.modality === "CT" || (layer !== "PT" && !view.ct)) return;
  view.layer = layer;
  drawBar();
  draw("image", "overlay");
}

function setOpacity(value) {
  view.opacity = value;
  drawBar();
  draw("image", "overlay");
}

function setTool(tool) {
  view.tool = tool;
  drawPanel();
}

function toggle(name) {
  view[name] = !view[name];
  draw("overlay", "projection");
}

// Saving and cases

async function save() {
  if (!view.pet || gone) return;
  await last;
  if (!view.lesions.length && !(await question("No lesion was clicked. Save an empty mask?", "Save empty mask", "Cancel"))) return;
  working("saving");
  try {
    const { files, manifest } = await post("/save");
    const state = await get("/state");
    take(state);
    showCases(state.cases);
    say(`Saved in ${folder}: ${files.join(", ")}${manifest ? `; cohort: ${manifest}` : ""}`);
    document.body.dataset.saved = String(performance.now());
  } catch (error) {
    problem(error);
  }
  working("");
}

function showCases(found) {
  cases = found;
  $("cohort").hidden = !cases.length;
  if (!cases.length) return;
  $("cases").replaceChildren(...cases.map((one, n) => new Option(`${one.done ? "✓ " : ""}${one.id}`, String(n))));
  $("cases").value = String(current);
  $("cases").title = `${cases.filter((one) => one.done).length} of ${cases.length} cases saved`;
}

async function turnTo(number) {
  if (!cases.length || number < 0 || number >= cases.length || number === current) return;
  await last;
  if (view.unsaved && !(await question("The results of this case are not saved (its clicks are). Open the other case?", "Open", "Stay"))) {
    $("cases").value = String(current);
    return;
  }
  watching++;
  $("failure").hidden = true;
  try {
    await post("/case", { case: number });
    revision = 0;
    Object.assign(view, { pet: null, ct: null, labels: null, lesions: [], clicks: [] });
    await open();
  } catch (error) {
    problem(error);
  }
}

// Keys: [keys as shown, what it does, key names, action]

const MODE = [
  ["T", "switch between lesion and background", ["t"], () => setTool(view.tool === "0" ? "1" : "0")],
  ["L", "look: clicks only move the crosshair", ["l"], () => setTool(view.tool === "look" ? "1" : "look")],
  ["E", "next lesion", ["e"], startNext],
  ["Enter", "click at the crosshair", ["Enter"], () => mark(view.at, view.tool === "0" ? 0 : 1)],
  ["Shift Enter", "background click at the crosshair", ["Shift+Enter"], () => mark(view.at, 0)],
  ["Ctrl Z", "undo", ["Ctrl+z"], undo],
  ["R", "remove all clicks of the lesion", ["r"], reset],
  ["Delete", "delete the lesion", ["Delete", "Backspace"], () => remove(view.active)],
  ["N, P", "next and previous lesion", ["n"], () => step(1)],
  [null, null, ["p"], () => step(-1)],
  ["G", "propose; then go to the next proposal", ["g"], propose],
  ["A, X", "accept, dismiss the proposal", ["a"], () => view.proposal && accept(view.proposal)],
  [null, null, ["x"], () => view.proposal && dismiss(view.proposal)],
  ["S", "save mask, table and figure", ["s", "Ctrl+s"], save],
];
const MOVES = [
  ["Arrows", "move the crosshair in the chosen plane", ["ArrowLeft"], () => nudge(1, 0)],
  [null, null, ["ArrowRight"], () => nudge(-1, 0)],
  [null, null, ["ArrowUp"], () => nudge(0, 1)],
  [null, null, ["ArrowDown"], () => nudge(0, -1)],
  ["Shift arrows", "the same, 5 voxels", ["Shift+ArrowLeft"], () => nudge(5, 0)],
  [null, null, ["Shift+ArrowRight"], () => nudge(-5, 0)],
  [null, null, ["Shift+ArrowUp"], () => nudge(0, 5)],
  [null, null, ["Shift+ArrowDown"], () => nudge(0, -5)],
  ["Page up, down", "next and previous slice", ["PageUp", "."], () => pane !== projection && scroll(pane, 1)],
  [null, null, ["PageDown", ","], () => pane !== projection && scroll(pane, -1)],
  ["Q", "choose the next plane", ["q"], () => [...planes, projection][([...planes, projection].indexOf(pane) + 1) % 4].element.focus()],
  ["+, −", "zoom", ["+", "="], () => zoom(1.25, pane !== projection && pane, ...(pane !== projection ? pane.toScreen(view.at) : []))],
  [null, null, ["-"], () => zoom(0.8, pane !== projection && pane, ...(pane !== projection ? pane.toScreen(view.at) : []))],
  ["0", "show the whole scan; keep the windows", ["0"], resetView],
  ["M", "turn the projection", ["m"], spin],
  ["[, ]", "previous and next case", ["["], () => turnTo(current - 1)],
  [null, null, ["]"], () => turnTo(current + 1)],
];
const SHOWN = [
  ["V", "PET, CT, fused", ["v"], () => setLayer({ PT: "CT", CT: "fused", fused: "PT" }[view.layer])],
  ["1 to 5", `PET window SUV 0 to ${PET_WINDOWS.join(", ")}`, [], null],
  ...PET_WINDOWS.map((high, n) => [null, null, [String(n + 1)], () => setPet(high)]),
  ["6, 7, 8", "CT window: soft tissue, lung, bone", [], null],
  ...CT_WINDOWS.map((_, n) => [null, null, [String(n + 6)], () => setCt(n)]),
  ["O", "opacity of the PET on the CT", ["o"], () => setOpacity(view.opacity > 0.95 ? 0.3 : Math.round(view.opacity * 10 + 2) / 10)],
  ["Space", "masks on and off", [" "], () => toggle("masks")],
  ["C", "contours or filled masks", ["c"], () => toggle("filled")],
  ["?", "this help", ["?", "F1"], help],
];
const SECTIONS = [["Lesions", MODE], ["Navigation", MOVES], ["Display", SHOWN]];
const KEYS = new Map(SECTIONS.flatMap(([, part]) => part.flatMap(([, , names, act]) => names.map((name) => [name, act]))));

function help() {
  showHelp(SECTIONS.map(([title, part]) => [title, part.filter(([shown]) => shown).map(([shown, what]) => [shown, what])]));
}

addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && offering()) return withdrawOffer();
  const control = event.target.closest?.("button, select, input");
  if (control && (["Enter", " "].includes(event.key) || (control.tagName !== "BUTTON" && !event.ctrlKey))) return;
  const shifted = event.shiftKey && (event.key.length > 1) ? "Shift+" : "";
  const name = `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${shifted}${event.key.length === 1 ? event.key.toLowerCase() : event.key}`;
  const act = KEYS.get(name);
  if (!act || event.altKey || !view.pet) return;
  event.preventDefault();
  act();
});

// Pointers

function watchPane(target) {
  const { element } = target, flat = target !== projection;
  let press = null;
  const place = (event) => {
    const box = element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  element.addEventListener("focus", () => (pane = target));
  element.addEventListener("contextmenu", (event) => event.preventDefault());
  element.addEventListener("pointerdown", (event) => {
    if (!view.pet || event.target.closest("button") || event.button > 2) return;
    const [x, y] = place(event);
    press = { x, y, button: event.button, centre: [...view.centre], angle: projection.angle, drag: false };
    element.setPointerCapture(event.pointerId);
    element.focus({ preventScroll: true });
  });
  element.addEventListener("pointermove", (event) => {
    if (!view.pet) return;
    const [x, y] = place(event);
    if (!press) return flat ? readout(target.toVoxel(x, y)) : undefined;
    press.drag ||= Math.hypot(x - press.x, y - press.y) > DRAG_PIXELS;
    if (!press.drag) return;
    if (flat) {
      const [su, sv] = target.scale;
      view.centre[target.u] = press.centre[target.u] + (x - press.x) / su;
      view.centre[target.v] = press.centre[target.v] + (y - press.y) / sv;
      draw("image", "overlay");
    } else {
      projection.angle = 0;
      turn(press.angle + Math.round((x - press.x) / 18) % 24);
    }
  });
  element.addEventListener("pointercancel", () => (press = null));
  element.addEventListener("pointerup", (event) => {
    const done = press;
    press = null;
    if (!done || done.drag || !view.pet) return;
    withdrawOffer();
    const [x, y] = place(event);
    const near = view.proposals.find((proposal) => {
      const [px, py] = target.toScreen(proposal.voxel);
      const away = flat ? Math.abs(proposal.voxel[target.w] - view.at[target.w]) * view.pet.spacing[target.w] : 0;
      return away <= 8 && Math.hypot(px - x, py - y) <= 9;
    });
    const only = event.altKey || done.button === 1 || view.tool === "look";
    const background = event.shiftKey || done.button === 2 || view.tool === "0";
    if (near && !only && !background) return accept(near);
    if (!flat) {
      const voxel = projection.voxelAt(x, y);
      return voxel && move(voxel, true);
    }
    const voxel = target.toVoxel(x, y).map((v) => Math.floor(v + 0.5));
    if (!view.pet.holds(voxel)) return;
    if (only) move(voxel, false);
    else mark(voxel, background ? 0 : 1);
  });
  let rolled = 0;
  element.addEventListener("wheel", (event) => {
    if (!view.pet) return;
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 30 : 1);
    const [x, y] = place(event);
    if (event.ctrlKey && flat) return zoom(Math.exp(-pixels / 250), target, x, y);
    rolled += pixels;
    const by = Math.trunc(rolled / 30); // a touch pad sends many small steps
    rolled -= by * 30;
    if (!by) return;
    if (flat) scroll(target, -Math.sign(by) * Math.min(Math.abs(by), 4));
    else turn(Math.sign(by));
  }, { passive: false });
}

[...planes, projection].forEach(watchPane);
const spinner = document.createElement("button");
spinner.id = "spin";
spinner.textContent = "▶";
spinner.title = "Turn the projection (M)";
spinner.onclick = spin;
$("projection").append(spinner);

$("layers").onclick = (event) => event.target.dataset.layer && setLayer(event.target.dataset.layer);
$("tools").onclick = (event) => event.target.dataset.tool && setTool(event.target.dataset.tool);
$("pet-window").onchange = (event) => !view.notSuv && setPet(Number(event.target.value));
$("ct-window").onchange = (event) => setCt(Number(event.target.value));
$("opacity").oninput = (event) => setOpacity(event.target.value / 100);
$("next").onclick = startNext;
$("undo").onclick = undo;
$("reset").onclick = reset;
$("propose").onclick = propose;
$("save").onclick = save;
$("open-help").onclick = help;
$("cases").onchange = (event) => turnTo(Number(event.target.value));
$("case-before").onclick = () => turnTo(current - 1);
$("case-after").onclick = () => turnTo(current + 1);
// After a mouse click on a button, the keyboard focus returns to the image.
addEventListener("click", (event) => event.detail > 0 && event.target.closest?.("header, .tools, tbody, #proposals, .pane > button")
  && pane.element.focus({ preventScroll: true }));
addEventListener("resize", () => draw());
addEventListener("beforeunload", (event) => {
  if (view.unsaved && !gone) event.preventDefault();
});

drawBar();
open().then(() => pane.element.focus({ preventScroll: true })).catch(problem);
