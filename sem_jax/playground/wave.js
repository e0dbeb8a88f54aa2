// Draws complex waves: phase as hue, amplitude as brightness, and as height in the newest one.

// Hues of one lightness (OKLCH), so that brightness tells the amplitude alone; linear RGB by phase.
const HUES = 256;
const WHEEL = Float32Array.from({ length: HUES * 3 }, (_, i) => {
  const angle = ((Math.floor(i / 3) + 0.5) / HUES - 0.5) * 2 * Math.PI;
  const [lightness, a, b] = [0.8, 0.127 * Math.cos(angle + 0.5), 0.127 * Math.sin(angle + 0.5)];
  const [l, m, s] = [
    lightness + 0.3963377774 * a + 0.2158037573 * b,
    lightness - 0.1055613458 * a - 0.0638541728 * b,
    lightness - 0.0894841775 * a - 1.291485548 * b,
  ].map((x) => x ** 3);
  const rgb = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return Math.min(Math.max(rgb[i % 3], 0), 1);
});
const GAMMA = Uint8ClampedArray.from({ length: 1025 }, (_, i) => 255 * (i / 1024) ** (1 / 2.2));
const SHARPNESS = 1.1; // of brightness in linear light

function colour(data, at, re, im, scale) {
  const amplitude = Math.min(Math.hypot(re, im) / scale, 1);
  const hue = Math.min(Math.floor((Math.atan2(im, re) / (2 * Math.PI) + 0.5) * HUES), HUES - 1) * 3;
  const light = 1024 * amplitude ** SHARPNESS;
  for (let c = 0; c < 3; c++) data[at + c] = GAMMA[Math.round(WHEEL[hue + c] * light)];
  data[at + 3] = 255;
}

/** What `packed` in session.py has sent, as (re, im) of each channel of each layer: [L][2·D]. */
export function unpack({ largest, parts }) {
  const bytes = Uint8Array.from(atob(parts), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const width = bytes.length / 2 / largest.length;
  return largest.map((unit, layer) =>
    Float32Array.from({ length: width }, (_, i) => (unit / 32767) * view.getInt16(2 * (layer * width + i), true)));
}

/** Root mean square of the amplitudes of a wave (re, im, ...). */
export function rootMeanSquare(wave) {
  return Math.sqrt((2 * wave.reduce((sum, part) => sum + part * part, 0)) / wave.length);
}

/** One wave as a profile: a column for each channel, as high as its amplitude. */
export function drawProfile(canvas, wave, scale) {
  const [width, height] = [wave.length / 2, canvas.height];
  if (canvas.width !== width) canvas.width = width;
  const image = new ImageData(width, height);
  const [pixel, pixels] = [new Uint8ClampedArray(4), new Uint32Array(image.data.buffer)];
  for (let x = 0; x < width; x++) {
    const [re, im] = [wave[2 * x], wave[2 * x + 1]];
    colour(pixel, 0, re, im, scale);
    const [filled, value] = [Math.round((Math.hypot(re, im) / scale) * height), new Uint32Array(pixel.buffer)[0]];
    for (let y = Math.max(height - filled, 0); y < height; y++) pixels[y * width + x] = value;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Waves one under the other, the first on top, in as many rows as the canvas has. */
export function drawHistory(canvas, waves, scale) {
  const width = waves[0].length / 2;
  if (canvas.width !== width) canvas.width = width;
  const image = new ImageData(width, canvas.height);
  waves.slice(0, canvas.height).forEach((wave, y) => {
    for (let x = 0; x < width; x++) colour(image.data, 4 * (y * width + x), wave[2 * x], wave[2 * x + 1], scale);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** What the colours mean. */
export function drawLegend(hues, lights) {
  const around = Float32Array.from({ length: 2 * hues.width }, (_, i) => {
    const phase = ((Math.floor(i / 2) + 0.5) / hues.width - 0.5) * 2 * Math.PI;
    return i % 2 ? Math.sin(phase) : Math.cos(phase);
  });
  const up = Float32Array.from({ length: 2 * lights.width }, (_, i) => (i % 2 ? 0 : i / 2 / (lights.width - 1)));
  drawHistory(hues, [around], 1);
  drawHistory(lights, [up], 1);
}
