// Colour tables (RGBA as little-endian uint32) and the colours of lesions.

const table = (colour) => Uint32Array.from({ length: 256 }, (_, n) => {
  const [r, g, b] = colour(n / 255).map((v) => Math.round(255 * Math.min(1, Math.max(0, v))));
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
});

export const GREY = table((t) => [t, t, t]);
export const INVERTED = table((t) => [1 - t, 1 - t, 1 - t]);
export const HOT_METAL = table((t) => [t * 1.9, t * 2 - 0.75, t * 4 - 3]);
export const BACKGROUND = 0xff0b0907;

// Distinguishable for colour-blind readers, and visible on white, on grey and on hot metal.
const LESIONS = ["#e6007e", "#00a0e9", "#2fb344", "#8f5bff", "#e85d04", "#00b3a4", "#b8860b", "#d13bd1"];
export const lesionColour = (code) => LESIONS[(code - 1) % LESIONS.length];

// Draws values through a window and a colour table; for fusion, PET over CT.
export function paint(target, count, { pet, ct, petWindow, ctWindow, opacity }) {
  if (pet && ct) return paintFused(target, count, pet, ct, petWindow, ctWindow, opacity);
  const values = pet || ct, colours = pet ? INVERTED : GREY, [low, high] = pet ? petWindow : ctWindow;
  const scale = 255 / (high - low);
  for (let n = 0; n < count; n++) {
    const v = values[n];
    if (v < -1e8) {
      target[n] = BACKGROUND;
      continue;
    }
    const t = (v - low) * scale;
    target[n] = colours[t <= 0 ? 0 : t >= 255 ? 255 : t | 0];
  }
}

function paintFused(target, count, pet, ct, [petLow, petHigh], [ctLow, ctHigh], opacity) {
  const petScale = 255 / (petHigh - petLow), ctScale = 255 / (ctHigh - ctLow);
  // Low uptake lets the CT through; from two fifths of the window on, the opacity is the chosen one.
  const alpha = Float32Array.from({ length: 256 }, (_, t) => opacity * Math.min(1, (t / 255) * 2.5));
  for (let n = 0; n < count; n++) {
    const under = ct[n] < -1e8 ? -1 : (ct[n] - ctLow) * ctScale;
    const over = pet[n] < -1e8 ? -1 : (pet[n] - petLow) * petScale;
    if (under < 0 && over < 0 && ct[n] < -1e8) {
      target[n] = BACKGROUND;
      continue;
    }
    const g = under <= 0 ? 0 : under >= 255 ? 255 : under | 0, t = over <= 0 ? 0 : over >= 255 ? 255 : over | 0;
    const hot = HOT_METAL[t], a = alpha[t], rest = g * (1 - a);
    target[n] = 0xff000000 | ((rest + a * ((hot >> 16) & 255)) << 16) | ((rest + a * ((hot >> 8) & 255)) << 8)
      | (rest + a * (hot & 255));
  }
}
