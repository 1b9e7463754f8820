// Volumes in canonical voxels (x to Right, y to Anterior, z to Superior), their geometry, and slices cut from them.

export const OUTSIDE = -1e9; // of a sample beyond the volume

export class Volume {
  // data: typed array in C order, z fastest; shape: [x, y, z]; affine: 4 rows, voxel to RAS mm.
  constructor(data, shape, affine) {
    this.data = data;
    this.shape = shape;
    this.affine = affine;
    this.strides = [shape[1] * shape[2], shape[2], 1];
    this.spacing = [0, 1, 2].map((c) => Math.hypot(affine[0][c], affine[1][c], affine[2][c]));
  }
  holds(voxel) {
    return voxel.every((v, axis) => v >= 0 && v < this.shape[axis]);
  }
  at(voxel) {
    return this.data[voxel[0] * this.strides[0] + voxel[1] * this.strides[1] + voxel[2]];
  }
}

export const apply = (affine, p) =>
  [0, 1, 2].map((r) => affine[r][0] * p[0] + affine[r][1] * p[1] + affine[r][2] * p[2] + affine[r][3]);

function inverse(m) {
  const [a, b, c] = m[0], [d, e, f] = m[1], [g, h, i] = m[2];
  const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
  const rows = [
    [e * i - f * h, c * h - b * i, b * f - c * e],
    [f * g - d * i, a * i - c * g, c * d - a * f],
    [d * h - e * g, b * g - a * h, a * e - b * d],
  ].map((row) => row.map((v) => v / det));
  return rows.map((row) => [...row, -(row[0] * m[0][3] + row[1] * m[1][3] + row[2] * m[2][3])]);
}

// Voxels of one volume to voxels of another, by way of mm.
export function between(from, to) {
  const back = inverse(to.affine);
  return back.map((row, r) => [0, 1, 2, 3].map((c) =>
    row[0] * from.affine[0][c] + row[1] * from.affine[1][c] + row[2] * from.affine[2][c] + (c === 3 ? back[r][3] : 0)));
}

// Fills out (width x height) with values at origin + column * right + row * down, all in the volume's voxels.
export function sample(volume, out, width, height, origin, right, down) {
  const aligned = [right, down].every((step) => step.filter((v) => Math.abs(v) > 1e-9).length === 1);
  if (aligned) sampleAligned(volume, out, width, height, origin, right, down);
  else sampleOblique(volume, out, width, height, origin, right, down);
}

// Along the volume's axes: linear in the plane, the nearest slice across it.
function sampleAligned(volume, out, width, height, origin, right, down) {
  const { data, shape, strides } = volume;
  const across = right.findIndex((v) => Math.abs(v) > 1e-9), along = down.findIndex((v) => Math.abs(v) > 1e-9);
  const third = 3 - across - along, slice = Math.round(origin[third]);
  if (slice < 0 || slice >= shape[third]) return void out.fill(OUTSIDE, 0, width * height);
  const columns = steps(width, origin[across], right[across], shape[across], strides[across]);
  const rows = steps(height, origin[along], down[along], shape[along], strides[along]);
  const base = slice * strides[third];
  let n = 0;
  for (let row = 0; row < height; row++) {
    if (rows.first[row] < 0) {
      out.fill(OUTSIDE, n, n + width);
      n += width;
      continue;
    }
    const a = base + rows.first[row], b = base + rows.second[row], g = rows.part[row];
    for (let column = 0; column < width; column++, n++) {
      const i = columns.first[column];
      if (i < 0) {
        out[n] = OUTSIDE;
        continue;
      }
      const j = columns.second[column], f = columns.part[column];
      const top = data[a + i] + f * (data[a + j] - data[a + i]);
      out[n] = top + g * (data[b + i] + f * (data[b + j] - data[b + i]) - top);
    }
  }
}

function steps(count, origin, step, size, stride) {
  const first = new Int32Array(count), second = new Int32Array(count), part = new Float32Array(count);
  for (let n = 0; n < count; n++) {
    const v = origin + n * step;
    if (v < -0.5 || v >= size - 0.5) {
      first[n] = -1;
      continue;
    }
    const low = Math.min(Math.max(Math.floor(v), 0), size - 1);
    first[n] = low * stride;
    second[n] = Math.min(low + 1, size - 1) * stride;
    part[n] = Math.min(Math.max(v - low, 0), 1);
  }
  return { first, second, part };
}

function sampleOblique(volume, out, width, height, origin, right, down) {
  const { data, shape: [sx, sy, sz], strides: [dx, dy] } = volume;
  let n = 0;
  for (let row = 0; row < height; row++) {
    let x = origin[0] + row * down[0], y = origin[1] + row * down[1], z = origin[2] + row * down[2];
    for (let column = 0; column < width; column++, n++, x += right[0], y += right[1], z += right[2]) {
      if (x < -0.5 || y < -0.5 || z < -0.5 || x >= sx - 0.5 || y >= sy - 0.5 || z >= sz - 0.5) {
        out[n] = OUTSIDE;
        continue;
      }
      const i = x < 0 ? 0 : x | 0, j = y < 0 ? 0 : y | 0, k = z < 0 ? 0 : z | 0;
      const u = x < 0 ? 0 : x - i, v = y < 0 ? 0 : y - j, w = z < 0 ? 0 : z - k;
      const ex = i < sx - 1 ? dx : 0, ey = j < sy - 1 ? dy : 0, ez = k < sz - 1 ? 1 : 0;
      const o = i * dx + j * dy + k;
      const a = data[o] + w * (data[o + ez] - data[o]);
      const b = data[o + ey] + w * (data[o + ey + ez] - data[o + ey]);
      const c = data[o + ex] + w * (data[o + ex + ez] - data[o + ex]);
      const d = data[o + ex + ey] + w * (data[o + ex + ey + ez] - data[o + ex + ey]);
      const p = a + v * (b - a), q = c + v * (d - c);
      out[n] = p + u * (q - p);
    }
  }
}
