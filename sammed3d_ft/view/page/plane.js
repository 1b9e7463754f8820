// One of the three planes: the image below, and above it masks, clicks, crosshair and letters.

import { between, sample } from "./volume.js";
import { lesionColour, paint } from "./colours.js";

// Voxel axes that point left (u) and up (v) on the screen, and across; radiological convention: the patient's right is
// on the left of the screen.
const PLANES = {
  axial: { u: 0, v: 1, w: 2, letters: ["R", "L", "A", "P"] },
  coronal: { u: 0, v: 2, w: 1, letters: ["R", "L", "H", "F"] },
  sagittal: { u: 1, v: 2, w: 0, letters: ["A", "P", "H", "F"] },
};
const GAP = 14; // of the crosshair, so that it hides nothing

export class Plane {
  // view: what all panes share (volumes, labels, at, centre, zoom, windows, ...).
  constructor(element, name, view) {
    Object.assign(this, PLANES[name], { element, name, view });
    this.image = element.appendChild(document.createElement("canvas"));
    this.overlay = element.appendChild(document.createElement("canvas"));
    this.label = name[0].toUpperCase() + name.slice(1);
  }

  get size() {
    return [this.element.clientWidth, this.element.clientHeight];
  }

  // Screen pixels per voxel along u and v.
  get scale() {
    const { pet } = this.view, [width, height] = this.size;
    const du = pet.spacing[this.u], dv = pet.spacing[this.v];
    const fit = Math.min(width / (pet.shape[this.u] * du), height / (pet.shape[this.v] * dv)) * 0.97;
    return [fit * this.view.zoom * du, fit * this.view.zoom * dv];
  }

  // Voxel coordinates (not whole) under a point of the pane.
  toVoxel(x, y) {
    const [width, height] = this.size, [su, sv] = this.scale, voxel = [...this.view.at];
    voxel[this.u] = this.view.centre[this.u] - (x - width / 2) / su;
    voxel[this.v] = this.view.centre[this.v] - (y - height / 2) / sv;
    return voxel;
  }

  toScreen(voxel) {
    const [width, height] = this.size, [su, sv] = this.scale;
    return [width / 2 - (voxel[this.u] - this.view.centre[this.u]) * su,
      height / 2 - (voxel[this.v] - this.view.centre[this.v]) * sv];
  }

  drawImage() {
    const { view } = this, [width, height] = this.size;
    if (!view.pet || width < 2 || height < 2) return;
    if (this.image.width !== width || this.image.height !== height) {
      this.image.width = width;
      this.image.height = height;
      this.pixels = new ImageData(width, height);
      this.words = new Uint32Array(this.pixels.data.buffer);
      this.petValues = new Float32Array(width * height);
      this.ctValues = new Float32Array(width * height);
    }
    const [su, sv] = this.scale;
    const origin = this.toVoxel(0.5, 0.5), right = [0, 0, 0], down = [0, 0, 0];
    right[this.u] = -1 / su;
    down[this.v] = -1 / sv;
    const pet = view.layer !== "CT" && this.petValues, ct = view.layer !== "PT" && this.ctValues;
    if (pet) sample(view.pet, pet, width, height, origin, right, down);
    if (ct) {
      const m = (view.toCt ??= between(view.pet, view.ct)); // of one grid when the image itself is the CT
      const turn = (p, shift) => m.map((row) => row[0] * p[0] + row[1] * p[1] + row[2] * p[2] + shift * row[3]);
      sample(view.ct, ct, width, height, turn(origin, 1), turn(right, 0), turn(down, 0));
    }
    paint(this.words, width * height, { pet, ct, petWindow: view.petWindow, ctWindow: view.ctWindow, opacity: view.opacity });
    this.image.getContext("2d").putImageData(this.pixels, 0, 0);
  }

