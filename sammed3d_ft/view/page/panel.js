// The lesion table, the proposals, and what the next click will do.

import { element } from "./dialogs.js";
import { lesionColour } from "./colours.js";

const number = (value, digits) => (value === undefined || value === null ? "–" : value.toFixed(digits));

// acts: {choose(number), remove(number), look(proposal), accept(proposal), dismiss(proposal)}
export function drawTable(view, acts) {
  const body = document.querySelector("#lesions tbody"), foot = document.querySelector("#lesions tfoot");
  body.replaceChildren();
  foot.replaceChildren();
  let volume = 0, activity = 0, highest = null;
  for (const { number: lesion, code } of [...view.lesions].sort((a, b) => a.number - b.number)) {
    const row = view.rows.get(lesion) ?? {}, line = element("tr", undefined, body);
    line.dataset.lesion = lesion;
    line.setAttribute("aria-selected", String(lesion === view.active));
    const swatch = element("span"), first = element("td", undefined, line);
    swatch.className = "swatch";
    swatch.style.background = lesionColour(code);
    first.append(swatch, String(lesion));
    element("td", row.voxels === 0 ? "empty" : number(row.volume_ml, 2), line);
    element("td", number(row.suv_max, 1), line);
    element("td", number(row.suv_mean, 1), line);
    element("td", number(row.suv_peak, 1) + (row.suv_peak_flagged ? "*" : ""), line);
    element("td", number(row.tla, 1), line);
    element("td", number(row.predicted_iou, 2), line);
    const own = view.clicks.filter((click) => click.lesion === lesion), more = own.filter((click) => click.label).length;
    element("td", own.length ? `${more} + ${own.length - more}` : "mask", line);
    const remove = element("button", "✕", element("td", undefined, line));
    remove.title = `Delete lesion ${lesion} (Delete)`;
    remove.setAttribute("aria-label", remove.title);
    remove.onclick = (event) => {
      event.stopPropagation();
      acts.remove(lesion);
    };
    line.onclick = () => acts.choose(lesion);
    volume += row.volume_ml ?? 0;
    activity += row.tla ?? 0;
    if (row.suv_max !== undefined && row.suv_max !== null) highest = Math.max(highest ?? -Infinity, row.suv_max);
  }
  if (view.lesions.length) {
    const line = element("tr", undefined, foot), pet = highest !== null;
    const mean = pet && volume > 0 ? activity / volume : null;
    for (const cell of [`${view.lesions.length} in total`, number(volume, 2), number(highest, 1), number(mean, 1), "",
      pet ? number(activity, 1) : "–", "", String(view.clicks.length), ""]) element("td", cell, line);
  }
  drawProposals(view, acts);
}

function drawProposals(view, acts) {
  const list = document.getElementById("proposals");
  list.replaceChildren();
  if (!view.proposals.length) return;
  element("li", `${view.proposals.length} proposals: uptake, not disease. Click a ring or ✓ to accept.`, list).className = "title";
  for (const proposal of view.proposals) {
    const line = element("li", undefined, list);
    line.className = proposal === view.proposal ? "now" : "";
    const what = element("span", `SUV ${proposal.suv.toFixed(1)}`, line);
    what.onclick = () => acts.look(proposal);
    for (const [sign, title, act] of [["Show", "Move the crosshair there", acts.look], ["✓", "Accept (A)", acts.accept], ["✕", "Dismiss (X)", acts.dismiss]]) {
      const button = element("button", sign, line);
      button.title = title;
      button.onclick = () => act(proposal);
    }
  }
  list.querySelector(".now")?.scrollIntoView({ block: "nearest" });
}

export function drawHint(view) {
  const hint = document.getElementById("hint"), known = view.lesions.some((one) => one.number === view.active)
    || view.clicks.some((one) => one.lesion === view.active);
  const bold = (text) => element("b", text);
  hint.replaceChildren();
  if (view.notSuv) hint.append("This PET can be viewed, but not segmented.");
  else if (view.tool === "look") hint.append("Clicks only ", bold("move the crosshair"), ".");
  else if (view.tool === "0" && known) hint.append("A click marks ", bold("background"), ` of lesion ${view.active}.`);
  else if (view.tool === "0") hint.append("Background clicks correct a lesion: choose one first.");
  else if (known) hint.append("A click adds to ", bold(`lesion ${view.active}`), "; E starts the next.");
  else hint.append("Click on a lesion to start ", bold(`lesion ${view.active}`), ".");
}
