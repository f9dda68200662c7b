// Layers as pixels: a canvas of colours, a value an image pixel, and a finer one of lines.

const UNANIMOUS_WASH = [230, 230, 230, 130];
const HATCH = [110, 110, 110, 120];
const TELLS_WHO = new Set(["who", "why"]);
const RESULT_STRENGTH = 140; // of 255, as in the panels

// The colours of a layer, RGBA.
function coloursOf(layer, maps, washed) {
  const pixels = new Uint8ClampedArray(4 * maps.height * maps.width);
  for (let i = 0; i < maps.result.length; i++) {
    const hidden = washed && maps.unanimous[i];
    const colour = hidden ? UNANIMOUS_WASH : COLOUR_AT[layer](i, maps);
    if (colour) pixels.set(colour, 4 * i);
  }
  return new ImageData(pixels, maps.width, maps.height);
}

const COLOUR_AT = {
  image: () => null,
  result: (i, maps) =>
    maps.result[i] ? [...report.classes[maps.result[i]].colour, RESULT_STRENGTH] : null,
  who: (i, maps) => [
    ...report.annotators[maps.leader[i]].colour,
    Math.round(255 * certaintyAt(maps, i)),
  ],
  why: (i, maps) => [...report.annotators[maps.leader[i]].shades[kernelAt(maps, i)], 255],
  uncertainty: (i, maps) => [...report.scale[maps.uncertainty[i]], 255],
};

// A canvas of lines over maps: `zoom` pixels for each of theirs, lines `line` pixels thick.
function lineSizes(maps) {
  const longest = Math.max(maps.height, maps.width);
  const zoom = Math.max(1, Math.ceil(1200 / longest));
  return { zoom, line: Math.min(zoom, Math.max(1, Math.round((zoom * longest) / 450))) };
}

// Hatching, outlines of annotators and of the result, RGBA.
function linesOf(maps, { hatched, outlines, result }) {
  const { zoom, line } = lineSizes(maps);
  const canvas = { width: maps.width * zoom, height: maps.height * zoom };
  canvas.pixels = new Uint8ClampedArray(4 * canvas.width * canvas.height);
  if (hatched) hatch(canvas, maps.unanimous, zoom);
  if (outlines) drawOutlines(canvas, maps, zoom, line);
  if (result) drawDashed(canvas, maps, zoom, Math.ceil((2 * line) / 3));
  return new ImageData(canvas.pixels, canvas.width, canvas.height);
}

function hatch(canvas, where, zoom) {
  const period = Math.round(canvas.width / 60) + 6;
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.floor(y / zoom) * (canvas.width / zoom);
    for (let x = 0; x < canvas.width; x++) {
      if ((x + y) % period < period / 6 && where[row + Math.floor(x / zoom)]) {
        canvas.pixels.set(HATCH, 4 * (y * canvas.width + x));
      }
    }
  }
}

// Call `mark` with the places of the canvas pixels at the edges between image pixels, as far as
// `line` from the edge, on the side of every pixel `i` that is `parted(i, j)` from its neighbour.
function alongEdges({ height, width }, parted, zoom, line, mark) {
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      const up = y > 0 && parted(i, i - width);
      const down = y < height - 1 && parted(i, i + width);
      const left = x > 0 && parted(i, i - 1);
      const right = x < width - 1 && parted(i, i + 1);
      if (!(up || down || left || right)) continue;
      for (let v = 0; v < zoom; v++) {
        for (let u = 0; u < zoom; u++) {
          const row = (up && v < line) || (down && v >= zoom - line);
          const edge = row || (left && u < line) || (right && u >= zoom - line);
          if (edge) mark((y * zoom + v) * width * zoom + x * zoom + u);
        }
      }
    }
  }
}

// The inner edge of every region of a class but the background.
function outlined(labels) {
  return (i, j) => labels[i] > 0 && labels[i] !== labels[j];
}

// Where several outlines coincide, each takes its share of the dashes along the line.
function drawOutlines(canvas, maps, zoom, line) {
  maps.annotator_result.forEach((labels, annotator) => {
    const colour = [...report.annotators[annotator].colour, 255];
    alongEdges(maps, outlined(labels), zoom, line, (at) => {
      const dash = Math.floor(along(at, canvas) / (4 * line));
      const free = canvas.pixels[4 * at + 3] < 255;
      if (free || dash % (annotator + 1) === 0) canvas.pixels.set(colour, 4 * at);
    });
  });
}

function drawDashed(canvas, maps, zoom, line) {
  alongEdges(maps, outlined(maps.result), zoom, line, (at) => {
    const grey = Math.floor(along(at, canvas) / (3 * line)) % 2 === 0 ? 255 : 0;
    canvas.pixels.set([grey, grey, grey, 255], 4 * at);
  });
}

// A number that grows along any line that is not a falling diagonal.
function along(at, canvas) {
  return (at % canvas.width) + Math.floor(at / canvas.width);
}