  drawOverlay() {
    const { view, overlay } = this, [width, height] = this.size, ratio = devicePixelRatio || 1;
    if (overlay.width !== Math.round(width * ratio) || overlay.height !== Math.round(height * ratio)) {
      overlay.width = Math.round(width * ratio);
      overlay.height = Math.round(height * ratio);
    }
    const pen = overlay.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!view.pet) return;
    if (view.masks) this.drawMasks(pen);
    for (const proposal of view.proposals) this.drawProposal(pen, proposal);
    for (const click of view.clicks) this.drawClick(pen, click, false);
    for (const click of view.pending) this.drawClick(pen, click, true);
    this.drawCrosshair(pen, width, height);
    this.drawLetters(pen, width, height);
  }

  drawMasks(pen) {
    const { view } = this, { strides } = view.pet, slice = view.at[this.w], base = slice * strides[this.w];
    const [su, sv] = this.scale, labels = view.labels;
    for (const { code, box, number } of view.lesions) {
      if (!box || slice < box[0][this.w] || slice >= box[1][this.w]) continue;
      const path = new Path2D(), fill = new Path2D(), is = (a, b) =>
        a >= 0 && b >= 0 && a < view.pet.shape[this.u] && b < view.pet.shape[this.v]
        && labels[base + a * strides[this.u] + b * strides[this.v]] === code;
      for (let b = box[0][this.v]; b < box[1][this.v]; b++) {
        for (let a = box[0][this.u]; a < box[1][this.u]; a++) {
          if (!is(a, b)) continue;
          const [x, y] = this.toScreen(this.spot(a + 0.5, b + 0.5)); // upper left corner of the voxel on the screen
          fill.rect(x, y, su, sv);
          if (!is(a + 1, b)) path.moveTo(x, y), path.lineTo(x, y + sv);
          if (!is(a - 1, b)) path.moveTo(x + su, y), path.lineTo(x + su, y + sv);
          if (!is(a, b + 1)) path.moveTo(x, y), path.lineTo(x + su, y);
          if (!is(a, b - 1)) path.moveTo(x, y + sv), path.lineTo(x + su, y + sv);
        }
      }
      outline(pen, path, lesionColour(code), number === view.active ? 2.4 : 1.6, view.filled ? fill : null);
    }
  }

  spot(a, b) {
    const voxel = [...this.view.at];
    voxel[this.u] = a;
    voxel[this.v] = b;
    return voxel;
  }

  drawClick(pen, { voxel, label }, pending) {
    const away = Math.abs(voxel[this.w] - this.view.at[this.w]);
    if (away > 2) return;
    const [x, y] = this.toScreen(voxel);
    pen.globalAlpha = away < 0.5 ? 1 : 0.4;
    pen.beginPath();
    pen.arc(x, y, 5.5, 0, 7);
    pen.fillStyle = label ? "#0a7d32" : "#c01830";
    pen.fill();
    pen.lineWidth = 1.5;
    pen.strokeStyle = "#fff";
    pen.setLineDash(pending ? [2, 2] : []);
    pen.stroke();
    pen.setLineDash([]);
    pen.beginPath();
    pen.moveTo(x - 3, y), pen.lineTo(x + 3, y);
    if (label) pen.moveTo(x, y - 3), pen.lineTo(x, y + 3);
    pen.stroke();
    pen.globalAlpha = 1;
  }

  // A dashed ring, where the slice is near the place.
  drawProposal(pen, proposal) {
    const awayMm = Math.abs(proposal.voxel[this.w] - this.view.at[this.w]) * this.view.pet.spacing[this.w];
    if (awayMm > 8) return;
    const [x, y] = this.toScreen(proposal.voxel);
    ring(pen, x, y, proposal === this.view.proposal);
  }

  drawCrosshair(pen, width, height) {
    const [x, y] = this.toScreen(this.view.at);
    pen.beginPath();
    pen.moveTo(0, y), pen.lineTo(x - GAP, y), pen.moveTo(x + GAP, y), pen.lineTo(width, y);
    pen.moveTo(x, 0), pen.lineTo(x, y - GAP), pen.moveTo(x, y + GAP), pen.lineTo(x, height);
    pen.lineWidth = 1;
    pen.strokeStyle = "#1c8fe0a0";
    pen.stroke();
  }

  drawLetters(pen, width, height) {
    const [left, right, top, bottom] = this.letters;
    text(pen, left, 10, height / 2, "left", true);
    text(pen, right, width - 10, height / 2, "right", true);
    text(pen, top, width / 2, 14, "center", true);
    text(pen, bottom, width / 2, height - 14, "center", true);
    text(pen, `${this.label} ${this.view.at[this.w]}`, 8, 14, "left", false);
  }
}

export function outline(pen, path, colour, width, fill) {
  if (fill) {
    pen.globalAlpha = 0.35;
    pen.fillStyle = colour;
    pen.fill(fill);
    pen.globalAlpha = 1;
  }
  pen.lineWidth = width + 1.6; // a light edge keeps the line visible on dark uptake
  pen.strokeStyle = "#ffffffb0";
  pen.stroke(path);
  pen.lineWidth = width;
  pen.strokeStyle = colour;
  pen.stroke(path);
}

export function ring(pen, x, y, now) {
  pen.beginPath();
  pen.arc(x, y, 9, 0, 7);
  pen.lineWidth = now ? 4.5 : 3.5;
  pen.strokeStyle = "#ffffffb0";
  pen.stroke();
  pen.setLineDash([4, 3]);
  pen.lineWidth = now ? 2.8 : 1.6;
  pen.strokeStyle = "#d97706";
  pen.stroke();
  pen.setLineDash([]);
}

export function text(pen, what, x, y, align, bold, onWhite = false) {
  pen.font = `${bold ? 600 : 400} 12px system-ui, "DejaVu Sans", sans-serif`;
  pen.textAlign = align;
  pen.textBaseline = "middle";
  pen.lineWidth = 3;
  pen.strokeStyle = onWhite ? "#fffc" : "#000c";
  pen.strokeText(what, x, y);
  pen.fillStyle = onWhite ? "#5c3a00" : "#ffd591";
  pen.fillText(what, x, y);
}
