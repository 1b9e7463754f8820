// The rotating maximum-intensity projection. It keeps which voxel each pixel shows, so that a click jumps there.

import { BACKGROUND, GREY, INVERTED, lesionColour } from "./colours.js";
import { outline, ring, text } from "./plane.js";

const ANGLES = 24;

export class Projection {
  constructor(element, view) {
    Object.assign(this, { element, view, angle: 0, frames: [] });
    this.canvas = element.appendChild(document.createElement("canvas"));
    this.small = document.createElement("canvas");
  }

  forget() {
    this.frames = [];
    this.angle = 0;
  }

  turn(steps) {
    this.angle = (this.angle + steps + ANGLES) % ANGLES;
  }

  // Columns of the projection: where a voxel's (x, y) falls, counted in the finer of the two spacings.
  geometry() {
    const { shape: [sx, sy, sz], spacing: [dx, dy, dz] } = this.view.pet;
    const turned = (this.angle * 2 * Math.PI) / ANGLES, bin = Math.min(dx, dy);
    const width = Math.ceil(Math.hypot(sx * dx, sy * dy) / bin) + 2;
    const ax = (-Math.cos(turned) * dx) / bin, ay = (-Math.sin(turned) * dy) / bin; // at 0: right on the left, from the front
    const shift = width / 2 - (ax * (sx - 1)) / 2 - (ay * (sy - 1)) / 2;
    return { width, sz, bin, dz, column: (x, y) => Math.round(ax * x + ay * y + shift) };
  }

  frame() {
    return (this.frames[this.angle] ??= this.compute());
  }

  compute() {
    const { data, shape: [sx, sy, sz] } = this.view.pet, { width, column } = this.geometry();
    const maxima = new Float32Array(width * sz).fill(-1e9), from = new Int32Array(width * sz);
    for (let x = 0, line = 0; x < sx; x++) {
      for (let y = 0; y < sy; y++, line++) {
        const to = column(x, y) * sz, start = line * sz;
        for (let z = 0; z < sz; z++) {
          if (data[start + z] > maxima[to + z]) {
            maxima[to + z] = data[start + z];
            from[to + z] = line;
          }
        }
      }
    }
    return { maxima, from, width };
  }

  // Screen pixels per column and per slice, and the upper left corner.
  layout() {
    const { sz, bin, dz, width } = this.geometry(), { shape, spacing } = this.view.pet;
    const [w, h] = [this.element.clientWidth, this.element.clientHeight];
    // All angles at one scale: the larger of the two widths, not the diagonal, which is mostly air.
    const fit = Math.min(w / Math.max(shape[0] * spacing[0], shape[1] * spacing[1]), h / (sz * dz)) * 0.97;
    return { w, h, su: fit * bin, sv: fit * dz, left: w / 2 - (fit * bin * width) / 2, top: h / 2 - (fit * dz * sz) / 2 };
  }

  toScreen([x, y, z]) {
    const { column } = this.geometry(), { su, sv, left, top } = this.layout();
    return [left + (column(x, y) + 0.5) * su, top + (this.view.pet.shape[2] - 1 - z + 0.5) * sv];
  }

  voxelAt(px, py) {
    const { su, sv, left, top } = this.layout(), { from, maxima, width } = this.frame(), [, sy, sz] = this.view.pet.shape;
    const column = Math.floor((px - left) / su), z = sz - 1 - Math.floor((py - top) / sv);
    if (column < 0 || column >= width || z < 0 || z >= sz || maxima[column * sz + z] < -1e8) return null;
    const line = from[column * sz + z];
    return [Math.floor(line / sy), line % sy, z];
  }

  draw() {
    const { view, canvas } = this;
    if (!view.pet || this.element.clientWidth < 2) return;
    const ratio = devicePixelRatio || 1, { maxima, width } = this.frame(), sz = view.pet.shape[2];
    const { w, h, su, sv, left, top } = this.layout();
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = view.modality === "CT" ? "#000" : "#fff";
    pen.fillRect(0, 0, w, h);
    this.small.width = width;
    this.small.height = sz;
    const pixels = new ImageData(width, sz), words = new Uint32Array(pixels.data.buffer);
    const [low, high] = view.modality === "CT" ? view.ctWindow : view.petWindow;
    const colours = view.modality === "CT" ? GREY : INVERTED, scale = 255 / (high - low);
    for (let column = 0; column < width; column++) {
      for (let z = 0; z < sz; z++) {
        const v = maxima[column * sz + z], t = (v - low) * scale;
        words[(sz - 1 - z) * width + column] =
          v < -1e8 ? (view.modality === "CT" ? BACKGROUND : 0xffffffff) : colours[t <= 0 ? 0 : t >= 255 ? 255 : t | 0];
      }
    }
    this.small.getContext("2d").putImageData(pixels, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.small, left, top, width * su, sz * sv);
    if (view.masks) this.drawMasks(pen);
    for (const proposal of view.proposals) {
      const [x, y] = this.toScreen(proposal.voxel);
      ring(pen, x, y, proposal === view.proposal);
    }
    const [x, y] = this.toScreen(view.at);
    pen.beginPath();
    pen.moveTo(x - 9, y), pen.lineTo(x - 3, y), pen.moveTo(x + 3, y), pen.lineTo(x + 9, y);
    pen.moveTo(x, y - 9), pen.lineTo(x, y - 3), pen.moveTo(x, y + 3), pen.lineTo(x, y + 9);
    pen.lineWidth = 1.5;
    pen.strokeStyle = "#1c8fe0";
    pen.stroke();
    text(pen, `Projection ${(this.angle * 360) / ANGLES}°`, 8, 14, "left", false, view.modality !== "CT");
    const sides = { 0: "RL", 6: "AP", 12: "LR", 18: "PA" }[this.angle];
    if (sides) text(pen, sides[0], 10, h / 2, "left", true, view.modality !== "CT"), text(pen, sides[1], w - 10, h / 2, "right", true, view.modality !== "CT");
  }

  drawMasks(pen) {
    const { view } = this, { strides, shape } = view.pet, { width, column } = this.geometry();
    const { su, sv, left, top } = this.layout(), sz = shape[2];
    for (const { code, box, number } of view.lesions) {
      if (!box) continue;
      const shadow = new Uint8Array(width * sz), path = new Path2D();
      let first = width, last = -1;
      for (let x = box[0][0]; x < box[1][0]; x++) {
        for (let y = box[0][1]; y < box[1][1]; y++) {
          const c = column(x, y), line = x * strides[0] + y * strides[1];
          for (let z = box[0][2]; z < box[1][2]; z++) if (view.labels[line + z] === code) shadow[c * sz + z] = 1;
          first = Math.min(first, c);
          last = Math.max(last, c);
        }
      }
      const is = (c, z) => c >= 0 && c < width && z >= 0 && z < sz && shadow[c * sz + z];
      for (let c = first; c <= last; c++) {
        for (let z = box[0][2]; z < box[1][2]; z++) {
          if (!is(c, z)) continue;
          const x = left + c * su, y = top + (sz - 1 - z) * sv;
          if (!is(c - 1, z)) path.moveTo(x, y), path.lineTo(x, y + sv);
          if (!is(c + 1, z)) path.moveTo(x + su, y), path.lineTo(x + su, y + sv);
          if (!is(c, z + 1)) path.moveTo(x, y), path.lineTo(x + su, y);
          if (!is(c, z - 1)) path.moveTo(x, y + sv), path.lineTo(x + su, y + sv);
        }
      }
      outline(pen, path, lesionColour(code), number === view.active ? 2 : 1.4, null);
    }
  }
}
